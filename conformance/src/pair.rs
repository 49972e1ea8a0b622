//! Two servers, both empty at first: each step goes to both at once, and what they say is compared.
//! What only one of the two may be asked has to be refused by it as the request says.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use etcd_api::etcdserverpb::watch_request::RequestUnion;
use etcd_api::etcdserverpb::{RangeRequest, WatchRequest};

use crate::ask::{Answer, Ask, Step};
use crate::compare::difference;
use crate::differential::{Difference, FATAL, LARGE, LOST, NESTED, OPEN, Other, Plan, SPACE, Story};
use crate::explained::streams::DENIED;
use crate::explained::{Alarms, Case, NO_KEY, explain};
use crate::fatal::{self, fatal};
use crate::generate::Known;
use crate::overlooked::{changes_twice, hides_keys, names_no_key, puts_only_nested};
use crate::server::{Etcd, RaftKv, Server};
use crate::shown::{cut, letters, refused, shape, watch_difference};
use crate::side::{Side, header_of};
use crate::watches::{Line, Stream, rest};

/// A sequence that differs more often than this is stopped.
const MOST_DIFFERENCES: usize = 8;

/// How often watches that differ are opened again.
const TRIES: usize = 4;

/// Whether etcd 3.4 carries a request out for whoever asks.
fn unguarded(ask: &Ask) -> bool {
    !matches!(ask, Ask::Range(_) | Ask::Put(_) | Ask::Delete(_) | Ask::Txn(_) | Ask::Authenticate(_))
        && !ask.name().starts_with("User")
        && !ask.name().starts_with("Role")
        && !ask.name().starts_with("Auth")
}

/// A stream on each side.
#[derive(Debug)]
struct Opened {
    pair: (Stream, Stream),
    user: Option<String>,
    requests: Vec<WatchRequest>,
    /// What was known when it was opened.
    known: Known,
}

impl AsRef<(Stream, Stream)> for Opened {
    fn as_ref(&self) -> &(Stream, Stream) {
        &self.pair
    }
}

/// How two streams compare.
#[derive(Debug)]
enum Judged {
    Same,
    Explained(&'static str, String),
    Different(String),
}

/// Two servers, both empty.
#[derive(Debug)]
pub struct Pair {
    servers: [Server; 2],
    sides: [Side; 2],
    streams: Vec<Opened>,
    known: Known,
    alarms: Alarms,
    auth: bool,
    dead: bool,
    asked: Arc<AtomicUsize>,
}

impl Pair {
    /// Starts both.
    ///
    /// # Errors
    /// One does not start.
    pub async fn start(plan: &Plan) -> Result<Self, String> {
        let (left, right) = match &plan.other {
            Other::Etcd => (Etcd::start(None)?, Server::Etcd(Etcd::start(None)?)),
            Other::RaftKv(binary) => {
                // Both ask for the same certificates, so both see the same name in them.
                let cluster = RaftKv::start(binary, 1).await?;
                let mut etcd = Etcd::start(Some(cluster.member_files()))?;
                etcd.use_client_files(cluster.place.files.clone());
                (etcd, Server::RaftKv(Box::new(cluster)))
            }
        };
        let mut servers = [Server::Etcd(left), right];
        let (left, right) =
            tokio::join!(Side::connect(servers[0].place(), 0), Side::connect(servers[1].place(), 0));
        if let Some(fallen) = servers.iter_mut().find_map(Server::fallen) {
            return Err(fallen);
        }
        Ok(Self {
            servers,
            sides: [left?, right?],
            streams: Vec::new(),
            known: Known::default(),
            alarms: Alarms::default(),
            auth: false,
            dead: false,
            asked: Arc::clone(&plan.asked),
        })
    }

    /// What etcd has told so far.
    pub fn known(&self) -> Known {
        self.known
    }

    /// Does one step on both sides.
    pub async fn step(&mut self, step: &Step, falsify: bool, story: &mut Story) {
        let (began, before) = (Instant::now(), story.requests);
        let phase = match step {
            Step::Ask { user, ask } => {
                self.ask(user.as_deref(), ask, falsify, story).await;
                "requests"
            }
            Step::Open { user, requests } => {
                story.requests += requests.len();
                story.calls.entry("Watch").or_default().0 += requests.len();
                self.open_watches(user.as_deref(), requests, story).await;
                self.compare_streams(story);
                "watches"
            }
            Step::Collect => {
                rest(&self.streams, |one| self.is_settled(one)).await;
                self.compare_streams(story);
                self.streams.clear();
                "watches"
            }
        };
        *story.spent.entry(phase).or_default() += began.elapsed();
        self.asked.fetch_add(story.requests - before, Ordering::Relaxed);
        story.steps.push(step.clone());
    }

    async fn open_watches(&mut self, user: Option<&str>, requests: &[WatchRequest], story: &mut Story) {
        let requests = &self.without_overlooked(user, requests, story).await[..];
        let mut pair = self.open(user, requests).await;
        // etcd 3.4 does not tell a watch of its past now and then, on a busy machine mostly. A
        // difference that has a cause comes again every time.
        let mut tries = 0;
        while tries < TRIES && !self.is_settled(&pair) {
            tries += 1;
            pair = self.open(user, requests).await;
        }
        if tries > 0 && self.is_settled(&pair) {
            story.explain(LOST, format!("after {tries} more"), || format!("{requests:?}"));
        }
        self.streams.push(pair);
    }

    /// The requests without those watches without end that raft-kv refuses, and for which etcd itself
    /// refuses to read the same keys: etcd 3.4 takes them for watches of one key.
    async fn without_overlooked(
        &mut self,
        user: Option<&str>,
        requests: &[WatchRequest],
        story: &mut Story,
    ) -> Vec<WatchRequest> {
        let mut kept = Vec::new();
        for request in requests {
            if self.may_be_denied(user) && self.is_without_end_and_denied(user, request).await {
                story.explain(OPEN, "Watch".to_owned(), || format!("as {user:?}: {request:?}"));
            } else {
                kept.push(request.clone());
            }
        }
        kept
    }

    async fn is_without_end_and_denied(&mut self, user: Option<&str>, request: &WatchRequest) -> bool {
        let Some(RequestUnion::CreateRequest(create)) = &request.request_union else { return false };
        if create.range_end.as_ref() != b"\0" {
            return false;
        }
        let alone = Stream::open(&self.sides[1], user);
        alone.send(request.clone()).await;
        let refused = Line::Canceled { compact_revision: 0, reason: DENIED.to_owned() };
        let key = if create.key.is_empty() { "\0".into() } else { create.key.clone() };
        let range_end = create.range_end.clone();
        let same = RangeRequest { key, range_end, count_only: true, ..Default::default() };
        let read = self.sides[0].ask(&Ask::Range(same), user).await;
        alone.lines().0.values().flatten().any(|line| *line == refused) && fatal::is(&read, fatal::DENIED)
    }

    async fn open(&self, user: Option<&str>, requests: &[WatchRequest]) -> Opened {
        let one = [Opened {
            pair: (Stream::open(&self.sides[0], user), Stream::open(&self.sides[1], user)),
            user: user.map(str::to_owned),
            requests: requests.to_vec(),
            known: self.known,
        }];
        for request in requests {
            // What is cancelled before it has caught up is told any part of its past, and who is
            // behind tells no progress.
            if !matches!(request.request_union, Some(RequestUnion::CreateRequest(_))) {
                rest(&one, |one| self.is_settled(one)).await;
            }
            let (left, right) = &one[0].pair;
            tokio::join!(left.send(request.clone()), right.send(request.clone()));
        }
        rest(&one, |one| self.is_settled(one)).await;
        let [one] = one;
        one
    }

    /// A request that etcd must not be sent: raft-kv has to refuse it, as `expected`.
    async fn ask_ours(
        &mut self,
        name: &'static str,
        user: Option<&str>,
        ask: &Ask,
        mut expected: Vec<fatal::Refusal>,
        story: &mut Story,
    ) {
        if matches!(self.servers[1], Server::Etcd(_)) {
            return;
        }
        if self.may_be_denied(user) {
            expected.extend([fatal::DENIED, fatal::INVALID_TOKEN]);
        }
        story.requests += 1;
        let ours = self.sides[1].ask(ask, user).await;
        if expected.iter().any(|one| fatal::is(&ours, *one)) {
            let kind = format!("{}: {}", ask.name(), refused(&ours));
            return story.explain(name, kind, || format!("as {user:?}: {}", cut(&format!("{ask:?}"), 1500)));
        }
        let text = format!(
            "as {user:?}: {}\n    expected one of: {expected:?}\n    ours: {ours:?}",
            cut(&format!("{ask:?}"), 1500)
        );
        let kind = format!("{}: not refused so: {}", ask.name(), refused(&ours));
        story.differences.push(Difference { at: story.steps.len(), kind, text });
    }

    /// Whether `user` is one that may not do everything. Nobody is who the certificate says: root.
    fn may_be_denied(&self, user: Option<&str>) -> bool {
        self.auth && user.is_some_and(|user| user != "root")
    }

    /// Both answers to a request; the entry and the refusal where one side refused what must not be
    /// sent to the other one, since it would leave the two with different keys.
    async fn ask_both(
        &mut self,
        user: Option<&str>,
        ask: &Ask,
    ) -> Result<(Answer, Answer), (&'static str, String)> {
        let (denied, no_space) = (self.may_be_denied(user), self.alarms.no_space);
        let [left, right] = &mut self.sides;
        let Ask::Txn(txn) = ask else { return Ok(tokio::join!(left.ask(ask, user), right.ask(ask, user))) };
        let (hides, twice, nested) = (denied && hides_keys(txn), changes_twice(txn), puts_only_nested(txn));
        if denied && names_no_key(txn) {
            let etcd = left.ask(ask, user).await;
            if fatal::is(&etcd, fatal::DENIED) {
                return Err((NO_KEY, format!("Txn: etcd [{}]", refused(&etcd))));
            }
            return Ok((etcd, right.ask(ask, user).await));
        }
        if !(hides || twice || no_space && nested) {
            return Ok(tokio::join!(left.ask(ask, user), right.ask(ask, user)));
        }
        let ours = right.ask(ask, user).await;
        let overlooked =
            twice && fatal::is(&ours, fatal::DUPLICATE) || hides && fatal::is(&ours, fatal::DENIED);
        if overlooked {
            return Err((NESTED, refused(&ours)));
        }
        if no_space && nested && fatal::is(&ours, fatal::NO_SPACE) {
            return Err((SPACE, refused(&ours)));
        }
        Ok((left.ask(ask, user).await, ours))
    }

    async fn ask(&mut self, user: Option<&str>, ask: &Ask, falsify: bool, story: &mut Story) {
        if let Some(expected) = fatal(ask) {
            return self.ask_ours(FATAL, user, ask, expected, story).await;
        }
        if let Some(expected) = fatal::too_large(ask) {
            return self.ask_ours(LARGE, user, ask, expected, story).await;
        }
        // Each of the two sees a part of these that the other does not see.
        if let Ask::Txn(txn) = ask
            && self.may_be_denied(user)
            && names_no_key(txn)
            && (hides_keys(txn) || changes_twice(txn))
        {
            return;
        }
        // etcd 3.4 asks nobody's name for these; who stands for a stale token would not be known.
        let user = if self.auth && unguarded(ask) { Some("root") } else { user };
        let (etcd, mut ours) = match self.ask_both(user, ask).await {
            Ok(both) => both,
            Err((name, kind)) => {
                story.requests += 1;
                return story.explain(name, kind, || cut(&format!("as {user:?}: {ask:?}"), 1500));
            }
        };
        if falsify {
            ours = falsified(ours);
        }
        let calls = story.calls.entry(ask.name()).or_default();
        calls.0 += 1;
        calls.1 += usize::from(matches!(etcd, Answer::Refused { .. }));
        story.requests += 1;
        if let Answer::Refused { text, .. } = &etcd {
            *story.refusals.entry(cut(text, 70)).or_default() += 1;
        }
        if !etcd.came() || !ours.came() {
            let asked = cut(&format!("{ask:?}"), 3000);
            let text = format!("as {user:?}: {asked}\n    etcd: {etcd:?}\n    ours: {ours:?}");
            let kind = format!("{}: a server ended or hung", ask.name());
            story.differences.push(Difference { at: story.steps.len(), kind, text });
            self.dead = true;
            return;
        }
        self.learn(ask, &etcd);
        self.auth |= matches!((ask, &etcd), (Ask::AuthEnable(_), Answer::AuthEnable(_)));
        self.judge(user, ask, &etcd, &ours, story);
    }

    fn judge(&self, user: Option<&str>, ask: &Ask, etcd: &Answer, ours: &Answer, story: &mut Story) {
        let Some(shown) = difference(etcd, ours) else { return };
        let case = Case { ask: Some(ask), user, answers: Some((etcd, ours)), ..self.case() };
        let kind = format!("{}: {}", ask.name(), shape(etcd, ours, &shown));
        let asked = cut(&format!("{ask:?}"), 1500);
        let text = format!("as {user:?} (compacted {}): {asked}\n{shown}", self.known.compacted);
        match explain(&case) {
            Some(name) => story.explain(name, kind, || text),
            None => story.differences.push(Difference { at: story.steps.len(), kind, text }),
        }
    }

    fn case(&self) -> Case<'_> {
        Case {
            ask: None,
            user: None,
            auth: self.auth,
            revision: self.known.revision.max(1),
            compacted: self.known.compacted,
            alarms: self.alarms,
            requests: &[],
            answers: None,
            lines: None,
        }
    }

    fn learn(&mut self, ask: &Ask, etcd: &Answer) {
        if let (Ask::Compact(sent), Answer::Compact(_)) = (ask, etcd) {
            self.known.compacted = sent.revision;
        }
        if let (Ask::Alarm(sent), Answer::Alarm(got)) = (ask, etcd) {
            for alarm in got.alarms.iter().filter(|_| sent.action != 0) {
                match alarm.alarm {
                    1 => self.alarms.no_space = sent.action == 1,
                    _ => self.alarms.corrupt = sent.action == 1,
                }
            }
        }
        let mut copy = etcd.clone();
        if let Some(header) = header_of(&mut copy) {
            self.known.revision = self.known.revision.max(header.revision);
        }
    }

    fn judge_streams(&self, one: &Opened) -> Judged {
        let (left, right) = &one.pair;
        let ((etcd, etcd_end), (ours, our_end)) = (left.lines(), right.lines());
        // How a stream ended, and a revision in pieces, is never explained.
        let bare = difference(&etcd_end, &our_end);
        if let Some(shown) = bare.or_else(|| right.split().filter(|_| left.split().is_none())) {
            return Judged::Different(shown);
        }
        let Some(shown) = watch_difference(&etcd, &ours) else { return Judged::Same };
        let case = Case {
            user: one.user.as_deref(),
            revision: one.known.revision.max(1),
            compacted: one.known.compacted,
            requests: &one.requests,
            lines: Some((&etcd, &ours)),
            ..self.case()
        };
        match explain(&case) {
            Some(name) => Judged::Explained(name, shown),
            None => Judged::Different(shown),
        }
    }

    /// Whether there is nothing more to wait for.
    fn is_settled(&self, one: &Opened) -> bool {
        !matches!(self.judge_streams(one), Judged::Different(_))
    }

    fn compare_streams(&self, story: &mut Story) {
        for one in &self.streams {
            let text = |shown: &str| {
                let asked = cut(&format!("{:?}", one.requests), 6000);
                format!("as {:?} (opened at compacted {}) {asked}\n{shown}", one.user, one.known.compacted)
            };
            let kind = |shown: &str| format!("Watch: {}", cut(&letters(shown), 90));
            match self.judge_streams(one) {
                Judged::Same => {}
                Judged::Explained(name, shown) => story.explain(name, kind(&shown), || text(&shown)),
                Judged::Different(shown) => {
                    let (kind, text) = (kind(&shown), text(&shown));
                    story.differences.push(Difference { at: story.steps.len(), kind, text });
                }
            }
        }
    }

    /// Why it makes no sense to go on, if it doesn't.
    pub async fn broken(&mut self, story: &Story) -> Option<String> {
        let [left, right] = &mut self.sides;
        let (etcd, ours) = tokio::join!(left.lives(), right.lives());
        if !etcd || !ours || self.dead {
            let log = self.servers[usize::from(etcd)].log();
            let tail: Vec<&str> = log.lines().rev().take(25).collect();
            let tail: Vec<&str> = tail.into_iter().rev().collect();
            return Some(format!("etcd lives: {etcd}, the other lives: {ours}\n{}", tail.join("\n")));
        }
        (story.differences.len() >= MOST_DIFFERENCES).then(|| "too many differences".to_owned())
    }
}

/// A wrong answer in place of a right one.
fn falsified(mut answer: Answer) -> Answer {
    match &mut answer {
        Answer::Range(range) => range.count += 1,
        Answer::Refused { text, .. } => text.push('.'),
        other => match header_of(other) {
            Some(header) => header.revision += 1,
            None => return Answer::Refused { code: 2, text: "falsified".to_owned() },
        },
    }
    answer
}
