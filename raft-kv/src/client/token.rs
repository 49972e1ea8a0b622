//! Tokens: proof of a password that was checked, for a while, on every member alike.
//!
//! A token holds all that is needed, signed with a key that only members have, so that no member
//! keeps any. It ends by time, and when its user's password changes, its user goes, or permissions
//! are turned off. It must never be believed before its signature is checked.

use std::time::{Duration, SystemTime};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::codec::{Wire, wire_struct};
use crate::limits::{MAX_TOKEN_BYTES, TOKEN_VALIDITY};

/// Told apart from other kinds of tokens, and from later versions of this one.
const PREFIX: &str = "raftkv1.";

/// What a token says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Claims {
    /// The user.
    pub(super) user: String,
    /// The revision of users and roles at which the password last changed.
    pub(super) password_revision: u64,
    /// The revision of users and roles when it was made.
    pub(super) revision: u64,
    /// Until when it is valid, in seconds since 1970.
    pub(super) ends: u64,
}
wire_struct!(Claims { user, password_revision, revision, ends });

/// A token that is not checked yet.
pub(super) struct Token {
    signed: bytes::Bytes,
    signature: Vec<u8>,
    /// What it says of itself.
    pub(super) claims: Claims,
}

/// Seconds since 1970 at which a token made at `now` ends.
pub(super) fn end_of_one_made(now: SystemTime) -> u64 {
    seconds(now + TOKEN_VALIDITY)
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

/// The token that says `claims`.
pub(super) fn sign(key: &[u8], claims: &Claims) -> String {
    let claims = claims.to_bytes();
    let signature = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), &claims);
    format!("{PREFIX}{}.{}", URL_SAFE_NO_PAD.encode(&claims), URL_SAFE_NO_PAD.encode(signature))
}

impl Token {
    /// Reads a token; `None` where it can't be one.
    pub(super) fn read(text: &str) -> Option<Self> {
        if text.len() > MAX_TOKEN_BYTES {
            return None;
        }
        let (claims, signature) = text.strip_prefix(PREFIX)?.split_once('.')?;
        let signed: bytes::Bytes = URL_SAFE_NO_PAD.decode(claims).ok()?.into();
        let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
        let claims = Claims::from_bytes(signed.clone()).ok()?;
        Some(Self { signed, signature, claims })
    }

    /// Whether `key` signed it and its time is not over.
    pub(super) fn is_valid(&self, key: &[u8], now: SystemTime) -> bool {
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        hmac::verify(&key, &self.signed, &self.signature).is_ok() && seconds(now) < self.claims.ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;
    const KEY: &[u8] = &[1; 32];

    fn token() -> String {
        let user = "alice".to_owned();
        sign(KEY, &Claims { user, password_revision: 3, revision: 5, ends: end_of_one_made(NOW) })
    }

    #[test]
    fn a_token_says_who_until_its_time_is_over() {
        let token = Token::read(&token()).unwrap();
        assert_eq!(token.claims.user, "alice");
        assert!(token.is_valid(KEY, NOW));
        assert!(token.is_valid(KEY, NOW + TOKEN_VALIDITY - Duration::from_secs(1)));
        assert!(!token.is_valid(KEY, NOW + TOKEN_VALIDITY));
        assert!(!token.is_valid(&[2; 32], NOW));
        assert!(!token.is_valid(b"", NOW));
    }

    #[test]
    fn a_token_that_was_changed_anywhere_is_none() {
        let good = token();
        for at in 0..good.len() {
            for letter in ["A", "B", ".", ""] {
                let bent = format!("{}{letter}{}", &good[..at], &good[at + 1..]);
                let valid = Token::read(&bent).is_some_and(|token| token.is_valid(KEY, NOW));
                assert!(bent == good || !valid, "{bent}");
            }
        }
        for none in ["", "raftkv1.", "raftkv1..", &"x".repeat(MAX_TOKEN_BYTES + 1), &good[8..]] {
            assert!(Token::read(none).is_none(), "{none}");
        }
    }
}
