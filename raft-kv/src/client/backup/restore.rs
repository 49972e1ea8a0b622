//! A backup becomes the data directory of a new cluster's first member, which others join afterwards.
//!
//! It is another cluster with another id: nothing of the old one can speak with it, but for clients and workers
//! whose certificates rest on a root that is kept. All of the backup is read and checked before anything of it
//! counts. The directory holds a member only once all of it is on the disk; until then its file `restoring`
//! says what was begun.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rand::RngCore;
use zeroize::Zeroizing;

use super::archive;
use super::changes::{RestoreTo, check_chain, check_follows, read_changes};
use super::container::Fault;
use super::contents::{BackupSummary, read_all};
use crate::client::api::BackupInfo;
use crate::client::config::{Config, DataDir, RESTORING_FILE, Remembered, StartError};
use crate::client::local::random;
use crate::client::node::{
    Door, checked, first_tokens, founding, hosts_of, log_files, log_options, save_credentials, state_options,
};
use crate::client::trust::Wanted;
use crate::client::trust::authority::{Hand, record_of, root_key};
use crate::client::trust::sealing::{TOKEN_KEY, UNLOCK_KEY};
use crate::client::trust::signer::Signer;
use crate::client::trust::vault::Vault;
use crate::error::{Refusal, StorageFailed};
use crate::limits::{RECOVERY_REVISIONS, TOKEN_KEY_BYTES};
use crate::machine::{self, Machine, Restore, Restored, Store, check_raise};
use crate::net::write_private;
use crate::pki::{BackupKey, Credentials, Keyring, NodeKey, Subject, UnlockKey, successor_name};
use crate::storage::check::{Harm, check_files};
use crate::storage::log::{self, Log};
use crate::storage::state::State;
use crate::types::{
    Authority, ClusterId, DataKey, DataKeyId, HandedKeys, HardState, MemberRecord, NodeId, Revision, Role,
    Sealing, Trusted,
};

/// How a backup is restored.
#[derive(Clone, Debug)]
pub struct RestorePlan {
    /// The key that the backup was made with, if with one.
    pub key: Option<BackupKey>,
    /// By how much the revision is raised above the backup's: more than the writes that the old cluster can
    /// have made since. At least 1.
    pub raise: Revision,
    /// Changes since the backup, in their order, as [`Handle::backup_since`](crate::client::Handle::backup_since)
    /// wrote them, with the same key.
    pub changes: Vec<PathBuf>,
    /// Up to where they are done again.
    pub to: RestoreTo,
    /// Nodes that were removed after the backup was made: they are refused.
    pub without: Vec<NodeId>,
}

impl Default for RestorePlan {
    fn default() -> Self {
        Self {
            key: None,
            raise: RECOVERY_REVISIONS,
            changes: Vec::new(),
            to: RestoreTo::End,
            without: Vec::new(),
        }
    }
}

/// What was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RestoredCluster {
    /// The backup.
    pub backup: BackupSummary,
    /// The new cluster's id.
    pub cluster: ClusterId,
    /// Its first member's id.
    pub node: NodeId,
    /// Where that member will be reached.
    pub addr: String,
    /// The revision of the old cluster that the keys are of.
    pub from: Revision,
    /// Its revision; nothing older can be read.
    pub revision: Revision,
    /// Whether the root is that of before: then clients and workers keep their certificates.
    pub kept_root: bool,
    /// Whether the member's disk is locked, with the cluster's unlock key.
    pub locked: bool,
}

/// Makes in `config.data_dir`, which must be empty or missing, the first member of a new cluster from the backup
/// in `file`, or in the folder of an archive, from which what the plan asks for is taken; [`Node::open`](crate::client::Node::open) then starts it. Nothing is sent to anybody.
///
/// Where the backup was encrypted the cluster's root and secrets are kept. Without that the cluster gets
/// another root ([`Config::own_root`] may bring one), everybody needs another certificate, and users have no
/// passwords until they are given one. Join tokens are new in either case.
///
/// # Errors
/// [`StartError`]: the backup is damaged, foreign, or made with another key; the directory is not empty; an
/// address is taken. No member is left behind then.
pub async fn restore(config: Config, file: &Path, plan: &RestorePlan) -> Result<RestoredCluster, StartError> {
    let lead = archive::lead(file, plan)?;
    let (file, plan) = lead.as_ref().map_or((file, plan), |(full, plan)| (full, plan));
    let addr = checked(&config)?;
    let door = Door::of(&config, &addr)?;
    let signer = config.external_signer.as_ref().map(Signer::new).transpose()?;
    let dir = DataDir::take(&config.data_dir, true)?;
    dir.expect_vacant()?;
    let begun = format!("a restore of {} was begun here\n", file.display());
    write_private(&dir.join(RESTORING_FILE), begun.as_bytes())?;
    let place = (addr, &door);
    let made = make(&dir, &config, place, (file, plan), signer.as_ref()).await;
    if made.is_err() {
        dir.clear()?;
    }
    made
}

/// What the copy says of trust.
struct Before {
    cluster: ClusterId,
    revision: Revision,
    trusted: Trusted,
    sealing: Sealing,
    predecessors: Vec<ClusterId>,
}

/// What the new cluster's secrets rest on.
struct After {
    keys: HandedKeys,
    keyring: Keyring,
    authority: Authority,
    roots: Vec<Vec<u8>>,
    fresh: Option<(Authority, DataKeyId)>,
    predecessors: Vec<ClusterId>,
}

async fn make(
    dir: &DataDir,
    config: &Config,
    (addr, door): (String, &Door),
    (file, plan): (&Path, &RestorePlan),
    signer: Option<&Signer>,
) -> Result<RestoredCluster, StartError> {
    let (backup, keys, state) = unpacked(dir, config, file, plan.key.as_ref()).await?;
    let state = redone(state, (file, &backup.info), plan).await?;
    let before = look(&state)?;
    check_raise(before.revision, plan.raise)?;
    let (cluster, node) = (ClusterId(random()), NodeId(random()));
    let after = after(config, cluster, before, keys)?;
    let mut hosts = hosts_of(&addr, &door.url());
    hosts.extend(after.predecessors.iter().copied().map(successor_name));
    let key = NodeKey::generate();
    let subject = Subject { cluster, node, role: Role::Manager, name: String::new(), hosts };
    let hand = Hand { keyring: &after.keyring, external: signer, validity: config.tuning.leaf_validity };
    let chain = hand.sign(&after.authority, &subject, &key.public(), &key.request()).await?;
    let wanted = Wanted {
        node,
        role: Role::Manager,
        name: config.name.clone(),
        hosts: Vec::new(),
        token: String::new(),
        renewal: false,
    };
    let record = record_of(&chain[0], &key.public(), &wanted, after.authority.digest)?;
    let member =
        MemberRecord { id: node, name: config.name.clone(), addr: addr.clone(), client_url: door.url() };
    let mut token_key = Zeroizing::new([0; TOKEN_KEY_BYTES]);
    rand::rng().fill_bytes(token_key.as_mut());
    let restore = Restore {
        cluster,
        member,
        node: record,
        tokens: first_tokens(&after.keyring),
        token_key: after.keyring.seal(TOKEN_KEY, token_key.as_ref()),
        fresh: after.fresh.clone(),
        without: plan.without.clone(),
        raise: plan.raise,
    };
    let Restored { applied, revision, before: from, .. } = Machine::restore(&state, &restore)??;
    drop(state);
    let hard = HardState { term: applied.term, vote: NodeId(0), commit: applied.index };
    let identity = log::Identity { cluster, node };
    Log::create(log_files(dir.path())?, log_options(&config.tuning), identity, applied, hard)?;
    let chain = chain.iter().map(|cert| cert.to_vec()).collect();
    let credentials =
        Credentials { chain, key: key.der().to_vec(), roots: after.roots, ..Credentials::default() };
    let locked = after.keys.unlock.is_some();
    let vault = Vault::create(dir.path(), after.keys, &credentials.key)?;
    save_credentials(dir, &vault, &credentials)?;
    dir.remember(&Remembered {
        cluster,
        node,
        name: config.name.clone(),
        listen_addr: config.listen_addr,
        advertise_addr: addr.clone(),
        client: door.place.clone(),
        members: vec![(node, addr.clone())],
    })?;
    let kept_root = after.fresh.is_none();
    Ok(RestoredCluster { backup, cluster, node, addr, from, revision, kept_root, locked })
}

/// The state in the backup, in its place in the directory, every byte of it read.
async fn unpacked(
    dir: &DataDir,
    config: &Config,
    file: &Path,
    key: Option<&BackupKey>,
) -> Result<(BackupSummary, Option<HandedKeys>, State), StartError> {
    let (root, from, key) = (dir.join("state"), file.to_owned(), key.cloned());
    let tuning = config.tuning.clone();
    let unpack = move || {
        let folder = State::empty_generation(&root)?;
        let place = |name: &str, _: u64, content: &mut dyn Read| write(&folder.join(name), content);
        let (summary, keys) = read_all(&from, key.as_ref(), place)?;
        let state = State::open(&root, state_options(&tuning))?;
        // A member whose disk had rotted has copied that too.
        let rotten = check_files(&state.tables()?.1, &mut |_| true).unwrap_or_default();
        let all = state.view(|view| -> Result<(), StorageFailed> {
            if let Some(problem) = rotten.iter().find(|problem| problem.harm == Harm::Damage) {
                return Err(StorageFailed::damaged(&problem.file, &problem.what));
            }
            let (applied, revision) = (machine::read::applied(view)?, machine::read::current_revision(view)?);
            let info = &summary.info;
            match (applied.index, applied.term, revision) == (info.index, info.term, info.revision) {
                true => Ok(()),
                false => Err(StorageFailed::damaged("state", "it is not what the backup's head says")),
            }
        });
        all.map_err(|failed| {
            let why = format!("the state in it can't be read: {failed}");
            Fault::Damaged { offset: 0, why }.about(&from.display().to_string())
        })?;
        Ok((summary, keys, state))
    };
    tokio::task::spawn_blocking(unpack).await.expect("unpacking does not panic")
}

/// The state with the changes that the plan names on top.
async fn redone(
    state: State,
    (file, info): (&Path, &BackupInfo),
    plan: &RestorePlan,
) -> Result<State, StartError> {
    let (file, info, plan) = (file.to_owned(), info.clone(), plan.clone());
    let redo = move || {
        plan.to.check_base(&file, &info)?;
        let opened = Machine::open(state.clone())?;
        let mut machine = opened.ok_or_else(|| StorageFailed::damaged("state", "the copy holds no state"))?;
        // How far the files go, whatever is taken of them.
        let mut reached = info.revision;
        // Clocks may have gone back: nothing comes behind what is not taken.
        let mut taking = true;
        let mut before = Bytes::new();
        for changes in &plan.changes {
            let of = read_changes(changes, plan.key.as_ref(), |of, kept| {
                check_follows(changes, of, &info, reached)?;
                taking &= kept.change.revision <= machine.revision() || plan.to.takes(&kept);
                if kept.change.revision > machine.revision() && taking {
                    machine.replay(&kept.change).map_err(|failed| {
                        let why = format!("what it says can't follow on the backup: {}", failed.why);
                        Fault::Damaged { offset: 0, why }.about(&changes.display().to_string())
                    })?;
                }
                Ok(())
            })?;
            // One without any changes too.
            check_follows(changes, &of.info, &info, reached)?;
            check_chain(changes, &of.info, &before)?;
            before = of.digest;
            reached = reached.max(of.info.revision);
        }
        plan.to.check_reached(&file, machine.revision())?;
        drop(machine);
        Ok(state)
    };
    tokio::task::spawn_blocking(redo).await.expect("doing changes again does not panic")
}

fn write(path: &Path, content: &mut dyn Read) -> Result<(), StorageFailed> {
    let fail = |error: io::Error| StorageFailed::io(path.display().to_string(), "writing it", &error);
    let mut out = File::options().write(true).create_new(true).mode(0o600).open(path).map_err(fail)?;
    io::copy(content, &mut out).map_err(fail)?;
    out.sync_all().map_err(fail)
}

fn look(state: &State) -> Result<Before, StorageFailed> {
    // Of a format that this version does not know, nothing is read.
    Machine::open(state.clone())?;
    state.view(|view| {
        Ok(Before {
            cluster: machine::read::cluster(view)?,
            revision: machine::read::current_revision(view)?,
            trusted: machine::read::trusted(view)?,
            sealing: machine::read::sealing(view)?,
            predecessors: machine::read::predecessors(view)?,
        })
    })
}

/// What is kept where the data keys came along, and what is made anew where they did not.
fn after(
    config: &Config,
    cluster: ClusterId,
    before: Before,
    keys: Option<HandedKeys>,
) -> Result<After, StartError> {
    let Before { sealing, trusted, mut predecessors, .. } = before;
    let Some(keys) = keys else {
        let used = sealing.next.as_ref().map_or(sealing.active, |next| next.id.max(sealing.active));
        let id = used + 1;
        let keyring = Keyring::from_keys(vec![DataKey::generate(id)], id)?;
        let authority = founding(config, cluster, &keyring)?;
        let (roots, fresh) = (vec![authority.root.to_vec()], Some((authority.clone(), id)));
        let keys = keyring.handed();
        return Ok(After { keys, keyring, authority, roots, fresh, predecessors: Vec::new() });
    };
    if config.own_root.is_some() {
        let why = "the backup's own root is kept; `raft-kv ca rotate` replaces it once the cluster runs";
        return Err(Refusal::invalid("root", why).into());
    }
    let keyring = Keyring::from_keys(keys.keys.clone(), sealing.active)?;
    let authority = trusted.issuing().clone();
    root_key(&authority, &keyring)?;
    let unlock = match &sealing.unlock {
        None => None,
        Some(sealed) => {
            let bytes = Zeroizing::new(keyring.open(UNLOCK_KEY, sealed)?);
            let key = UnlockKey::from_bytes(&bytes)
                .ok_or_else(|| Refusal::invalid("unlock key", "the backup's has not 32 bytes"))?;
            let key = key.as_bytes().try_into().expect("an unlock key has 32 bytes");
            Some((sealing.version, DataKey { id: sealing.version, key: Zeroizing::new(key) }))
        }
    };
    let roots = trusted.roots.iter().map(|root| root.root.to_vec()).collect();
    predecessors.push(before.cluster);
    let keys = HandedKeys { active: sealing.active, unlock, ..keys };
    Ok(After { keys, keyring, authority, roots, fresh: None, predecessors })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_restore_that_fails_leaves_no_member_and_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::take(&folder.path().join("d"), true).unwrap();
        fs::write(dir.join(RESTORING_FILE), "begun").unwrap();
        fs::create_dir(dir.join("state")).unwrap();
        drop(dir);
        let refused = DataDir::take(&folder.path().join("d"), false).unwrap_err().to_string();
        assert!(refused.contains("cut short") && refused.contains("backup restore"), "{refused}");
        let dir = DataDir::take(&folder.path().join("d"), true).unwrap();
        dir.expect_vacant().unwrap();
        assert!(!dir.join(RESTORING_FILE).exists() && !dir.join("state").exists());
    }
}
