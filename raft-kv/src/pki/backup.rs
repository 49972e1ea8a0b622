//! The key of encrypted backups, which people keep, and what it seals a backup's parts with.
//!
//! Each file has a key of its own, derived from that key and the file's salt, so that a part's number can
//! be its nonce. A part is bound to its file, its place and its kind: none can be left out, moved, or taken
//! from another file unnoticed. Pure: it reads and writes nothing.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use rand::RngCore;
use zeroize::Zeroizing;

use super::key_text::{key_from_text, key_to_text};
use crate::error::Refusal;

const PREFIX: &str = "RAFTKV-BACKUP-1-";
/// Bytes of a file's salt.
pub const BACKUP_SALT_BYTES: usize = 32;
/// Bytes of what tells a wrong key from a damaged file.
pub const BACKUP_CHECK_BYTES: usize = 16;

/// The key that backups are encrypted with: 256 random bits. Its text is `RAFTKV-BACKUP-1-` and lowercase
/// base32.
#[derive(Clone, PartialEq, Eq)]
pub struct BackupKey(Zeroizing<[u8; 32]>);

/// So many bytes of key material.
struct Bytes(usize);

impl KeyType for Bytes {
    fn len(&self) -> usize {
        self.0
    }
}

impl BackupKey {
    /// Draws one.
    pub fn generate() -> Self {
        let mut key = Zeroizing::new([0; 32]);
        rand::rng().fill_bytes(key.as_mut());
        Self(key)
    }

    /// As people keep it.
    pub fn to_text(&self) -> String {
        key_to_text(PREFIX, &self.0)
    }

    fn derive(&self, salt: &[u8], what: &[u8], out: &mut [u8]) {
        let derived = Salt::new(HKDF_SHA256, salt).extract(self.0.as_ref());
        let derived = derived.expand(&[what], Bytes(out.len())).and_then(|okm| okm.fill(out));
        derived.expect("a key is far shorter than what can be derived");
    }

    /// What seals and opens the parts of the file with that salt.
    pub fn cipher(&self, salt: &[u8; BACKUP_SALT_BYTES]) -> BackupCipher {
        let mut key = Zeroizing::new([0; 32]);
        self.derive(salt, b"raft-kv backup 1 parts", key.as_mut());
        let key = UnboundKey::new(&AES_256_GCM, key.as_ref()).expect("a key has 32 bytes");
        let mut check = [0; BACKUP_CHECK_BYTES];
        self.derive(salt, b"raft-kv backup 1 check", &mut check);
        BackupCipher { key: LessSafeKey::new(key), check }
    }
}

impl fmt::Debug for BackupKey {
    /// Shows nothing of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BackupKey(..)")
    }
}

impl FromStr for BackupKey {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        key_from_text(PREFIX, text, "backup key", "`raft-kv backup key FILE` makes one").map(Self)
    }
}

/// Seals and opens the parts of one file.
pub struct BackupCipher {
    key: LessSafeKey,
    check: [u8; BACKUP_CHECK_BYTES],
}

impl BackupCipher {
    /// What the file's head has of the key: tells that it is the right one, and nothing about it.
    pub fn check(&self) -> [u8; BACKUP_CHECK_BYTES] {
        self.check
    }

    fn nonce(number: u64) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&number.to_le_bytes());
        Nonce::assume_unique_for_key(nonce)
    }

    /// Seals part `number`, once: what `about` says is authenticated with it.
    pub fn seal(&self, number: u64, about: &[u8], part: &mut Vec<u8>) {
        let sealed = self.key.seal_in_place_append_tag(Self::nonce(number), Aad::from(about), part);
        sealed.expect("a part is far smaller than what one call can encrypt");
    }

    /// Opens part `number`; whether it is what was sealed about that.
    pub fn open(&self, number: u64, about: &[u8], part: &mut Vec<u8>) -> bool {
        let opened = self.key.open_in_place(Self::nonce(number), Aad::from(about), part);
        let Ok(len) = opened.map(|plain| plain.len()) else { return false };
        part.truncate(len);
        true
    }
}

impl fmt::Debug for BackupCipher {
    /// Shows nothing of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BackupCipher(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_text_and_a_mistyped_one_is_none() {
        let key = BackupKey::generate();
        let text = key.to_text();
        assert_eq!(format!(" {text}\n").parse::<BackupKey>().unwrap(), key);
        assert!(!format!("{key:?} {:?}", key.cipher(&[1; 32])).contains(&text[PREFIX.len()..]));
        for bad in
            ["", PREFIX, &text[1..], &text[..text.len() - 1], &text.replace(PREFIX, "RAFTKV-UNLOCK-1-")]
        {
            assert!(bad.parse::<BackupKey>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_part_opens_in_its_file_at_its_place_alone() {
        let (key, other) = (BackupKey::generate(), BackupKey::generate());
        let cipher = key.cipher(&[1; 32]);
        let mut sealed = b"part".to_vec();
        cipher.seal(7, b"about", &mut sealed);
        let check = |cipher: &BackupCipher, number, about: &[u8], expect: bool| {
            let mut part = sealed.clone();
            assert_eq!(cipher.open(number, about, &mut part), expect);
            assert!(!expect || part == b"part");
        };
        check(&cipher, 7, b"about", true);
        check(&cipher, 8, b"about", false);
        check(&cipher, 7, b"other", false);
        check(&key.cipher(&[2; 32]), 7, b"about", false);
        check(&other.cipher(&[1; 32]), 7, b"about", false);
        assert_eq!(key.cipher(&[1; 32]).check(), cipher.check());
        assert_ne!(other.cipher(&[1; 32]).check(), cipher.check());
        assert_ne!(key.cipher(&[2; 32]).check(), cipher.check());
    }
}
