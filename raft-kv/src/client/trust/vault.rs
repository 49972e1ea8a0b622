//! What of the cluster's secrets lies on this member's disk: the keyring, encrypted under a key of
//! this member's own, which lies in the same file, in clear while autolock is off, wrapped by the
//! cluster's unlock key while it is on. The key of the member's certificate lies in there too; while
//! autolock is on, there alone.
//!
//! The file is replaced whole, durably, before anything in memory changes: what is sealed with a
//! key of the ring can be opened after a crash. It must never hold the unlock key.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::super::config::StartError;
use super::super::spare;
use crate::codec::{Wire, wire_enum, wire_struct};
use crate::error::{Refusal, StorageFailed};
use crate::net::{read_credentials, write_credentials, write_private};
use crate::pki::{Credentials, Keyring, NodeKey, PemFiles, UnlockKey};
use crate::storage::check::Problem;
use crate::types::{DataKey, DataKeyId, HandedKeys, Sealed};

/// The file's name in the data directory.
pub(in crate::client) const KEYRING_FILE: &str = "keyring";
/// What the file's content is sealed as.
const CONTENT: &str = "keyring";
const FORMAT: u32 = 1;
/// Keys of certificates that are kept: the newest, and the one before it, for a crash in between.
const NODE_KEYS: usize = 2;

/// The member key as the file has it.
#[derive(Clone, Debug)]
enum Held {
    Clear(DataKey),
    /// Wrapped by the unlock key of that version.
    Wrapped {
        version: u64,
        key: Sealed,
    },
}
wire_enum!(Held { 1 => Clear(key), 2 => Wrapped { version, key } });

struct OnDisk {
    format: u32,
    /// Which change of the unlock key this member has carried out.
    version: u64,
    member_key: Held,
    content: Sealed,
}
wire_struct!(OnDisk { format, version, member_key, content });

#[derive(Clone)]
struct Content {
    keys: HandedKeys,
    /// The keys of this member's certificates, newest first.
    node_keys: Vec<Bytes>,
}
wire_struct!(Content { keys, node_keys });

#[derive(Clone)]
struct Open {
    version: u64,
    held: Held,
    member_key: DataKey,
    content: Content,
}

/// This member's keyring and the file it lies in.
pub(in crate::client) struct Vault {
    dir: PathBuf,
    keyring: Keyring,
    open: Mutex<Open>,
}

fn storage(error: &std::io::Error, path: &Path, action: &'static str) -> StorageFailed {
    StorageFailed::io(path.display().to_string(), action, error)
}

impl Open {
    fn save(&self, dir: &Path) -> Result<(), StorageFailed> {
        let plain = Zeroizing::new(self.content.to_bytes().to_vec());
        let file = OnDisk {
            format: FORMAT,
            version: self.version,
            member_key: self.held.clone(),
            content: self.member_key.seal(CONTENT, &plain),
        };
        write_private(&dir.join(KEYRING_FILE), &spare::sealed(&file.to_bytes()))?;
        // At once: the copy must not have in clear what was locked.
        spare::refresh(dir)
    }

    /// With another member key, wrapped or not.
    fn rekey(&mut self, version: u64, unlock: Option<&UnlockKey>) {
        self.member_key = DataKey::generate(0);
        self.version = version;
        self.held = match unlock {
            Some(unlock) => Held::Wrapped { version, key: unlock.wrap(&self.member_key) },
            None => Held::Clear(self.member_key.clone()),
        };
    }
}

fn read(dir: &Path) -> Result<OnDisk, StartError> {
    let path = dir.join(KEYRING_FILE);
    let wrong = |why: String| StartError::DataDir { dir: dir.display().to_string(), why };
    let bytes = fs::read(&path).map_err(|error| {
        wrong(format!(
            "its file `{KEYRING_FILE}` can't be read: {error}; without it nothing can be opened: {DAMAGED}"
        ))
    })?;
    let body = spare::unsealed(&bytes).map(Bytes::copy_from_slice);
    let file = body.and_then(|body| OnDisk::from_bytes(body).ok());
    let file = file.ok_or_else(|| wrong(format!("its file `{KEYRING_FILE}` is damaged; {DAMAGED}")))?;
    if file.format != FORMAT {
        return Err(wrong(format!(
            "its file `{KEYRING_FILE}` is of format {}, of a newer version",
            file.format
        )));
    }
    Ok(file)
}

const DAMAGED: &str = "remove this member from the cluster, empty the directory and let it join anew";

fn key_text(key: &[u8]) -> String {
    pem::encode(&pem::Pem::new("PRIVATE KEY", key.to_vec()))
}

impl Vault {
    /// The first of a member that was just made or has just joined.
    pub(in crate::client) fn create(
        dir: &Path,
        keys: HandedKeys,
        node_key: &[u8],
    ) -> Result<Self, StartError> {
        let keyring = Keyring::from_keys(keys.keys.clone(), keys.active)?;
        let unlock = keys.unlock.as_ref().map(|(version, key)| (*version, key.key.clone()));
        let (version, unlock) = match unlock {
            Some((version, key)) => (version, UnlockKey::from_bytes(key.as_ref())),
            None => (0, None),
        };
        let member_key = DataKey::generate(0);
        let content = Content { keys: HandedKeys { unlock: None, ..keys }, node_keys: Vec::new() };
        let mut open = Open { version, held: Held::Clear(member_key.clone()), member_key, content };
        if unlock.is_some() {
            open.content.node_keys = vec![Bytes::copy_from_slice(node_key)];
            open.rekey(version, unlock.as_ref());
        }
        open.save(dir)?;
        Ok(Self { dir: dir.into(), keyring, open: Mutex::new(open) })
    }

    /// Whether these are the bytes of a keyring's file as they were written.
    pub(in crate::client) fn is_whole(bytes: &[u8]) -> bool {
        spare::unsealed(bytes).is_some_and(|body| OnDisk::from_bytes(Bytes::copy_from_slice(body)).is_ok())
    }

    /// Whether the member in `dir` needs the unlock key to start.
    pub(in crate::client) fn is_locked(dir: &Path) -> Result<bool, StartError> {
        Ok(matches!(read(dir)?.member_key, Held::Wrapped { .. }))
    }

    /// That of a member that was made before.
    ///
    /// # Errors
    /// [`StartError::Locked`] without the unlock key, and with another one.
    pub(in crate::client) fn open(dir: &Path, unlock: Option<&UnlockKey>) -> Result<Self, StartError> {
        let file = read(dir)?;
        let locked = |wrong: bool| StartError::Locked { dir: dir.display().to_string(), wrong };
        let member_key = match &file.member_key {
            Held::Clear(key) => key.clone(),
            Held::Wrapped { key, .. } => {
                let unlock = unlock.ok_or_else(|| locked(false))?;
                unlock.unwrap(key).ok_or_else(|| locked(true))?
            }
        };
        let plain = member_key.open(CONTENT, &file.content);
        let content = plain.and_then(|plain| Content::from_bytes(Bytes::copy_from_slice(&plain)).ok());
        let Some(content) = content else {
            let why = format!("its file `{KEYRING_FILE}` is damaged; {DAMAGED}");
            return Err(StartError::DataDir { dir: dir.display().to_string(), why });
        };
        let keyring = Keyring::from_keys(content.keys.keys.clone(), content.keys.active)?;
        let open = Open { version: file.version, held: file.member_key, member_key, content };
        Ok(Self { dir: dir.into(), keyring, open: Mutex::new(open) })
    }

    /// The ring; a clone of it follows.
    pub(in crate::client) fn keyring(&self) -> Keyring {
        self.keyring.clone()
    }

    /// Which change of the unlock key was carried out here.
    pub(in crate::client) fn version(&self) -> u64 {
        self.open.lock().version
    }

    fn change(&self, change: impl FnOnce(&mut Open)) -> Result<(), StorageFailed> {
        let mut held = self.open.lock();
        let mut open = held.clone();
        change(&mut open);
        open.save(&self.dir)?;
        self.keyring.take(open.content.keys.clone());
        *held = open;
        Ok(())
    }

    /// Stores data keys; those that are there stay.
    pub(in crate::client) fn add(&self, keys: &[DataKey]) -> Result<(), StorageFailed> {
        self.change(|open| {
            let ring = &mut open.content.keys.keys;
            for key in keys {
                if !ring.iter().any(|known| known.id == key.id) {
                    ring.push(key.clone());
                }
            }
            ring.sort_by_key(|key| key.id);
        })
    }

    /// From here on that key seals, which is on disk.
    pub(in crate::client) fn activate(&self, id: DataKeyId) -> Result<(), StorageFailed> {
        assert!(self.keyring.holds(id), "a key seals only once it is on disk");
        self.change(|open| open.content.keys.active = id)
    }

    /// Forgets the keys before the one that seals.
    pub(in crate::client) fn forget_before(&self, id: DataKeyId) -> Result<(), StorageFailed> {
        self.change(|open| {
            let active = open.content.keys.active;
            open.content.keys.keys.retain(|key| key.id >= id || key.id == active);
        })
    }

    /// Locks with that unlock key, or leaves unlocked: with another member key in either case.
    pub(in crate::client) fn relock(
        &self,
        version: u64,
        unlock: Option<&UnlockKey>,
        credentials: &Credentials,
    ) -> Result<(), StorageFailed> {
        let pem = self.dir.join("cert").join("key.pem");
        if unlock.is_none() {
            // There in clear before it is not in the vault any more.
            write_private(&pem, credentials.to_pem().key.as_bytes())?;
        }
        self.change(|open| {
            open.content.node_keys = vec![Bytes::copy_from_slice(&credentials.key)];
            open.rekey(version, unlock);
        })?;
        if unlock.is_none() {
            return Ok(());
        }
        match fs::remove_file(&pem) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(storage(&error, &pem, "removing it")),
            _ => Ok(()),
        }
    }

    /// The key to ask for another certificate with, on this disk: one that was asked with before and may
    /// have been answered, or a new one. `current` is that of the certificate there is.
    pub(in crate::client) fn next_key(&self, current: &[u8]) -> Result<NodeKey, StorageFailed> {
        let newest = self.open.lock().content.node_keys.first().filter(|key| **key != current).cloned();
        if let Some(key) = newest.and_then(|key| NodeKey::from_der(&key).ok()) {
            return Ok(key);
        }
        let key = NodeKey::generate();
        let keys = vec![Bytes::copy_from_slice(key.der()), Bytes::copy_from_slice(current)];
        self.change(|open| open.content.node_keys = keys)?;
        Ok(key)
    }

    /// Writes what this member proves itself with.
    pub(in crate::client) fn save(&self, credentials: &Credentials) -> Result<(), StorageFailed> {
        let dir = self.dir.join("cert");
        let key = Bytes::copy_from_slice(&credentials.key);
        // The key first, beside the one before it: wherever this stops, the certificate that is there has
        // its key.
        self.change(|open| {
            open.content.node_keys.retain(|known| *known != key);
            open.content.node_keys.insert(0, key);
            open.content.node_keys.truncate(NODE_KEYS);
        })?;
        if matches!(self.open.lock().held, Held::Clear(_)) {
            write_credentials(&dir, credentials)?;
        } else {
            let files = credentials.to_pem();
            write_private(&dir.join("cacert.pem"), files.cacert.as_bytes())?;
            write_private(&dir.join("cert.pem"), files.cert.as_bytes())?;
        }
        spare::refresh(&self.dir)
    }

    /// Whether the key of the certificate is where it should be; changes nothing.
    pub(in crate::client) fn look(&self, certified: bool) -> Result<(), Problem> {
        let path = self.dir.join("cert").join("key.pem");
        let open = self.open.lock();
        let text = fs::read_to_string(&path).unwrap_or_default();
        let known = open.content.node_keys.iter().any(|key| text == key_text(key));
        match &open.held {
            Held::Clear(_) if !certified || known => Ok(()),
            Held::Clear(_) => {
                let what = "it is missing or damaged; the keyring has it, and the next start writes it anew";
                Err(Problem::spare(&path, None, what))
            }
            Held::Wrapped { .. } if path.exists() => {
                Err(Problem::note(&path, "left over from before it was locked; the next start removes it"))
            }
            Held::Wrapped { .. } => Ok(()),
        }
    }

    /// Writes the certificate's key to its file, where that is to have it and has another or none.
    pub(in crate::client) fn mend_key(&self, credentials: &Credentials) -> Result<(), StorageFailed> {
        let pem = self.dir.join("cert").join("key.pem");
        let there = fs::read(&pem).unwrap_or_default();
        let right = credentials.to_pem().key;
        if matches!(self.open.lock().held, Held::Wrapped { .. }) || there == right.as_bytes() {
            return Ok(());
        }
        tracing::warn!(file = %pem.display(), "it was missing, damaged or of another certificate; it is written anew");
        write_private(&pem, right.as_bytes())
    }

    /// Reads what this member proves itself with.
    pub(in crate::client) fn load(&self) -> Result<Credentials, StartError> {
        let dir = self.dir.join("cert");
        let at = |name: &str| dir.join(name);
        let open = self.open.lock();
        let mut last = Refusal::BadCertificate { why: "its private key is missing".into() };
        if matches!(open.held, Held::Clear(_)) {
            match read_credentials(&at("cacert.pem"), &at("cert.pem"), &at("key.pem")) {
                // A renewal that was cut short, or a damaged file: the key is in the vault.
                Err(refusal) => last = refusal,
                Ok(read) => return Ok(read),
            }
        } else {
            // A crash after it was locked may have left it.
            let _ = fs::remove_file(at("key.pem"));
        }
        let text = |name: &str| {
            fs::read_to_string(at(name))
                .map_err(|error| Refusal::invalid(format!("file {}", at(name).display()), error.to_string()))
        };
        let (cacert, cert) = (text("cacert.pem")?, text("cert.pem")?);
        for key in &open.content.node_keys {
            let key = key_text(key);
            match Credentials::from_pem(&PemFiles { cacert: cacert.clone(), cert: cert.clone(), key }) {
                Ok(credentials) => return Ok(credentials),
                Err(refusal) => last = refusal,
            }
        }
        Err(last.into())
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::pki::{RootKey, Subject, issue};
    use crate::types::{ClusterId, NodeId, Role};

    fn credentials() -> Credentials {
        let (cluster, node) = (ClusterId(1), NodeId(2));
        let (root, key) = (RootKey::generate(cluster, SystemTime::now()), NodeKey::generate());
        let subject = Subject { cluster, node, role: Role::Manager, name: String::new(), hosts: vec![] };
        let life = crate::pki::LEAF_VALIDITY;
        let leaf = issue(&root, &subject, &key.public(), SystemTime::now(), life, &mut rand::rng()).unwrap();
        let roots = vec![root.cert_der().to_vec()];
        Credentials { chain: vec![leaf], key: key.der().to_vec(), roots, ..Credentials::default() }
    }

    fn files(dir: &Path) -> Vec<u8> {
        let mut all = fs::read(dir.join(KEYRING_FILE)).unwrap();
        all.extend(fs::read(dir.join(spare::SPARE_FILE)).unwrap());
        for file in fs::read_dir(dir.join("cert")).unwrap() {
            all.extend(fs::read(file.unwrap().path()).unwrap());
        }
        all
    }

    #[test]
    fn locked_it_opens_with_its_key_alone_and_holds_nothing_in_clear() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("cert")).unwrap();
        let credentials = credentials();
        let keys = Keyring::generate().handed();
        let vault = Vault::create(dir.path(), keys.clone(), &credentials.key).unwrap();
        vault.save(&credentials).unwrap();
        assert_eq!(Vault::open(dir.path(), None).unwrap().load().unwrap(), credentials);

        let (key, other) = (UnlockKey::generate(), UnlockKey::generate());
        vault.relock(1, Some(&key), &credentials).unwrap();
        let has = |part: &[u8]| files(dir.path()).windows(part.len()).any(|window| window == part);
        for secret in [&keys.keys[0].key[..], key.as_bytes(), &credentials.key] {
            assert!(!has(secret));
        }
        assert!(!dir.path().join("cert").join("key.pem").exists());
        assert!(Vault::is_locked(dir.path()).unwrap());
        let refused = |unlock| match Vault::open(dir.path(), unlock) {
            Err(StartError::Locked { wrong, .. }) => wrong,
            _ => panic!("it opened"),
        };
        assert!(!refused(None));
        assert!(refused(Some(&other)));
        let again = Vault::open(dir.path(), Some(&key)).unwrap();
        assert_eq!((again.load().unwrap(), again.version()), (credentials.clone(), 1));
        assert_eq!(again.keyring().handed(), keys);

        // Another key in its place, then none.
        again.relock(2, Some(&other), &credentials).unwrap();
        assert!(refused(Some(&key)));
        Vault::open(dir.path(), Some(&other)).unwrap().relock(3, None, &credentials).unwrap();
        assert_eq!(Vault::open(dir.path(), None).unwrap().load().unwrap(), credentials);
    }

    #[test]
    fn a_renewal_that_was_cut_short_leaves_the_old_certificate() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("cert")).unwrap();
        let (old, new, key) = (credentials(), credentials(), UnlockKey::generate());
        let vault = Vault::create(dir.path(), Keyring::generate().handed(), &old.key).unwrap();
        vault.save(&old).unwrap();
        vault.relock(1, Some(&key), &old).unwrap();
        vault.save(&new).unwrap();
        // As after a crash before the new certificate was written.
        let files = old.to_pem();
        fs::write(dir.path().join("cert").join("cert.pem"), files.cert).unwrap();
        fs::write(dir.path().join("cert").join("cacert.pem"), files.cacert).unwrap();
        assert_eq!(Vault::open(dir.path(), Some(&key)).unwrap().load().unwrap(), old);
    }

    #[test]
    fn a_renewal_can_stop_at_any_file() {
        let dir = tempfile::tempdir().unwrap();
        let cert = dir.path().join("cert");
        fs::create_dir(&cert).unwrap();
        let (old, new) = (credentials(), credentials());
        let vault = Vault::create(dir.path(), Keyring::generate().handed(), &old.key).unwrap();
        vault.save(&old).unwrap();
        vault.save(&new).unwrap();
        let (before, after) = (old.to_pem(), new.to_pem());
        for (chain, key, expect) in [
            (&before.cert, &before.key, &old.chain),
            (&after.cert, &before.key, &new.chain),
            (&before.cert, &after.key, &old.chain),
            (&after.cert, &after.key, &new.chain),
        ] {
            fs::write(cert.join("cert.pem"), chain).unwrap();
            fs::write(cert.join("key.pem"), key).unwrap();
            assert_eq!(&Vault::open(dir.path(), None).unwrap().load().unwrap().chain, expect);
        }
    }

    #[test]
    fn keys_come_and_go_durably() {
        let dir = tempfile::tempdir().unwrap();
        let vault = Vault::create(dir.path(), Keyring::generate().handed(), b"").unwrap();
        let first = vault.keyring().seal("a", b"1");
        vault.add(&[DataKey::generate(2), DataKey::generate(2)]).unwrap();
        vault.activate(2).unwrap();
        let again = Vault::open(dir.path(), None).unwrap().keyring();
        assert_eq!((again.active(), again.open("a", &first).unwrap()), (2, b"1".to_vec()));
        vault.forget_before(2).unwrap();
        let again = Vault::open(dir.path(), None).unwrap().keyring();
        assert!(again.open("a", &first).is_err() && !again.holds(1) && again.holds(2));
    }
}
