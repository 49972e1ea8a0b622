//! What the cluster's trust rests on: its root and its join tokens, each under a key of its own.
//!
//! Nothing here is checked cryptographically; that is `pki`'s.

use bytes::Bytes;

use super::command::{Answer, TokenRecord};
use super::draft::Draft;
use super::format::{damaged, decode, load};
use super::stop::Stop;
use super::store::{Read, Table};
use crate::codec::wire_struct;
use crate::error::{Refusal, StorageFailed};

const ROOT: &[u8] = b"root";
const TOKENS: &[u8] = b"token/";
/// Just behind every token's key.
const TOKENS_END: &[u8] = b"token0";

/// The cluster's root.
#[derive(Clone, PartialEq, Eq)]
pub struct Root {
    /// The certificate, DER.
    pub cert: Bytes,
    /// The private key, PKCS#8 DER. It must never be shown.
    pub key: Bytes,
}
wire_struct!(Root { cert, key });

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Root").field("cert", &self.cert).finish_non_exhaustive()
    }
}

/// The key of the root's record.
pub fn root_key() -> Bytes {
    Bytes::from_static(ROOT)
}

/// The key of a token's record.
pub fn token_key(id: &str) -> Bytes {
    [TOKENS, id.as_bytes()].concat().into()
}

/// The cluster's root.
pub fn root(view: &dyn Read) -> Result<Root, StorageFailed> {
    load(view, Table::Trust, ROOT)?.ok_or_else(|| damaged(Table::Trust, "the root is missing"))
}

/// The token with that id.
pub fn token(view: &dyn Read, id: &str) -> Result<Option<TokenRecord>, StorageFailed> {
    load(view, Table::Trust, &token_key(id))
}

/// Every token, by id.
pub fn tokens(view: &dyn Read) -> Result<Vec<(String, TokenRecord)>, StorageFailed> {
    view.scan(Table::Trust, TOKENS, Some(TOKENS_END))
        .map(|pair| {
            let (key, value) = pair?;
            let id = String::from_utf8(key[TOKENS.len()..].to_vec())
                .map_err(|_| damaged(Table::Trust, "a token's id is not a text"))?;
            Ok((id, decode(Table::Trust, value)?))
        })
        .collect()
}

/// Stores a token, or removes one.
pub fn set_token(draft: &mut Draft, id: &str, record: Option<&TokenRecord>) -> Result<Answer, Stop> {
    match record {
        Some(record) => draft.overlay.put(Table::Trust, token_key(id), record),
        None if token(draft.view(), id)?.is_none() => {
            let why = format!("no token has the id {id:?}; `raft-kv token ls` lists them");
            return Err(Refusal::invalid("token id", why).into());
        }
        None => draft.overlay.remove(Table::Trust, token_key(id)),
    }
    Ok(Answer::Done)
}
