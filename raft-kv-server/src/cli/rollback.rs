//! `rollback-point` and `rollback`: names for revisions, what has changed since one, and going back to one. What
//! is shown before a rollback is what the cluster says it would do; nothing is decided here.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use raft_kv::client::{Handle, NewPoint};
use raft_kv::types::{
    DiffCounts, Difference, PointDiffRequest, PointOrigin, PointSchedule, RollbackPoint, ScheduleStatus,
};
use serde_json::{Map, Value, json};

use crate::args::{PointArgs, PointCommand, PrefixArgs, RollbackArgs, RollbackCommand};
use crate::bytes_arg::escape;
use crate::cli::node::date;
use crate::connect::connect;
use crate::failure::{Failure, Kind};
use crate::output::{Output, put_bytes, shell_word, table};

/// Schedules whose names say how often.
const NAMED: [(&str, u64); 3] = [("hourly", 3600), ("daily", 24 * 3600), ("weekly", 7 * 24 * 3600)];

/// `raft-kv rollback-point`.
pub async fn points(args: &PointArgs, output: &mut Output) -> Result<(), Failure> {
    let handle = connect(&args.connect).await?;
    match &args.command {
        PointCommand::Create { name, rev, expires, comment } => {
            let expires = expires.map(millis_from_now);
            let new = NewPoint { at: *rev, expires, comment: comment.clone() };
            let (_, point) = handle.point_create(name, new).await?;
            output.answer(
                || point_json(&point),
                || format!("point {} names revision {}\n", point.name, point.revision),
            )
        }
        PointCommand::Ls => {
            let list = handle.points().await?.1;
            output.answer(
                || {
                    let points: Vec<Value> = list.points.iter().map(point_json).collect();
                    let schedules: Vec<Value> = list.schedules.iter().map(schedule_json).collect();
                    json!({ "points": points, "schedules": schedules })
                },
                || points_text(&list.points) + &schedules_text(&list.schedules),
            )
        }
        PointCommand::Show { name } => {
            let point = find(&handle, name).await?;
            let mut pages = Pages::new(&handle, name, None, true);
            while pages.next().await?.is_some() {}
            let mut value = point_json(&point);
            value["changed_since"] = counts_json(&pages.counts);
            output.answer(|| value, || point_text(&point, &pages.counts))
        }
        PointCommand::Rm { name } => {
            let (_, point) = handle.point_remove(name).await?;
            output.answer(
                || json!({ "name": point.name, "removed": true }),
                || format!("point {} is removed\n", point.name),
            )
        }
        PointCommand::Schedule { name, every, keep } => {
            let named = NAMED.iter().find(|(known, _)| known == name).map(|(_, every)| *every);
            let Some(every) = every.or(named) else {
                return Err(Failure::usage(format!(
                    "how often does the schedule {name:?} make a point? give --every, as in `--every 6h`, or name it \
                     hourly, daily or weekly"
                )));
            };
            let schedule = PointSchedule { name: name.clone(), every, keep: *keep };
            handle.point_schedule(schedule).await?;
            output.answer(
                || json!({ "name": name, "every": every, "keep": keep }),
                || format!("schedule {name} makes a point every {every} s and keeps {keep}\n"),
            )
        }
        PointCommand::Unschedule { name } => {
            handle.point_unschedule(name).await?;
            output.answer(
                || json!({ "name": name, "ended": true }),
                || format!("schedule {name} has ended; its points stay\n"),
            )
        }
    }
}

/// The time so many seconds from now, in milliseconds since 1970.
fn millis_from_now(seconds: u64) -> i64 {
    let at = SystemTime::now() + Duration::from_secs(seconds.min(i64::MAX as u64 / 10_000));
    let since = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// `raft-kv rollback`.
pub async fn run(args: &RollbackArgs, output: &mut Output) -> Result<(), Failure> {
    match &args.command {
        RollbackCommand::Diff { point, keys, stat } => {
            let prefix = prefix_of(keys)?;
            diff(&connect(&args.connect).await?, point, prefix, *stat, output).await
        }
        RollbackCommand::To { point, keys, dry_run: true } => {
            let prefix = prefix_of(keys)?;
            diff(&connect(&args.connect).await?, point, prefix, false, output).await
        }
        RollbackCommand::To { point, keys, dry_run: false } => {
            let prefix = prefix_of(keys)?;
            let (_, done) = connect(&args.connect).await?.rollback(point, prefix).await?;
            output.answer(
                || {
                    json!({ "point": point, "to": done.to, "revision": done.revision, "compared": done.compared,
                            "events": done.events, "undo": done.undo })
                },
                || match &done.undo {
                    Some(undo) => format!(
                        "{} keys are as they were at revision {}, by revision {}; undo with `raft-kv rollback to {}`\n",
                        done.events,
                        done.to,
                        done.revision,
                        shell_word(undo)
                    ),
                    None => format!("nothing differs from revision {}; nothing was changed\n", done.to),
                },
            )
        }
    }
}

fn prefix_of(keys: &PrefixArgs) -> Result<Option<Bytes>, Failure> {
    let parse = |word: &std::ffi::OsString| keys.form.parse("PREFIX", word).map_err(Failure::usage);
    Ok(keys.prefix.as_ref().map(parse).transpose()?.filter(|prefix| !prefix.is_empty()))
}

/// The difference, page by page: all pages are about one revision.
struct Pages<'a> {
    handle: &'a Handle,
    /// What is asked next; `None` behind the last page.
    request: Option<PointDiffRequest>,
    counts: DiffCounts,
    /// From which revision to which.
    between: (i64, i64),
}

impl<'a> Pages<'a> {
    fn new(handle: &'a Handle, point: &str, prefix: Option<Bytes>, count_only: bool) -> Self {
        let request = PointDiffRequest { point: point.to_owned(), prefix, count_only, ..Default::default() };
        Self { handle, request: Some(request), counts: DiffCounts::default(), between: (0, 0) }
    }

    async fn next(&mut self) -> Result<Option<Vec<Difference>>, Failure> {
        let Some(request) = self.request.take() else { return Ok(None) };
        let (_, page) = self.handle.point_diff(request.clone()).await?;
        self.counts = self.counts.plus(page.counts);
        self.between = (page.from, page.to);
        self.request =
            page.next.map(|after| PointDiffRequest { after: Some(after), revision: page.to, ..request });
        Ok(Some(page.differences))
    }
}

async fn diff(
    handle: &Handle,
    point: &str,
    prefix: Option<Bytes>,
    stat: bool,
    output: &mut Output,
) -> Result<(), Failure> {
    let mut pages = Pages::new(handle, point, prefix, stat);
    while let Some(differences) = pages.next().await? {
        for difference in &differences {
            output.answer(|| difference_json(difference), || difference_text(difference))?;
        }
    }
    let (counts, (from, to)) = (pages.counts, pages.between);
    output.answer(
        || {
            let mut value = counts_json(&counts);
            (value["from"], value["to"]) = (from.into(), to.into());
            value
        },
        || {
            format!(
                "{} created, {} changed, {} deleted from revision {from} to {to}\n",
                counts.created, counts.changed, counts.deleted
            )
        },
    )
}

fn counts_json(counts: &DiffCounts) -> Value {
    json!({ "created": counts.created, "changed": counts.changed, "deleted": counts.deleted,
            "compared": counts.compared })
}

/// What happened to a key since the point.
fn word(difference: &Difference) -> &'static str {
    match (&difference.then, &difference.now) {
        (None, _) => "created",
        (_, None) => "deleted",
        _ => "changed",
    }
}

fn difference_json(difference: &Difference) -> Value {
    let mut object = Map::new();
    object.insert("change".into(), word(difference).into());
    put_bytes(&mut object, "key", &difference.key);
    for (name, kv) in [("then", &difference.then), ("now", &difference.now)] {
        if let Some(kv) = kv {
            put_bytes(&mut object, name, &kv.value);
            object.insert(format!("{name}_revision"), kv.mod_revision.into());
        }
    }
    object.into()
}

fn difference_text(difference: &Difference) -> String {
    let value =
        |kv: &Option<raft_kv::types::KeyValue>| kv.as_ref().map(|kv| escape(&kv.value)).unwrap_or_default();
    let (then, now) = (value(&difference.then), value(&difference.now));
    let key = escape(&difference.key);
    match word(difference) {
        "created" => format!("+ {key}\t{now}\n"),
        "deleted" => format!("- {key}\t{then}\n"),
        _ => format!("~ {key}\t{then} -> {now}\n"),
    }
}

/// The point of that name.
pub async fn find(handle: &Handle, name: &str) -> Result<RollbackPoint, Failure> {
    let list = handle.points().await?.1;
    list.points.into_iter().find(|point| point.name == name).ok_or_else(|| {
        let why = format!("no rollback point has the name {name:?}; `raft-kv rollback-point ls` lists them");
        Failure::new(Kind::NotFound, why)
    })
}

fn origin(point: &RollbackPoint) -> String {
    match &point.origin {
        PointOrigin::Asked => point.author.clone(),
        PointOrigin::Schedule { name } => format!("schedule {name}"),
        PointOrigin::Rollback { to, .. } => format!("{}, before a rollback to {to}", point.author),
    }
}

fn point_json(point: &RollbackPoint) -> Value {
    let (schedule, rollback_to) = match &point.origin {
        PointOrigin::Asked => (None, None),
        PointOrigin::Schedule { name } => (Some(name), None),
        PointOrigin::Rollback { to, .. } => (None, Some(to)),
    };
    json!({
        "name": point.name, "revision": point.revision, "created": point.created / 1000,
        "expires": point.expires.map(|at| at / 1000), "author": point.author, "comment": point.comment,
        "schedule": schedule, "rollback_to": rollback_to,
    })
}

fn schedule_json(status: &ScheduleStatus) -> Value {
    json!({
        "name": status.schedule.name, "every": status.schedule.every, "keep": status.schedule.keep,
        "last": status.last.map(|at| at / 1000),
    })
}

fn points_text(points: &[RollbackPoint]) -> String {
    let mut rows = vec![["NAME", "REVISION", "CREATED", "EXPIRES", "BY", "COMMENT"].map(str::to_owned)];
    rows.extend(points.iter().map(|point| {
        [
            point.name.clone(),
            point.revision.to_string(),
            date(point.created / 1000),
            point.expires.map_or("never".to_owned(), |at| date(at / 1000)),
            origin(point),
            point.comment.clone(),
        ]
    }));
    table(&rows)
}

fn schedules_text(schedules: &[ScheduleStatus]) -> String {
    if schedules.is_empty() {
        return String::new();
    }
    let mut rows = vec![["SCHEDULE", "EVERY", "KEEP", "LAST"].map(str::to_owned)];
    rows.extend(schedules.iter().map(|status| {
        [
            status.schedule.name.clone(),
            format!("{} s", status.schedule.every),
            status.schedule.keep.to_string(),
            status.last.map_or("-".to_owned(), |at| date(at / 1000)),
        ]
    }));
    format!("\n{}", table(&rows))
}

fn point_text(point: &RollbackPoint, counts: &DiffCounts) -> String {
    let or = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    table(&[
        ["name".to_owned(), point.name.clone()],
        ["revision".to_owned(), point.revision.to_string()],
        ["created".to_owned(), date(point.created / 1000)],
        ["expires".to_owned(), point.expires.map_or("never".to_owned(), |at| date(at / 1000))],
        ["by".to_owned(), or(&origin(point))],
        ["comment".to_owned(), or(&point.comment)],
        [
            "since".to_owned(),
            format!("{} created, {} changed, {} deleted", counts.created, counts.changed, counts.deleted),
        ],
    ])
}
