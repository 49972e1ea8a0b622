//! A lost quorum: one member that is left goes on alone, as a new epoch of the cluster.
//!
//! It works on the data directory of a member that does not run. The new epoch's directory is built beside the
//! old one's content, whole and durable; one rename decides; then the two change places and the old content is
//! kept aside. The member gets a new raft id, so no id is in both epochs: no frame, vote or acknowledgement
//! of one can be taken for the other's. It must never change the old content before that rename, and never
//! leave a directory in which a member could run that is neither the old nor the new one.

pub(super) mod place;
mod report;
#[cfg(all(test, feature = "sim"))]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use super::config::{DataDir, Remembered, StartError, remember_in};
use super::local::random;
use super::node::{hosts_of, log_files, log_options, state_options};
use super::trust::authority::{Hand, Wanted, record_of, roots_of};
use super::trust::signer::Signer;
use super::trust::vault::{KEYRING_FILE, Vault};
use crate::error::{Error, Refusal, StorageFailed};
use crate::limits::{MAX_RAISED_REVISION, RECOVERY_READ_BYTES, RECOVERY_TERMS};
use crate::machine::{self, Machine, NewEpoch, Store};
use crate::net::write_private;
use crate::pki::{Credentials, NodeKey, Subject};
use crate::storage::checkpoint;
use crate::storage::files::FolderFiles;
use crate::storage::log::{self, Log, Looked};
use crate::storage::state::State;
use crate::types::{
    ConfChange, ConfState, HardState, Member, MemberRecord, MemberRole, NodeId, Payload, Revision, Role,
    SnapshotMeta,
};
pub(super) use place::is_unfinished;
pub use report::{RecoverOptions, RecoverStatus, Recovery};

/// Says what [`recover`] would do. Changes nothing.
///
/// # Errors
/// [`StartError`]: the directory holds no member, is in use, locked or damaged.
pub fn survey_recovery(data_dir: &Path, options: &RecoverOptions) -> Result<RecoverStatus, StartError> {
    let dir = DataDir::take_to_recover(data_dir)?;
    if let Some(unfinished) = place::unfinished(&dir)? {
        return Ok(RecoverStatus::Unfinished(unfinished));
    }
    let seen = checkpoint::look(&dir.join("state"), see)?;
    let found = Found::look(&dir, seen, options)?;
    Ok(match found.alone {
        true => RecoverStatus::Alone(found.recovery),
        false => RecoverStatus::Possible(found.recovery),
    })
}

/// Makes a new epoch of the cluster with the member in `data_dir` alone, or completes one that was cut
/// short. The members that it had are refused from then on; clients and workers are not.
///
/// # Errors
/// [`StartError`]: as for [`survey_recovery`], or no certificate can be made: the signing key is kept outside, or sealed
/// with a data key that this member does not have. The directory is as it was, or the same call completes
/// what was begun.
pub async fn recover(data_dir: &Path, options: &RecoverOptions) -> Result<RecoverStatus, StartError> {
    recover_in_steps(data_dir, options, &mut |_| Ok(())).await
}

/// What is told each time that a step is done, for tests that end there.
type Told<'a> = dyn FnMut(&str) -> Result<(), StartError> + Send + 'a;

async fn recover_in_steps(
    data_dir: &Path,
    options: &RecoverOptions,
    step: &mut Told<'_>,
) -> Result<RecoverStatus, StartError> {
    let dir = DataDir::take_to_recover(data_dir)?;
    if let Some(unfinished) = place::unfinished(&dir)? {
        place::finish(&dir, &unfinished, step)?;
        return Ok(RecoverStatus::Done(unfinished));
    }
    if options.revisions < 1 {
        return Err(Refusal::invalid("revisions", "the revision must go up: at least by 1").into());
    }
    // Held open from here on: a member in this process may have it for a little after it let go of the directory.
    let path = dir.join("state");
    let state = match path.exists() {
        true => Some(State::open(&path, state_options(&options.tuning))?),
        false => None,
    };
    let found = Found::look(&dir, state.as_ref().map(|state| state.view(see)), options)?;
    let Some(state) = state.filter(|_| !found.alone) else {
        return Ok(RecoverStatus::Alone(found.recovery));
    };
    let recovery = build(&dir, found, state, options, step).await?;
    place::decide(&dir, &recovery)?;
    step("decided")?;
    place::finish(&dir, &recovery, step)?;
    Ok(RecoverStatus::Done(recovery))
}

/// What is looked for in a state: the last entry in it, members, revision, epoch.
type Seen = Result<Option<(SnapshotMeta, Vec<Member>, Revision, u64)>, StorageFailed>;

fn see(view: &dyn machine::Read) -> Seen {
    if !machine::read::holds_known(view)? {
        return Ok(None);
    }
    let (state, members) = (machine::read::applied(view)?, machine::read::members(view)?);
    Ok(Some((state, members, machine::read::current_revision(view)?, machine::read::epoch(view)?)))
}

/// A member that does not run, looked at and not touched.
struct Found {
    remembered: Remembered,
    vault: Vault,
    log: Looked<FolderFiles>,
    /// Whether it is a quorum by itself, with all that its log has.
    alone: bool,
    recovery: Recovery,
}

impl Found {
    fn look(dir: &DataDir, seen: Option<Seen>, options: &RecoverOptions) -> Result<Self, StartError> {
        let remembered = dir.recall()?;
        let vault = Vault::open(dir.path(), options.unlock.as_ref())?;
        let wrong =
            |why: &str| StartError::DataDir { dir: dir.path().display().to_string(), why: why.into() };
        let Some((state, members, revision, epoch)) = seen.transpose()?.flatten() else {
            return Err(wrong(
                "this member never had a state, there is nothing to go on with; recover another one, or restore a \
                 backup",
            ));
        };
        let log = look_at_log(dir, &remembered, &state, options)?;
        let (conf, members) = follow(&log, &state, members)?;
        let quorum = conf.voters == [remembered.node] && conf.voters_outgoing.is_empty();
        let alone = quorum && !options.without_log;
        let (own, others): (Vec<_>, Vec<_>) =
            members.into_iter().partition(|member| member.record.id == remembered.node);
        let recovery = Recovery {
            cluster: remembered.cluster,
            name: remembered.name.clone(),
            addr: remembered.advertise_addr.clone(),
            old_id: remembered.node,
            new_id: NodeId(0),
            role: own.first().map(|member| member.role),
            epoch,
            others,
            without_log: options.without_log,
            last: (log.last.term, log.last.index),
            committed: log.hard.commit,
            applied: state.index,
            revision,
            kept_revision: 0,
            new_revision: 0,
            set_aside: String::new(),
        };
        Ok(Self { remembered, vault, log, alone, recovery })
    }
}

/// The log, or what takes its place where it is damaged and is to be given up.
fn look_at_log(
    dir: &DataDir,
    remembered: &Remembered,
    state: &SnapshotMeta,
    options: &RecoverOptions,
) -> Result<Looked<FolderFiles>, StartError> {
    const NEXT: &str = "recover another member, or restore a backup; where there is neither, --without-log goes on \
                        with the state alone";
    let path = dir.join("log");
    let file = path.display().to_string();
    let identity = log::Identity { cluster: remembered.cluster, node: remembered.node };
    let looked = match path.exists() {
        true => Log::look(log_files(dir.path())?, log_options(&options.tuning), identity, state),
        false => Err(StorageFailed::damaged(file.clone(), "it is missing")),
    };
    let why = "it ends before what this member acknowledged: the disk has lost entries that may be committed";
    let whole = looked.and_then(|log| match log.behind {
        true => Err(StorageFailed::damaged(file.clone(), why)),
        false => Ok(log),
    });
    match whole {
        Ok(_) if options.without_log => {
            let why = "the log is whole, and giving it up would lose what only it has; leave this out";
            Err(Refusal::invalid("without-log", why).into())
        }
        Err(_) if options.without_log => Ok(Looked::given_up(state)),
        whole => Ok(whole.map_err(|failed| StorageFailed { next: NEXT.into(), ..failed })?),
    }
}

/// The configuration with every entry of the log, and the members it names. A record that was only changed
/// by an entry is shown as it was before.
fn follow(
    log: &Looked<FolderFiles>,
    state: &SnapshotMeta,
    members: Vec<Member>,
) -> Result<(ConfState, Vec<Member>), StorageFailed> {
    let mut records: BTreeMap<NodeId, MemberRecord> =
        members.into_iter().map(|member| (member.record.id, member.record)).collect();
    let (mut conf, mut next) = (state.conf.clone(), state.index + 1);
    loop {
        let entries = log.entries(next, RECOVERY_READ_BYTES)?;
        let Some(last) = entries.last() else { break };
        next = last.index + 1;
        for entry in &entries {
            let payload = crate::raft::committed(entry, &mut conf).map_err(unreadable)?.payload;
            if let Payload::Config { change: ConfChange::AddLearner(record), .. } = payload {
                records.insert(record.id, record);
            }
        }
    }
    let role = |id: NodeId| match conf.voters.contains(&id) || conf.voters_outgoing.contains(&id) {
        true => Some(MemberRole::Voter),
        false => conf.learners.contains(&id).then_some(MemberRole::Learner),
    };
    let named = records.into_values().filter_map(|record| Some(Member { role: role(record.id)?, record }));
    let named = named.collect();
    Ok((conf, named))
}

fn unreadable(error: crate::codec::Malformed) -> StorageFailed {
    StorageFailed::damaged("raft log", error.to_string())
}

/// Makes the new epoch's directory beside the old content.
async fn build(
    dir: &DataDir,
    found: Found,
    old: State,
    options: &RecoverOptions,
    step: &mut Told<'_>,
) -> Result<Recovery, StartError> {
    let fresh = place::begin(dir)?;
    step("begun")?;
    let at = fresh.join("state");
    old.copy_to(&at)?;
    drop(old);
    step("copied")?;
    let state = State::open(&at, state_options(&options.tuning))?;
    let mut machine = Machine::open(state.clone())?.expect("the state was looked at");
    let sure = carry_out(&mut machine, &found.log)?;
    if state.view(machine::read::half_done)? {
        let why = "a rollback is half carried out here, and the log does not have the entry that ends it; recover \
                   another member, or restore a backup";
        return Err(StartError::DataDir { dir: dir.path().display().to_string(), why: why.into() });
    }
    step("carried out")?;
    let me = MemberRecord {
        id: NodeId(random()),
        name: found.remembered.name.clone(),
        addr: found.remembered.advertise_addr.clone(),
        client_url: found
            .remembered
            .client
            .as_ref()
            .map_or(String::new(), |(_, told)| format!("https://{told}")),
    };
    let (credentials, node) = certify(&found, &state, &me, options).await?;
    let kept = machine.revision();
    let revision = kept.checked_add(options.revisions).filter(|to| *to <= MAX_RAISED_REVISION);
    let revision = revision.ok_or_else(|| {
        Refusal::invalid("revisions", format!("the revision {kept} can't go up by that much"))
    })?;
    let term = found.log.hard.term.max(found.log.last.term).saturating_add(RECOVERY_TERMS);
    let epoch = NewEpoch { member: me.clone(), node, term, revision, sure };
    let boundary = machine.begin_epoch(&epoch)?;
    step("new epoch")?;
    drop((machine, state));
    write_member(dir, &fresh, &found, (&credentials, &me), boundary, options)?;
    step("written")?;
    Ok(Recovery {
        new_id: me.id,
        kept_revision: kept,
        new_revision: revision,
        set_aside: place::free_name(dir, found.recovery.epoch),
        ..found.recovery
    })
}

/// Carries out every entry that the log has, as if it were committed, and says at which revision the last one
/// is that surely was.
fn carry_out(machine: &mut Machine<State>, log: &Looked<FolderFiles>) -> Result<Revision, StorageFailed> {
    let mut sure = machine.revision();
    loop {
        let applied = machine.applied();
        let mut entries = log.entries(applied.index + 1, RECOVERY_READ_BYTES)?;
        if applied.index < log.hard.commit {
            entries.retain(|entry| entry.index <= log.hard.commit);
        }
        if entries.is_empty() {
            return Ok(sure);
        }
        let mut conf = applied.conf;
        let committed: Result<Vec<_>, _> =
            entries.iter().map(|entry| crate::raft::committed(entry, &mut conf)).collect();
        machine.apply(committed.map_err(unreadable)?)?;
        if machine.applied().index <= log.hard.commit {
            sure = machine.revision();
        }
    }
}

/// A certificate for the member under its new id.
async fn certify(
    found: &Found,
    state: &State,
    me: &MemberRecord,
    options: &RecoverOptions,
) -> Result<(Credentials, crate::types::NodeRecord), StartError> {
    let trusted = state.view(machine::read::trusted)?;
    let authority = trusted.issuing();
    let signer = options.external_signer.as_ref().map(Signer::new).transpose()?;
    if authority.key.is_none() && signer.is_none() {
        let why = "the cluster's signing key is kept outside; give what signs with --external-signer";
        return Err(Refusal::invalid("external signer", why).into());
    }
    let key = NodeKey::generate();
    let hosts = hosts_of(&me.addr, &me.client_url);
    let wanted = Wanted {
        node: me.id,
        role: Role::Manager,
        name: me.name.clone(),
        hosts: hosts.clone(),
        token: String::new(),
        renewal: false,
    };
    let cluster = found.remembered.cluster;
    let subject = Subject { cluster, node: me.id, role: Role::Manager, name: String::new(), hosts };
    let keyring = found.vault.keyring();
    let hand = Hand { keyring: &keyring, external: signer.as_ref(), validity: options.tuning.leaf_validity };
    let signed = hand.sign(authority, &subject, &key.public(), &key.request()).await;
    let chain = signed.map_err(|error| match error {
        Error::Refused(refusal) => refusal,
        other => Refusal::BadCertificate { why: other.to_string() },
    })?;
    let node = record_of(&chain[0], &key.public(), &wanted, authority.digest)?;
    let credentials = Credentials {
        chain: chain.iter().map(|cert| cert.to_vec()).collect(),
        key: key.der().to_vec(),
        roots: roots_of(&trusted).iter().map(|root| root.to_vec()).collect(),
        ..Credentials::default()
    };
    credentials.check()?;
    Ok((credentials, node))
}

/// Writes what a member has besides its state, last of all who it is.
fn write_member(
    dir: &DataDir,
    fresh: &Path,
    found: &Found,
    (credentials, me): (&Credentials, &MemberRecord),
    boundary: SnapshotMeta,
    options: &RecoverOptions,
) -> Result<(), StartError> {
    let old = dir.join(KEYRING_FILE);
    let keyring = std::fs::read(&old)
        .map_err(|error| StorageFailed::io(old.display().to_string(), "reading it", &error))?;
    write_private(&fresh.join(KEYRING_FILE), &keyring)?;
    place::make_folder(&fresh.join("cert"))?;
    Vault::open(fresh, options.unlock.as_ref())?.save(credentials)?;
    let identity = log::Identity { cluster: found.remembered.cluster, node: me.id };
    let hard = HardState { term: boundary.term, vote: NodeId(0), commit: boundary.index };
    Log::create(log_files(fresh)?, log_options(&options.tuning), identity, boundary, hard)?;
    let members = vec![(me.id, me.addr.clone())];
    let remembered = Remembered { node: me.id, members, ..found.remembered.clone() };
    Ok(remember_in(fresh, &remembered)?)
}
