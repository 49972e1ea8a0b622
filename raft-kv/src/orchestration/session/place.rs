//! Where a worker is in what it was sent, and the sealed form of it that the worker keeps.
//!
//! A token says nothing to whoever has it: revisions are counted for the whole cluster. It is sealed for
//! one node, and must never open for another.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use bytes::Bytes;

use crate::planted;
use crate::types::{NodeId, Revision};

/// What a worker has after an update.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Place {
    /// Everything is as it was at this revision, or newer; 0 for nothing.
    pub base: Revision,
    /// No task and no object is held that was not the node's at this revision. Equal to `base` where
    /// nothing was left to send.
    pub seen: Revision,
}

const PLAIN: usize = 16;
const TAG: usize = 16;

/// Bytes of every token.
pub const TOKEN_BYTES: usize = NONCE_LEN + PLAIN + TAG;

/// Seals places. All members have the same key.
pub struct Sealer(LessSafeKey);

impl fmt::Debug for Sealer {
    /// Shows nothing of the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer")
    }
}

impl Sealer {
    /// Of the cluster's 32 bytes; `None` for any other number of them.
    pub fn of(key: &[u8]) -> Option<Self> {
        UnboundKey::new(&AES_256_GCM, key).ok().map(|key| Self(LessSafeKey::new(key)))
    }

    /// The token of `place` for `node`. `chance` is drawn for this token alone.
    pub fn seal(&self, node: NodeId, place: Place, chance: [u64; 2]) -> Bytes {
        let mut nonce = [0; NONCE_LEN];
        nonce[..8].copy_from_slice(&chance[0].to_le_bytes());
        nonce[8..].copy_from_slice(&chance[1].to_le_bytes()[..NONCE_LEN - 8]);
        let mut text = Vec::with_capacity(PLAIN + TAG);
        text.extend_from_slice(&place.base.to_le_bytes());
        text.extend_from_slice(&place.seen.to_le_bytes());
        let sealed = self.0.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(about(node)),
            &mut text,
        );
        sealed.expect("a place is far smaller than what one call can encrypt");
        [&nonce[..], &text].concat().into()
    }

    /// The place of a token of `node`; `None` for anything else.
    pub fn open(&self, node: NodeId, token: &[u8]) -> Option<Place> {
        if token.len() != TOKEN_BYTES {
            return None;
        }
        let (nonce, text) = token.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut text = text.to_vec();
        let plain = self.0.open_in_place(nonce, Aad::from(about(node)), &mut text).ok()?;
        let (base, seen) = plain.split_at_checked(8)?;
        let place = Place {
            base: Revision::from_le_bytes(base.try_into().ok()?),
            seen: Revision::from_le_bytes(seen.try_into().ok()?),
        };
        (place.base >= 0 && place.seen >= place.base).then_some(place)
    }
}

fn about(node: NodeId) -> [u8; 24] {
    let mut about = *b"raft-kv session.........";
    let node = if planted!(ResumeTrustsAnyToken) { 0 } else { node.0 };
    about[16..].copy_from_slice(&node.to_le_bytes());
    about
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_of_one_node_and_of_one_cluster_and_whole() {
        let sealer = Sealer::of(&[7; 32]).unwrap();
        let place = Place { base: 3, seen: 9 };
        let token = sealer.seal(NodeId(5), place, [1, 2]);
        assert_eq!(token.len(), TOKEN_BYTES);
        assert_eq!(sealer.open(NodeId(5), &token), Some(place));
        assert_eq!(sealer.open(NodeId(6), &token), None);
        assert_eq!(Sealer::of(&[8; 32]).unwrap().open(NodeId(5), &token), None);
        for at in 0..token.len() {
            let mut forged = token.to_vec();
            forged[at] ^= 1;
            assert_eq!(sealer.open(NodeId(5), &forged), None, "byte {at}");
            assert_eq!(sealer.open(NodeId(5), &token[..at]), None, "cut at {at}");
        }
        assert!(Sealer::of(&[1; 31]).is_none());
    }

    #[test]
    fn tokens_are_all_of_one_length_and_say_nothing() {
        let sealer = Sealer::of(&[7; 32]).unwrap();
        for (base, seen) in [(0, 0), (1, 1), (1, i64::MAX), (i64::MAX, i64::MAX)] {
            let token = sealer.seal(NodeId(1), Place { base, seen }, [1, 2]);
            assert_eq!(token.len(), TOKEN_BYTES);
        }
        let place = Place { base: 4, seen: 4 };
        assert_ne!(sealer.seal(NodeId(1), place, [1, 2]), sealer.seal(NodeId(1), place, [1, 3]));
    }

    #[test]
    fn a_planted_token_for_anybody_is_caught() {
        let foreign = || {
            let sealer = Sealer::of(&[7; 32]).unwrap();
            let token = sealer.seal(NodeId(5), Place { base: 3, seen: 9 }, [1, 2]);
            sealer.open(NodeId(6), &token).is_some()
        };
        assert!(!foreign());
        #[cfg(feature = "sim")]
        assert!(planted::with(Some(planted::Bug::ResumeTrustsAnyToken), foreign));
    }
}
