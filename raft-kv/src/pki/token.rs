//! Join tokens: `RAFTKV-1-<root digest>-<secret>`, in lowercase base32 without padding.
//!
//! The digest pins the cluster's root, so that a joiner trusts nobody on first use; the secret
//! decides the role. Four bytes of checksum behind the secret tell a mistyped token from a wrong
//! one before anything is sent.

use std::fmt;
use std::str::FromStr;

use rand::RngCore;

use super::RootDigest;
use crate::error::Refusal;

const PREFIX: &str = "RAFTKV";
const VERSION: &str = "1";
const SECRET_BYTES: usize = 21;
const DIGEST_CHARS: usize = 52;
const SECRET_CHARS: usize = 40;
const TOKEN_CHARS: usize = PREFIX.len() + 1 + VERSION.len() + 1 + DIGEST_CHARS + 1 + SECRET_CHARS;
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// The part of a token that only those may know who may join: 168 random bits.
#[derive(Clone)]
pub struct Secret([u8; SECRET_BYTES]);

impl Secret {
    /// Draws a secret from `random`, which must be the system's generator outside of tests.
    pub fn generate(random: &mut dyn RngCore) -> Self {
        let mut bytes = [0; SECRET_BYTES];
        random.fill_bytes(&mut bytes);
        Self(bytes)
    }

    /// Its text, as the cluster keeps it.
    pub fn to_text(&self) -> String {
        encode(&self.0)
    }

    /// Whether it is the secret that is kept as `text`. Takes the same time wherever they differ.
    pub fn matches(&self, text: &str) -> bool {
        let own = self.to_text();
        aws_lc_rs::constant_time::verify_slices_are_equal(own.as_bytes(), text.as_bytes()).is_ok()
    }

    /// The secret whose text is `text`; `None` if it is not the text of one.
    pub fn from_text(text: &str) -> Option<Self> {
        decode(text)?.try_into().ok().map(Self)
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        aws_lc_rs::constant_time::verify_slices_are_equal(&self.0, &other.0).is_ok()
    }
}
impl Eq for Secret {}

impl fmt::Debug for Secret {
    /// Shows nothing of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A join token. [`Display`](fmt::Display) gives its text, secret included.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JoinToken {
    /// The digest of the root that the cluster must prove.
    pub root: RootDigest,
    /// What the joiner proves.
    pub secret: Secret,
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut tail = self.secret.0.to_vec();
        tail.extend(self.checksum());
        write!(f, "{PREFIX}-{VERSION}-{}-{}", encode(&self.root.0), encode(&tail))
    }
}

impl JoinToken {
    fn checksum(&self) -> [u8; 4] {
        crc32c::crc32c_append(crc32c::crc32c(&self.root.0), &self.secret.0).to_be_bytes()
    }
}

impl FromStr for JoinToken {
    type Err = Refusal;

    /// # Errors
    /// [`Refusal::BadToken`] saying whether the text is no token, one of another version, cut
    /// short or damaged. The text itself is never repeated: it may be half a secret.
    fn from_str(text: &str) -> Result<Self, Refusal> {
        let bad = |why: &str| Refusal::BadToken { why: why.into() };
        let text = text.trim();
        let Some(rest) = text.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix('-')) else {
            return Err(bad("it does not start with RAFTKV-; `raft-kv join-token` prints one"));
        };
        let (version, rest) = rest.split_once('-').unwrap_or((rest, ""));
        if version != VERSION {
            return Err(bad("it is of another version; use a token and a raft-kv of one version"));
        }
        if text.len() < TOKEN_CHARS {
            let why = format!("it is cut short: {} characters of {TOKEN_CHARS}", text.len());
            return Err(bad(&format!("{why}; copy it whole")));
        }
        if text.len() > TOKEN_CHARS {
            return Err(bad("it is too long; copy the token and nothing else"));
        }
        let damaged = || bad("it is damaged; copy it again");
        let (digest, tail) = rest.split_once('-').ok_or_else(damaged)?;
        let digest: [u8; 32] = decode(digest).and_then(|bytes| bytes.try_into().ok()).ok_or_else(damaged)?;
        let tail = decode(tail).filter(|tail| tail.len() == SECRET_BYTES + 4).ok_or_else(damaged)?;
        let secret = Secret(tail[..SECRET_BYTES].try_into().expect("that many bytes"));
        let token = Self { root: RootDigest(digest), secret };
        if token.checksum() != tail[SECRET_BYTES..] {
            return Err(damaged());
        }
        Ok(token)
    }
}

pub(super) fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 8 / 5 + 1);
    let (mut bits, mut held) = (0u32, 0);
    for &byte in bytes {
        bits = bits << 8 | u32::from(byte);
        held += 8;
        while held >= 5 {
            held -= 5;
            text.push(char::from(ALPHABET[(bits >> held & 31) as usize]));
        }
    }
    if held > 0 {
        text.push(char::from(ALPHABET[(bits << (5 - held) & 31) as usize]));
    }
    text
}

/// Strict: no other text has the same bytes.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 5 / 8);
    let (mut bits, mut held) = (0u32, 0);
    for letter in text.bytes() {
        let value = ALPHABET.iter().position(|&known| known == letter)?;
        bits = bits << 5 | u32::try_from(value).expect("below 32");
        held += 5;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held & 255) as u8);
        }
    }
    (encode(&bytes) == text).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;

    fn token(seed: u64) -> JoinToken {
        let mut random = rand::rngs::StdRng::seed_from_u64(seed);
        JoinToken { root: RootDigest::of(&seed.to_le_bytes()), secret: Secret::generate(&mut random) }
    }

    fn check(text: &str, expect: &str) {
        let Err(Refusal::BadToken { why }) = text.parse::<JoinToken>() else {
            panic!("{text} was accepted");
        };
        assert!(why.contains(expect), "{text}: {why}");
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        let good = token(1).to_string();
        assert_eq!(good.len(), TOKEN_CHARS);
        check("", "does not start");
        check("SWMTKN-1-abc-def", "does not start");
        check("RAFTKV", "does not start");
        check("RAFTKV-", "another version");
        check(&good.replacen("-1-", "-2-", 1), "another version");
        check(&good[..good.len() - 1], "cut short");
        check("RAFTKV-1-", "cut short");
        check(&format!("{good}a"), "too long");
        check(&good.to_uppercase(), "damaged");
    }

    #[test]
    fn secrets_compare_and_stay_silent() {
        let (one, two) = (token(1), token(2));
        assert!(one.secret.matches(&one.secret.to_text()));
        assert!(!one.secret.matches(&two.secret.to_text()));
        assert!(!one.secret.matches(""));
        assert!(Secret::from_text(&one.secret.to_text()) == Some(one.secret.clone()));
        assert!(Secret::from_text("x").is_none());
        assert!(!format!("{one:?}").contains(&one.secret.to_text()));
    }

    proptest! {
        #[test]
        fn every_token_comes_back(seed: u64) {
            let token = token(seed);
            prop_assert_eq!(token.to_string().parse::<JoinToken>().unwrap(), token);
        }

        #[test]
        fn a_changed_letter_is_noticed(seed: u64, at in 0usize..TOKEN_CHARS, letter in "[ -~]") {
            let text = token(seed).to_string();
            let changed = format!("{}{letter}{}", &text[..at], &text[at + 1..]);
            prop_assume!(changed != text);
            prop_assert!(changed.parse::<JoinToken>().is_err());
        }

        #[test]
        fn no_text_panics(text in "(RAFTKV-1-)?\\PC{0,120}") {
            let _ = text.parse::<JoinToken>();
        }
    }
}
