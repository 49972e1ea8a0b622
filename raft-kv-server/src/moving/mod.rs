//! Moving house: a foreign cluster's keys and leases into one of ours. What `import` does once and
//! `mirror` goes on doing.
//!
//! A record in our cluster, under [`MARKER`], says that a move is under way, from where, by whom,
//! and up to which revision of the source. Every write of the move asks that the record is as it
//! was left: a second run takes the move over, and nothing of the first one can land any more, not
//! even late. The record is gone when the move is done.
//!
//! Nothing here may write to the source.

pub mod copy;
pub mod leases;
pub mod progress;
pub mod reader;
pub mod target;
pub mod verify;

use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_api::etcdserverpb::RangeRequest;
use raft_kv::error::Error;
use raft_kv::types::Revision;
use raft_kv_server::foreign::{Foreign, Place, tls_config};
use serde_json::json;

use crate::args::MoveArgs;
use crate::connect::connect;
use crate::failure::{Failure, Kind};
use crate::output::Output;
use leases::Leases;
use progress::Progress;
use reader::{ReadError, Reader, Store, source_failure};
use target::Target;
use verify::{Verified, verify};

/// The key of the record. It sorts before everything that people name keys.
pub const MARKER: &[u8] = b"\0raft-kv/moving";
/// How long our own cluster may be without an answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(200);

/// Asks our cluster until it answers: for questions that are safe to repeat.
pub async fn patiently<T, Asked>(ask: impl Fn() -> Asked) -> Result<T, Error>
where
    Asked: Future<Output = Result<T, Error>>,
{
    let until = Instant::now() + PATIENCE;
    loop {
        match ask().await {
            Err(Error::NotDone(_) | Error::Unknown(_)) if Instant::now() < until => {
                tokio::time::sleep(PAUSE).await;
            }
            answered => return answered,
        }
    }
}

/// A move under way.
pub struct Moving {
    /// The cluster that is left.
    pub source: Foreign,
    /// Its id.
    pub source_cluster: u64,
    /// Ours.
    pub target: Target,
    /// The leases of both.
    pub leases: Arc<Leases>,
    /// What people see of it.
    pub progress: Progress,
    margin: Revision,
}

/// What was asked for before anything is written.
pub fn foreign(args: &MoveArgs) -> Result<Foreign, Failure> {
    let places: Vec<Place> = args
        .from
        .split(',')
        .map(str::trim)
        .filter(|place| !place.is_empty())
        .map(|place| Place::parse(place, args.from_cacert.is_some()).map_err(Failure::usage))
        .collect::<Result<_, _>>()?;
    if places.is_empty() {
        return Err(Failure::usage("--from is empty; give the endpoints of the etcd to leave"));
    }
    let identity = args.from_cert.as_deref().zip(args.from_key.as_deref());
    let tls = match &args.from_cacert {
        Some(cacert) => Some(tls_config(cacert, identity).map_err(Failure::usage)?),
        None if places.iter().any(Place::is_tls) => {
            return Err(Failure::usage(
                "an https endpoint needs --from-cacert, the root to check it against",
            ));
        }
        None => None,
    };
    let user = match args.from_user.as_deref().map(|given| given.split_once(':').ok_or(())) {
        None => None,
        Some(Ok((name, password))) => Some((name.to_owned(), password.to_owned())),
        Some(Err(())) => return Err(Failure::usage("--from-user takes NAME:PASSWORD")),
    };
    Ok(Foreign::new(places, tls, user))
}

/// The source's revision and cluster id now.
pub async fn head(source: &Foreign) -> Result<(Revision, u64), Failure> {
    let request = RangeRequest { key: "\0".into(), count_only: true, limit: 1, ..RangeRequest::default() };
    let answer = source.range(request).await.map_err(|status| source_failure(&status))?;
    let header = answer.header.unwrap_or_default();
    Ok((header.revision, header.cluster_id))
}

impl Moving {
    /// Reaches both clusters and takes the move over, or begins it.
    pub async fn begin(args: &MoveArgs, output: &Output) -> Result<Self, Failure> {
        let source = foreign(args)?;
        let handle = connect(&args.connect).await?;
        let (_, source_cluster) = head(&source).await?;
        let target = Target::begin(handle.clone(), source_cluster, args.overwrite).await?;
        let leases = Arc::new(Leases::new(source.clone(), handle));
        let progress = Progress::new(output.json());
        Ok(Self { source, source_cluster, target, leases, progress, margin: args.margin })
    }

    /// Makes ours what the source is at some revision from now on; answers which.
    pub async fn copy(&mut self) -> Result<Revision, Failure> {
        loop {
            let (revision, cluster) = head(&self.source).await?;
            if cluster != self.source_cluster {
                return Err(Failure::new(
                    Kind::Refused,
                    format!("the endpoints lead to two clusters, {:x} and {cluster:x}", self.source_cluster),
                ));
            }
            self.leases.copy_all(&mut self.progress).await?;
            match copy::copy(self, revision).await {
                Ok(()) => {
                    self.target.reach(revision).await?;
                    return Ok(revision);
                }
                Err(ReadError::Compacted) => {
                    self.progress.say(
                        "copy",
                        &format!("the source has compacted revision {revision}, again at a newer one"),
                    );
                }
                Err(ReadError::Failed(failure)) => return Err(failure),
            }
        }
    }

    /// Compares the source at `revision` with ours as it is now. `None`: the source has forgotten
    /// the revision.
    pub async fn verify(&mut self, revision: Revision) -> Result<Option<Verified>, Failure> {
        let now = self.target.revision().await?;
        let mut source = Reader::new(Store::Foreign(self.source.clone()), revision);
        let mut target = Reader::new(Store::Own(self.target.handle().clone()), now);
        let progress = &mut self.progress;
        let seen = |keys| progress.count("verify", keys, None);
        match verify(&mut source, &mut target, seen).await {
            Ok(verified) => {
                self.progress.done();
                Ok(Some(verified))
            }
            Err(ReadError::Compacted) => Ok(None),
            Err(ReadError::Failed(failure)) => Err(failure),
        }
    }

    /// Ends the move whose outcome is `verified` at the source's `revision`: raises ours above all
    /// that clients may have seen there, and takes the record away.
    pub async fn finish(
        mut self,
        revision: Revision,
        verified: &Verified,
        output: &mut Output,
    ) -> Result<(), Failure> {
        if !verified.is_same() {
            // The next run compares everything.
            let what = verified.first_difference.clone().unwrap_or_else(|| "the hashes".into());
            return Err(Failure::new(
                Kind::Refused,
                format!(
                    "the copies differ, first: {what} ({} keys, sha256 {} in the source; {} keys, sha256 {} here); \
                     run the same command again to compare all and put it right",
                    verified.source_keys, verified.source_hash, verified.target_keys, verified.target_hash
                ),
            ));
        }
        let (seen, _) = head(&self.source).await?;
        let least = seen.saturating_add(self.margin);
        let raised = patiently(|| self.target.handle().raise_revision(least)).await?.revision;
        self.target.end().await?;
        let leases = self.leases.stop();
        self.progress.done();
        output.answer(
            || {
                json!({
                    "verified": true,
                    "keys": verified.target_keys,
                    "leases": leases,
                    "sha256": verified.target_hash,
                    "source_cluster": format!("{:x}", self.source_cluster),
                    "source_revision": revision,
                    "revision": raised,
                })
            },
            || {
                format!(
                    "copied    {} keys and {leases} leases, as they were at the source's revision {revision}\n\
                     verified  sha256 {} on both sides\n\
                     revision  {raised}: whoever goes on from the source's revisions is told to list anew\n\
                     not copied: users, roles and permissions; nor the keys' own revisions and versions\n",
                    verified.target_keys, verified.target_hash
                )
            },
        )
    }
}
