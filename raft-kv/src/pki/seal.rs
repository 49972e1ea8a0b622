//! Secrets of the cluster as its log, state and backups carry them: AES-256-GCM under a data key
//! that members alone have, with a random nonce, bound to what the secret is about.
//!
//! A sealed secret is `RKS1`, the key's number, a nonce, and the encrypted secret with its tag. Its
//! head and what it is about are authenticated with it, so that neither can be exchanged.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use parking_lot::RwLock;
use rand::RngCore;
use zeroize::Zeroizing;

use super::key_text::{key_from_text, key_to_text};
use crate::error::Refusal;
use crate::types::{DataKey, DataKeyId, HandedKeys, Sealed};

const HEAD: usize = 12;

impl DataKey {
    /// A new key of that number, from the system's generator.
    pub fn generate(id: DataKeyId) -> Self {
        let mut key = Zeroizing::new([0; 32]);
        rand::rng().fill_bytes(key.as_mut());
        Self { id, key }
    }

    /// Seals `plain`, which is about `what`.
    pub fn seal(&self, what: &str, plain: &[u8]) -> Sealed {
        let key = RandomizedNonceKey::new(&AES_256_GCM, self.key.as_ref()).expect("a key has 32 bytes");
        let head = Sealed::head(self.id);
        let mut text = Vec::with_capacity(HEAD + NONCE_LEN + plain.len() + 16);
        text.extend_from_slice(plain);
        let sealed = key.seal_in_place_append_tag(Aad::from(aad(&head, what)), &mut text);
        let nonce = sealed.expect("a secret is far smaller than what one call can encrypt");
        Sealed([&head[..], nonce.as_ref(), &text].concat().into())
    }

    /// Opens what was sealed about `what` with this key; `None` for anything else.
    pub fn open(&self, what: &str, sealed: &Sealed) -> Option<Zeroizing<Vec<u8>>> {
        let (head, rest) = sealed.0.split_at_checked(HEAD)?;
        let (nonce, text) = rest.split_at_checked(NONCE_LEN)?;
        if head != Sealed::head(self.id) {
            return None;
        }
        let key = RandomizedNonceKey::new(&AES_256_GCM, self.key.as_ref()).expect("a key has 32 bytes");
        let mut text = Zeroizing::new(text.to_vec());
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let len = key.open_in_place(nonce, Aad::from(aad(head, what)), &mut text).ok()?.len();
        text.truncate(len);
        Some(text)
    }
}

fn aad(head: &[u8], what: &str) -> Vec<u8> {
    [head, what.as_bytes()].concat()
}

struct Ring {
    keys: Vec<DataKey>,
    active: DataKeyId,
}

/// The data keys that a member has. Clones are the same ring.
#[derive(Clone)]
pub struct Keyring(Arc<RwLock<Ring>>);

impl fmt::Debug for Keyring {
    /// Shows numbers alone.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ring = self.0.read();
        f.debug_struct("Keyring").field("keys", &ring.keys).field("active", &ring.active).finish()
    }
}

impl Keyring {
    /// The ring of a new cluster: one key, drawn now.
    pub fn generate() -> Self {
        Self(Arc::new(RwLock::new(Ring { keys: vec![DataKey::generate(1)], active: 1 })))
    }

    /// A ring of what another member, or this one's disk, has.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if the key that seals is not among them.
    pub fn from_keys(keys: Vec<DataKey>, active: DataKeyId) -> Result<Self, Refusal> {
        if !keys.iter().any(|key| key.id == active) {
            return Err(Refusal::invalid("keys", "the key that seals is not among them"));
        }
        Ok(Self(Arc::new(RwLock::new(Ring { keys, active }))))
    }

    /// Seals `plain`, which is about `what`, with the active key.
    pub fn seal(&self, what: &str, plain: &[u8]) -> Sealed {
        let ring = self.0.read();
        let key = ring.keys.iter().find(|key| key.id == ring.active);
        key.expect("the active key is in the ring").seal(what, plain)
    }

    /// Opens what was sealed about `what`.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if no key here opens it.
    pub fn open(&self, what: &str, sealed: &Sealed) -> Result<Vec<u8>, Refusal> {
        let wrong = |why: String| Refusal::invalid(what, why);
        let id = sealed.key().ok_or_else(|| wrong("it is not sealed".into()))?;
        let ring = self.0.read();
        let key = ring.keys.iter().find(|key| key.id == id).ok_or_else(|| {
            wrong(format!("it is sealed with data key {id}, which this member has not (yet); try again"))
        })?;
        let plain = key.open(what, sealed);
        plain
            .map(|plain| plain.to_vec())
            .ok_or_else(|| wrong("it was changed, or is of something else".into()))
    }

    /// The key that seals.
    pub fn active(&self) -> DataKeyId {
        self.0.read().active
    }

    /// Whether that key is here.
    pub fn holds(&self, id: DataKeyId) -> bool {
        self.0.read().keys.iter().any(|key| key.id == id)
    }

    /// All of them, to be handed to a member or written to its disk, encrypted.
    pub fn handed(&self) -> HandedKeys {
        let ring = self.0.read();
        HandedKeys { keys: ring.keys.clone(), active: ring.active, unlock: None }
    }

    /// Takes another ring's content: what is on disk already.
    pub fn take(&self, keys: HandedKeys) {
        assert!(keys.keys.iter().any(|key| key.id == keys.active), "a ring can seal");
        *self.0.write() = Ring { keys: keys.keys, active: keys.active };
    }
}

const UNLOCK_PREFIX: &str = "RAFTKV-UNLOCK-1-";
const WRAPPED: &str = "member key";

/// The key that opens members' disks after a start, while autolock is on: 256 random bits, which
/// people keep. Its text is `RAFTKV-UNLOCK-1-` and lowercase base32.
#[derive(Clone, PartialEq, Eq)]
pub struct UnlockKey(Zeroizing<[u8; 32]>);

impl UnlockKey {
    /// Draws one.
    pub fn generate() -> Self {
        Self(DataKey::generate(0).key)
    }

    /// From its bytes, as the state has them sealed.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(|bytes| Self(Zeroizing::new(bytes)))
    }

    /// Its bytes: to be sealed and nothing else.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_ref()
    }

    /// As people keep it.
    pub fn to_text(&self) -> String {
        key_to_text(UNLOCK_PREFIX, &self.0)
    }

    /// Wraps a member's key.
    pub fn wrap(&self, member_key: &DataKey) -> Sealed {
        DataKey { id: 0, key: self.0.clone() }.seal(WRAPPED, member_key.key.as_ref())
    }

    /// The member's key that was wrapped; `None` for another unlock key's.
    pub fn unwrap(&self, wrapped: &Sealed) -> Option<DataKey> {
        let key = DataKey { id: 0, key: self.0.clone() }.open(WRAPPED, wrapped)?;
        Some(DataKey { id: 0, key: Zeroizing::new(key.as_slice().try_into().ok()?) })
    }
}

impl fmt::Debug for UnlockKey {
    /// Shows nothing of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnlockKey(..)")
    }
}

impl FromStr for UnlockKey {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let whence = "`raft-kv unlock-key show` on a member that runs prints it";
        key_from_text(UNLOCK_PREFIX, text, "unlock key", whence).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `open` makes of what `seal` made, with `what` and the ring given.
    fn check(ring: &Keyring, what: &str, sealed: &Sealed, expect: Option<&[u8]>) {
        assert_eq!(ring.open(what, sealed).ok().as_deref(), expect, "{what}");
    }

    #[test]
    fn what_is_sealed_opens_with_its_key_for_what_it_is_about_alone() {
        let ring = Keyring::generate();
        for plain in [&b""[..], b"secret", &[7; 5000]] {
            let sealed = ring.seal("a", plain);
            check(&ring, "a", &sealed, Some(plain));
            check(&ring, "b", &sealed, None);
            check(&Keyring::generate(), "a", &sealed, None);
            assert_ne!(sealed, ring.seal("a", plain), "each has its nonce");
            if plain.len() > 5 {
                assert!(!sealed.0.windows(6).any(|part| part == &plain[..6]));
            }
        }
    }

    #[test]
    fn what_was_changed_or_cut_opens_never() {
        let ring = Keyring::generate();
        let sealed = ring.seal("a", b"secret");
        for at in 0..sealed.0.len() {
            check(&ring, "a", &Sealed(sealed.0.slice(..at)), None);
            for bit in 0..8 {
                let mut bent = sealed.0.to_vec();
                bent[at] ^= 1 << bit;
                check(&ring, "a", &Sealed(bent.into()), None);
            }
        }
        check(&ring, "a", &Sealed(b"secret".as_slice().into()), None);
    }

    #[test]
    fn the_active_key_seals_and_every_key_opens() {
        let ring = Keyring::generate();
        let first = ring.seal("a", b"1");
        let mut keys = ring.handed();
        keys.keys.push(DataKey::generate(2));
        ring.take(keys.clone());
        assert_eq!(ring.seal("a", b"2").key(), Some(1));
        ring.take(HandedKeys { active: 2, ..keys.clone() });
        assert_eq!(ring.seal("a", b"2").key(), Some(2));
        check(&ring, "a", &first, Some(b"1"));
        ring.take(HandedKeys { keys: keys.keys.split_off(1), active: 2, unlock: None });
        check(&ring, "a", &first, None);
        assert!(Keyring::from_keys(ring.handed().keys, 1).is_err());
    }

    #[test]
    fn an_unlock_key_is_a_text_and_wraps() {
        let (key, other) = (UnlockKey::generate(), UnlockKey::generate());
        let text = key.to_text();
        assert_eq!(text.parse::<UnlockKey>().unwrap(), key);
        assert_eq!(format!(" {text}\n").parse::<UnlockKey>().unwrap(), key);
        for at in UNLOCK_PREFIX.len()..text.len() {
            for letter in ["a", "b", "8", ""] {
                let bent = format!("{}{letter}{}", &text[..at], &text[at + 1..]);
                assert!(bent == text || bent.parse::<UnlockKey>().is_err(), "{bent}");
            }
        }
        for bad in ["", "RAFTKV-UNLOCK-1-", "SWMKEY-1-abc"] {
            assert!(bad.parse::<UnlockKey>().is_err());
        }
        let member = DataKey::generate(0);
        let wrapped = key.wrap(&member);
        assert_eq!(key.unwrap(&wrapped), Some(member));
        assert_eq!(other.unwrap(&wrapped), None);
        assert_eq!(key.unwrap(&Sealed(wrapped.0.slice(..20))), None);
    }

    #[test]
    fn nothing_shows_a_key() {
        let ring = Keyring::generate();
        let key = &ring.handed().keys[0];
        let shown = format!("{ring:?} {key:?} {:?} {:?}", ring.handed(), UnlockKey::generate());
        assert_eq!(
            shown,
            "Keyring { keys: [DataKey { id: 1, .. }], active: 1 } DataKey { id: 1, .. } HandedKeys { keys: \
             [DataKey { id: 1, .. }], active: 1, unlock: None } UnlockKey(..)"
        );
    }
}
