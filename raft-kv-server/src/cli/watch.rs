//! `watch`: one line for each event, flushed as it comes. It never skips an event: where it can't
//! go on it says from which revision to resume.

use raft_kv::client::Watch;
use raft_kv::error::{Error, Refusal};
use raft_kv::types::{Revision, WatchBatch, WatchRequest};
use serde_json::json;

use crate::args::WatchCommand;
use crate::cli::kv::key_range;
use crate::connect::connect;
use crate::failure::{Failure, Kind};
use crate::output::{Output, event_json, event_text};

/// `raft-kv watch`.
pub async fn run(args: &WatchCommand, output: &mut Output) -> Result<(), Failure> {
    let request = WatchRequest {
        range: key_range(&args.range, args.form)?,
        start_revision: args.from_revision,
        prev_kv: args.prev_kv,
        ..WatchRequest::default()
    };
    let mut watch = connect(&args.connect).await?.watch(request).await?;
    follow(&mut watch, args.from_revision, args.events, output).await
}

async fn follow(
    watch: &mut Watch,
    start: Revision,
    events: Option<u64>,
    output: &mut Output,
) -> Result<(), Failure> {
    let mut left = events.unwrap_or(u64::MAX);
    let mut resume = start;
    loop {
        let batch = watch.next().await.map_err(|error| resumable(error, resume))?;
        match batch {
            Some(WatchBatch::Changes(changes)) => {
                for change in changes {
                    for event in &change.events {
                        output.answer(
                            || event_json(change.revision, event),
                            || event_text(change.revision, event),
                        )?;
                        left -= 1;
                        if left == 0 {
                            return Ok(());
                        }
                    }
                    resume = change.revision + 1;
                }
            }
            Some(WatchBatch::Progress(revision)) => resume = resume.max(revision + 1),
            Some(WatchBatch::Compacted(revision)) => {
                output.answer(|| json!({ "type": "compacted", "revision": revision }), String::new)?;
                return Err(Refusal::Compacted { requested: resume, compacted: revision }.into());
            }
            None => return Err(Failure::new(Kind::NotDone, format!("the watch has ended{}", hint(resume)))),
        }
    }
}

/// `error`, with the revision to go on from.
fn resumable(error: Error, resume: Revision) -> Failure {
    let mut failure = Failure::from(error);
    failure.message.push_str(&hint(resume));
    failure
}

fn hint(resume: Revision) -> String {
    if resume > 0 { format!("; go on with --from-revision {resume}") } else { String::new() }
}
