//! `watch`: one line for each event, flushed as it comes. It never skips an event and prints none
//! twice: when a connection breaks it goes on behind the last revision it printed, at any member.

use std::time::{Duration, Instant};

use raft_kv::client::{Handle, Watch};
use raft_kv::error::Refusal;
use raft_kv::types::{KeyRange, RangeRequest, Revision, WatchBatch, WatchRequest};
use serde_json::json;

use crate::args::WatchCommand;
use crate::cli::kv::key_range;
use crate::connect::connect_for_long;
use crate::failure::{Failure, Kind};
use crate::output::{Output, event_json, event_text};

/// How long a watch that broke looks for a member that serves it.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// `raft-kv watch`.
pub async fn run(args: &WatchCommand, output: &mut Output) -> Result<(), Failure> {
    let range = key_range(&args.range, args.form)?;
    let handle = connect_for_long(&args.connect).await?;
    let start_revision = match args.from_revision {
        0 => newest(&handle, &range).await? + 1,
        given => given,
    };
    let mut request =
        WatchRequest { range, start_revision, prev_kv: args.prev_kv, ..WatchRequest::default() };
    let mut left = args.events.unwrap_or(u64::MAX);
    let mut watch = handle.watch(request.clone()).await?;
    loop {
        match follow(&mut watch, &mut request.start_revision, &mut left, output).await {
            Ok(()) => return Ok(()),
            Err(failure) => watch = resume(&handle, &request, failure).await?,
        }
    }
}

/// The store's revision now, so that "from now on" is a revision too and survives a lost member.
async fn newest(handle: &Handle, range: &KeyRange) -> Result<Revision, Failure> {
    let request =
        RangeRequest { range: range.clone(), limit: 1, count_only: true, ..RangeRequest::default() };
    Ok(handle.range(request).await?.0.revision)
}

/// Prints what comes until as many events as asked for are printed. Keeps in `next` the revision
/// to go on from.
async fn follow(
    watch: &mut Watch,
    next: &mut Revision,
    left: &mut u64,
    output: &mut Output,
) -> Result<(), Failure> {
    loop {
        let batch = watch.next().await?;
        // Of a revision that comes in parts the rest is still to come.
        let part = matches!(batch, Some(WatchBatch::Part(_)));
        let batch = match batch {
            Some(WatchBatch::Part(change)) => Some(WatchBatch::Changes(vec![change])),
            batch => batch,
        };
        match batch {
            Some(WatchBatch::Part(_)) => unreachable!("it was taken for changes"),
            Some(WatchBatch::Changes(changes)) => {
                for change in changes {
                    for event in &change.events {
                        output.answer(
                            || event_json(change.revision, event),
                            || event_text(change.revision, event),
                        )?;
                        *left -= 1;
                        if *left == 0 {
                            return Ok(());
                        }
                    }
                    *next = if part { change.revision } else { change.revision + 1 };
                }
            }
            Some(WatchBatch::Progress(revision)) => *next = (revision + 1).max(*next),
            Some(WatchBatch::Compacted(revision)) => {
                output.answer(|| json!({ "type": "compacted", "revision": revision }), String::new)?;
                return Err(Refusal::Compacted { requested: *next, compacted: revision }.into());
            }
            None => return Err(Failure::new(Kind::NotDone, "the member ended the watch")),
        }
    }
}

/// The watch taken up again, or `failure` with the revision to go on from where that can't be.
async fn resume(handle: &Handle, request: &WatchRequest, mut failure: Failure) -> Result<Watch, Failure> {
    let deadline = Instant::now() + PATIENCE;
    tracing::warn!("the watch broke, going on from revision {}: {failure}", request.start_revision);
    while matches!(failure.kind, Kind::NotDone | Kind::Unknown | Kind::Stopped) && Instant::now() < deadline {
        tokio::time::sleep(PAUSE).await;
        match handle.watch(request.clone()).await {
            Ok(watch) => return Ok(watch),
            Err(error) => failure = error.into(),
        }
    }
    failure.message.push_str(&format!("; go on with --from-revision {}", request.start_revision));
    Err(failure)
}
