//! Sequences against pairs of fresh servers: each step goes to both at once, and what they say is
//! compared, every field. A sequence begins with empty servers, so revisions run in step and any
//! difference can be found again from the sequence alone.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use crate::ask::Step;
use crate::generate::Generator;
use crate::pair::Pair;

/// The name under which the document speaks of requests that end etcd.
pub const FATAL: &str = "etcd-ends";

/// The name under which the document speaks of an event that etcd did not send.
pub const LOST: &str = "etcd-lost-event";

/// The name under which the document speaks of a key changed twice that etcd overlooks.
pub const NESTED: &str = "nested-duplicate";

/// The name under which the document speaks of an alarm that etcd lets nested puts pass by.
pub const SPACE: &str = "nested-space";

/// The name under which the document speaks of watches without end that etcd takes for one key's.
pub const OPEN: &str = "watch-without-end";

/// The name under which the document speaks of values that etcd takes and raft-kv does not.
pub const LARGE: &str = "largest-value";

/// What stands on the other side of etcd.
#[derive(Clone, Debug)]
pub enum Other {
    /// Another etcd: proves the harness, and must show nothing.
    Etcd,
    /// raft-kv, by its binary.
    RaftKv(PathBuf),
}

/// What is run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The other side.
    pub other: Other,
    /// The other side's answer to this request (counted from 0) is falsified, to prove that the
    /// comparison sees it.
    pub planted: Option<usize>,
    /// Counts requests while they are done.
    pub asked: Arc<AtomicUsize>,
}

/// One difference.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The step's place in its sequence.
    pub at: usize,
    /// The call's name and the shape of what differs, to tell differences of one kind.
    pub kind: String,
    /// The request and both answers.
    pub text: String,
}

/// What one sequence gave.
#[derive(Debug, Default)]
pub struct Story {
    /// Every step that was done.
    pub steps: Vec<Step>,
    /// Requests among them, watches counted each.
    pub requests: usize,
    /// Requests by call, and how many of them were refused by etcd.
    pub calls: BTreeMap<&'static str, (usize, usize)>,
    /// etcd's refusals by their text.
    pub refusals: BTreeMap<String, usize>,
    /// Differences with a reason, by its name.
    pub explained: BTreeMap<&'static str, usize>,
    /// The same by their kinds, each with how often it was seen and its first.
    pub kinds: BTreeMap<(&'static str, String), (usize, String)>,
    /// What the time went into: starting, requests, watches.
    pub spent: BTreeMap<&'static str, Duration>,
    /// Those without.
    pub differences: Vec<Difference>,
}

impl Story {
    /// Counts a difference that has a reason.
    pub fn explain(&mut self, name: &'static str, kind: String, text: impl FnOnce() -> String) {
        *self.explained.entry(name).or_default() += 1;
        self.kinds.entry((name, kind)).or_insert_with(|| (0, text())).0 += 1;
    }
}

/// Runs the sequence of `seed` with `requests` steps on a fresh pair.
///
/// # Errors
/// A server does not start.
pub async fn sequence(plan: &Plan, seed: u64, auth: bool, requests: usize) -> Result<Story, String> {
    let began = Instant::now();
    let mut pair = match Pair::start(plan).await {
        Ok(pair) => pair,
        // Another process may have taken a port between its choice and its use.
        Err(_) => Pair::start(plan).await?,
    };
    let mut generator = Generator::new(seed, auth);
    let mut story = Story::default();
    story.spent.insert("starting", began.elapsed());
    let mut seen = 0;
    let mut last = None;
    while story.steps.len() < requests || last.is_none() {
        if story.steps.len() >= requests {
            let steps = last.insert(generator.last());
            for step in steps.iter() {
                pair.step(step, false, &mut story).await;
            }
            break;
        }
        let step = generator.next(pair.known());
        let falsify = plan.planted == Some(story.steps.len());
        pair.step(&step, falsify, &mut story).await;
        if story.differences.len() > seen {
            seen = story.differences.len();
            if let Some(why) = pair.broken(&story).await {
                if let Some(last) = story.differences.last_mut() {
                    last.text.push_str(&format!("\n    stopped: {why}"));
                }
                break;
            }
        }
    }
    Ok(story)
}

/// Does `steps` on a fresh pair.
///
/// # Errors
/// A server does not start.
pub async fn replay(other: &Other, steps: &[Step]) -> Result<Story, String> {
    let plan = Plan { other: other.clone(), planted: None, asked: Arc::default() };
    let mut pair = Pair::start(&plan).await?;
    let mut story = Story::default();
    for step in steps {
        pair.step(step, false, &mut story).await;
    }
    Ok(story)
}
