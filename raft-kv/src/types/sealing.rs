//! How the cluster's secrets are sealed: data keys, their replacement, and the lock on what each
//! member keeps on its disk.

use std::fmt;

use bytes::Bytes;
use zeroize::Zeroizing;

use super::{NodeId, RootDigest, Sealed};
use crate::codec::{Malformed, Reader, Wire, malformed, wire_enum, wire_struct};

/// A data key's number: 1 is the first, each next one is one more.
pub type DataKeyId = u64;

/// Begins every sealed secret; what does not begin so was never sealed.
const SEALED: &[u8; 4] = b"RKS1";

/// A key that secrets are sealed with. It is shown nowhere, and wiped when it is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct DataKey {
    /// Its number.
    pub id: DataKeyId,
    /// The key, for AES-256-GCM.
    pub key: Zeroizing<[u8; 32]>,
}

impl fmt::Debug for DataKey {
    /// Shows nothing of the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataKey").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Wire for DataKey {
    fn encode(&self, out: &mut bytes::BytesMut) {
        self.id.encode(out);
        self.key.iter().for_each(|byte| byte.encode(out));
    }
    fn decode(input: &mut Reader) -> Result<Self, Malformed> {
        let id = u64::decode(input)?;
        let bytes = input.take(32, "a data key is cut short")?;
        let key: [u8; 32] = bytes.as_ref().try_into().or(malformed("a data key is of another size"))?;
        Ok(Self { id, key: Zeroizing::new(key) })
    }
}

/// All that a member needs to open what is sealed. Given to members alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HandedKeys {
    /// The data keys, ascending.
    pub keys: Vec<DataKey>,
    /// Which of them seals.
    pub active: DataKeyId,
    /// The unlock key and its version, where what members keep is locked.
    pub unlock: Option<(u64, DataKey)>,
}
wire_struct!(HandedKeys { keys, active, unlock });

impl Sealed {
    /// The head of what is sealed with that key.
    pub fn head(key: DataKeyId) -> [u8; 12] {
        let mut head = [0; 12];
        head[..4].copy_from_slice(SEALED);
        head[4..].copy_from_slice(&key.to_le_bytes());
        head
    }

    /// The key that it is sealed with; `None` for what was never sealed.
    pub fn key(&self) -> Option<DataKeyId> {
        let id = self.0.strip_prefix(SEALED)?.get(..8)?;
        Some(u64::from_le_bytes(id.try_into().expect("eight bytes")))
    }
}

/// A data key that is to be the next, while members store it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NextKey {
    /// Its number.
    pub id: DataKeyId,
    /// The key, sealed with the one before it.
    pub key: Sealed,
    /// Who has said that it is on its disk.
    pub stored: Vec<NodeId>,
    /// When it was made.
    pub made: i64,
}
wire_struct!(NextKey { id, key, stored, made });

/// Which keys seal, and whether members' disks are locked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sealing {
    /// The key that seals now.
    pub active: DataKeyId,
    /// The key before it, while there is still something sealed with it.
    pub old: Option<DataKeyId>,
    /// The key after it, while members store it.
    pub next: Option<NextKey>,
    /// The cluster's unlock key; `None` while autolock is off.
    pub unlock: Option<Sealed>,
    /// Counts up with each change of `unlock`.
    pub version: u64,
    /// Another replacement was asked for while one was under way.
    pub again: bool,
}
wire_struct!(Sealing { active, old, next, unlock, version, again });

impl Default for Sealing {
    /// That of a new cluster.
    fn default() -> Self {
        Self { active: 1, old: None, next: None, unlock: None, version: 0, again: false }
    }
}

impl Sealing {
    /// Whether something sealed with that key may come into the state.
    pub fn takes(&self, key: DataKeyId) -> bool {
        key == self.active || self.old == Some(key)
    }

    /// Whether no key is being replaced.
    pub fn is_settled(&self) -> bool {
        self.old.is_none() && self.next.is_none() && !self.again
    }
}

/// Where in the state a secret lies.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SecretPlace {
    /// The signing key of a root.
    Authority(RootDigest),
    /// A join token's secret.
    Token(String),
    /// A user's password hash.
    User(String),
    /// What signs users' tokens.
    TokenKey,
    /// The cluster's unlock key.
    UnlockKey,
}
wire_enum!(SecretPlace {
    1 => Authority(digest), 2 => Token(id), 3 => User(name), 4 => TokenKey, 5 => UnlockKey,
});

/// A secret sealed anew: it takes the place of `old`, if that is still there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Resealed {
    /// Where.
    pub place: SecretPlace,
    /// What was read there.
    pub old: Sealed,
    /// The same secret, sealed with the active key.
    pub new: Sealed,
}
wire_struct!(Resealed { place, old, new });

/// The hash of a user's password: in clear from whoever makes it to the member that is asked, and
/// sealed from there on. In clear it never comes into the log.
#[derive(Clone, PartialEq, Eq)]
pub enum PasswordHash {
    /// On its way to a member.
    Clear(String),
    /// As the log and the state have it.
    Sealed(Sealed),
}
wire_enum!(PasswordHash { 1 => Clear(hash), 2 => Sealed(hash) });

impl From<String> for PasswordHash {
    fn from(hash: String) -> Self {
        Self::Clear(hash)
    }
}

impl fmt::Debug for PasswordHash {
    /// Shows nothing of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordHash(..)")
    }
}

/// The lock on members' disks, and how far a replacement of keys is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LockStatus {
    /// Whether autolock is on.
    pub locked: bool,
    /// Counts up with each change of the unlock key.
    pub version: u64,
    /// The data key that seals.
    pub active: DataKeyId,
    /// Whether no data key is being replaced.
    pub settled: bool,
    /// Members that have not yet stored a data key that is to be the next.
    pub late: Vec<NodeId>,
    /// The unlock key as people give it, where it was asked for.
    pub key: Option<Bytes>,
}
wire_struct!(LockStatus { locked, version, active, settled, late, key });
