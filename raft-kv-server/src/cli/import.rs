//! `import`: what a running etcd holds at one revision, copied, compared and done. It must never
//! say that it is done without a full comparison.

use crate::args::MoveArgs;
use crate::failure::Failure;
use crate::moving::Moving;
use crate::output::Output;

/// `raft-kv import`.
pub async fn run(args: &MoveArgs, output: &mut Output) -> Result<(), Failure> {
    let mut moving = Moving::begin(args, output).await?;
    loop {
        let revision = moving.copy().await?;
        moving.leases.level().await?;
        if let Some(verified) = moving.verify(revision).await? {
            return moving.finish(revision, &verified, output).await;
        }
        moving.progress.say("verify", "the source has compacted the copied revision, again at a newer one");
    }
}
