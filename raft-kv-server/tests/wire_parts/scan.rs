//! Looks for secrets in bytes, in every form in which they could have been written.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// What is shorter is found by chance.
const SHORTEST: usize = 12;

/// What must not be found, by what it is.
#[derive(Clone, Default)]
pub struct Secrets(Vec<(String, Vec<u8>)>);

impl Secrets {
    /// Adds one. Of a long one, the beginning and the end are looked for: a packet may end in it.
    pub fn add(&mut self, what: impl Into<String>, secret: impl AsRef<[u8]>) {
        let (what, secret) = (what.into(), secret.as_ref());
        assert!(secret.len() >= SHORTEST, "{what} is too short to be looked for");
        let long = secret.len().min(32);
        for part in [&secret[..long], &secret[secret.len() - long..]] {
            if !self.0.iter().any(|(_, known)| known == part) {
                self.0.push((what.clone(), part.to_vec()));
            }
        }
    }

    /// A private key in PKCS #8: what is secret in it.
    pub fn add_key(&mut self, what: impl Into<String>, der: &[u8]) {
        let mark = [0x02, 0x01, 0x01, 0x04, 0x20];
        let at = der.windows(5).position(|part| part == mark).expect("an EC key") + 5;
        self.add(what, &der[at..at + 32]);
    }

    /// A join token: its secret part, as text and as bytes.
    pub fn add_token(&mut self, what: &str, token: &str) {
        let secret = token.rsplit('-').next().expect("one part at least");
        self.add(format!("{what} (text)"), &secret[..32]);
        self.add(format!("{what} (bytes)"), &from_base32(secret)[..20]);
    }

    /// Those for which `keep` holds.
    pub fn only(&self, keep: impl Fn(&str) -> bool) -> Self {
        Self(self.0.iter().filter(|(what, _)| keep(what)).cloned().collect())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(what, secret)| (what.as_str(), secret.as_slice()))
    }

    /// What finds them.
    pub fn scanner(&self) -> Scanner {
        let mut scanner = Scanner { needles: Vec::new(), beginning: vec![Vec::new(); 65_536] };
        for (what, secret) in &self.0 {
            for (form, needle) in forms(secret) {
                let begins = usize::from(needle[0]) << 8 | usize::from(needle[1]);
                scanner.beginning[begins].push(scanner.needles.len());
                scanner.needles.push((format!("{what}, {form}"), needle));
            }
        }
        scanner
    }
}

fn from_base32(text: &str) -> Vec<u8> {
    let (mut all, mut bits, mut held) = (Vec::new(), 0, 0u32);
    for symbol in text.bytes() {
        let value = b"abcdefghijklmnopqrstuvwxyz234567".iter().position(|known| *known == symbol);
        held = held << 5 | u32::try_from(value.expect("base32")).expect("below 32");
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            all.push(u8::try_from(held >> bits & 0xff).expect("a byte"));
        }
    }
    all
}

/// A secret in each form in which it could be written.
pub fn forms(secret: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let listed: Vec<String> = secret.iter().map(u8::to_string).collect();
    let mut all = vec![
        ("as it is", secret.to_vec()),
        ("in HEX", hex.to_uppercase().into_bytes()),
        ("in hex", hex.into_bytes()),
        // As `Debug` shows bytes.
        ("as a list", listed.join(", ").into_bytes()),
    ];
    for (shift, unclear) in [(0, 0), (1, 2), (2, 3)] {
        // Where it begins in a group of three is not known; what depends on its neighbours is left out.
        let moved = [&vec![0; shift][..], secret].concat();
        let whole = &moved[..moved.len() / 3 * 3];
        all.push(("in base64", STANDARD_NO_PAD.encode(whole).as_bytes()[unclear..].to_vec()));
        all.push(("in base64 for URLs", URL_SAFE_NO_PAD.encode(whole).as_bytes()[unclear..].to_vec()));
    }
    all
}

pub struct Scanner {
    needles: Vec<(String, Vec<u8>)>,
    /// Which needles begin with these two bytes.
    beginning: Vec<Vec<usize>>,
}

impl Scanner {
    /// What is in `bytes`.
    pub fn find(&self, bytes: &[u8]) -> Option<&str> {
        for at in 0..bytes.len().saturating_sub(1) {
            let begins = usize::from(bytes[at]) << 8 | usize::from(bytes[at + 1]);
            let found =
                self.beginning[begins].iter().find(|one| bytes[at..].starts_with(&self.needles[**one].1));
            if let Some(found) = found {
                return Some(&self.needles[*found].0);
            }
        }
        None
    }
}
