//! `lease`: grant, revoke, keep alive, look at, list.

use std::time::Duration;

use raft_kv::client::Handle;
use raft_kv::error::Refusal;
use raft_kv::types::{LeaseId, LeaseStatus};
use serde_json::{Value, json};

use crate::args::{LeaseArgs, LeaseCommand};
use crate::bytes_arg::escape;
use crate::connect::connect;
use crate::failure::{Failure, Kind};
use crate::output::{Output, lease_json, lease_status_json, lease_text, table};

/// `raft-kv lease`.
pub async fn run(args: &LeaseArgs, output: &mut Output) -> Result<(), Failure> {
    let handle = connect(&args.connect).await?;
    match args.command {
        LeaseCommand::Grant { ttl, id } => {
            let (header, id, ttl) = handle.lease_grant(id, ttl).await?;
            output.answer(
                || json!({ "id": lease_json(id), "ttl": ttl, "revision": header.revision }),
                || format!("lease {} for {ttl} s", lease_text(id)),
            )
        }
        LeaseCommand::Revoke { id } => {
            let header = handle.lease_revoke(id).await?;
            output.answer(
                || json!({ "id": lease_json(id), "revision": header.revision }),
                || format!("lease {} revoked", lease_text(id)),
            )
        }
        LeaseCommand::KeepAlive { id, once } => keep_alive(&handle, id, once, output).await,
        LeaseCommand::Ttl { id, keys } => {
            let (_, status) = handle.lease_time_to_live(id, keys).await?;
            let status = existing(status, id)?;
            output.answer(|| lease_status_json(&status, keys), || status_text(&status))
        }
        LeaseCommand::Ls => {
            let (header, leases) = handle.leases().await?;
            output.answer(
                || {
                    let list: Value = leases
                        .iter()
                        .map(|(id, ttl)| json!({ "id": lease_json(*id), "granted_ttl": ttl }))
                        .collect();
                    json!({ "leases": list, "revision": header.revision })
                },
                || {
                    let mut rows = vec![["LEASE", "GRANTED"].map(str::to_owned)];
                    rows.extend(leases.iter().map(|(id, ttl)| [lease_text(*id), format!("{ttl} s")]));
                    table(&rows)
                },
            )
        }
    }
}

/// Renews the lease each third of its time, for ever or once. A renewal that was not done is
/// tried again while the lease may still live.
async fn keep_alive(handle: &Handle, id: LeaseId, once: bool, output: &mut Output) -> Result<(), Failure> {
    let mut granted = 0;
    let mut missed = 0;
    loop {
        let renewed = match handle.lease_keep_alive(id).await {
            Ok((_, status)) => Ok(existing(status, id)?),
            Err(error) => Err(Failure::from(error)),
        };
        match renewed {
            Ok(status) => {
                granted = status.granted_ttl.max(status.ttl);
                missed = 0;
                output.answer(|| lease_status_json(&status, false), || status_text(&status))?;
                if once {
                    return Ok(());
                }
            }
            Err(failure) => {
                missed += 1;
                let may_live =
                    matches!(failure.kind, Kind::NotDone | Kind::Unknown) && granted > 0 && missed < 3;
                if once || !may_live {
                    return Err(failure);
                }
                tracing::warn!("lease {} was not renewed, trying again: {failure}", lease_text(id));
            }
        }
        tokio::time::sleep(renewal_pause(granted)).await;
    }
}

/// A third of the granted time, half a second at least.
fn renewal_pause(granted_ttl: i64) -> Duration {
    let seconds = u64::try_from(granted_ttl).unwrap_or(0);
    Duration::from_millis(seconds.saturating_mul(1000) / 3).max(Duration::from_millis(500))
}

fn existing(status: LeaseStatus, id: LeaseId) -> Result<LeaseStatus, Failure> {
    if status.ttl < 0 { Err(Refusal::LeaseNotFound { id }.into()) } else { Ok(status) }
}

fn status_text(status: &LeaseStatus) -> String {
    let mut text =
        format!("lease {}: {} s left of {} s\n", lease_text(status.id), status.ttl, status.granted_ttl);
    for key in &status.keys {
        text.push_str(&format!("  {}\n", escape(key)));
    }
    text
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn a_lease_is_renewed_at_a_third_of_its_time() {
        for (ttl, millis) in [(-1, 500), (0, 500), (2, 666), (60, 20_000), (i64::MAX, u64::MAX / 3)] {
            assert_eq!(renewal_pause(ttl), Duration::from_millis(millis));
        }
    }

    #[test]
    fn a_lease_that_is_gone_is_not_found() {
        let status = LeaseStatus { id: 31, ttl: -1, granted_ttl: 0, keys: vec![] };
        assert_eq!(existing(status, 31).unwrap_err().kind, Kind::NotFound);
        let status = LeaseStatus { id: 31, ttl: 1, granted_ttl: 5, keys: vec![Bytes::from_static(b"\x01")] };
        assert_eq!(status_text(&existing(status, 31).unwrap()), "lease 1f: 1 s left of 5 s\n  \\x01\n");
    }
}
