//! `quota`: what the live keys and values take, and what they may.

use raft_kv::types::Usage;
use serde_json::{Value, json};

use crate::args::{QuotaArgs, QuotaCommand};
use crate::cli::cluster::usage_text;
use crate::connect::connect;
use crate::failure::Failure;
use crate::output::Output;

/// `raft-kv quota`.
pub async fn run(args: &QuotaArgs, output: &mut Output) -> Result<(), Failure> {
    let handle = connect(&args.connect).await?;
    let (header, usage) = match &args.command {
        QuotaCommand::Show => handle.quota().await?,
        QuotaCommand::Set { quota } => handle.quota_set(quota.0).await?,
    };
    output.answer(|| usage_json(&usage, header.revision), || usage_text(&usage))
}

fn usage_json(usage: &Usage, revision: i64) -> Value {
    json!({
        "live_bytes": usage.bytes,
        "live_keys": usage.keys,
        "quota": usage.quota,
        "revision": revision,
    })
}
