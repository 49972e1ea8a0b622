//! Keys of 256 bits as people keep them: a prefix that says which kind, and lowercase base32 with a checksum,
//! by which a mistyped key is told from a wrong one. Pure, and it keeps nothing.

use zeroize::Zeroizing;

use super::token::{decode, encode};
use crate::error::Refusal;

/// The text of a key.
pub(super) fn key_to_text(prefix: &str, key: &[u8; 32]) -> String {
    let check = crc32c::crc32c(key).to_be_bytes();
    format!("{prefix}{}", encode(&[&key[..], &check[..]].concat()))
}

/// The key in a text. `what` it is and where one comes from are said where it is none.
pub(super) fn key_from_text(
    prefix: &str,
    text: &str,
    what: &'static str,
    whence: &str,
) -> Result<Zeroizing<[u8; 32]>, Refusal> {
    let bad = |why: &str| Refusal::invalid(what, why);
    let secret = text.trim().strip_prefix(prefix);
    let secret = secret.ok_or_else(|| bad(&format!("it does not begin with {prefix}; {whence}")))?;
    let bytes = decode(secret).filter(|bytes| bytes.len() == 36);
    let bytes = Zeroizing::new(bytes.ok_or_else(|| bad("it is cut short or mistyped"))?);
    let (key, check) = bytes.split_at(32);
    if crc32c::crc32c(key).to_be_bytes() != *check {
        return Err(bad("it is mistyped: its checksum is wrong"));
    }
    Ok(Zeroizing::new(key.try_into().expect("32 bytes")))
}
