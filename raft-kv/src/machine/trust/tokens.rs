//! Join tokens: who may join, as what, how often and until when.

use super::super::draft::Draft;
use super::super::stop::Stop;
use super::super::store::Table;
use super::{token, token_key, tokens};
use crate::error::Refusal;
use crate::limits::{MAX_JOIN_TOKENS, MAX_NAME_BYTES, MAX_SECRET_BYTES};
use crate::types::{Role, Sealed, TokenRecord};

/// The ids of the tokens that were made with the cluster begin with this.
const DEFAULT: &str = "default-";

fn bad(why: &str) -> Stop {
    Refusal::BadToken { why: why.into() }.into()
}

fn not_found(id: &str) -> Stop {
    Refusal::invalid("token id", format!("no token has the id {id:?}; `raft-kv token ls` lists them")).into()
}

pub(super) fn validate(id: &str, token: &TokenRecord) -> Result<(), Refusal> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || c == '.';
    if id.is_empty() || id.len() > MAX_NAME_BYTES || !id.chars().all(plain) {
        return Err(Refusal::invalid("token id", "it must be 1 to 128 letters, digits, - _ and ."));
    }
    if token.label.chars().any(char::is_control) {
        return Err(Refusal::invalid("token label", "it has a character that can't be printed"));
    }
    if token.label.len() > MAX_NAME_BYTES {
        return Err(Refusal::invalid("token label", format!("it is longer than {MAX_NAME_BYTES} bytes")));
    }
    if token.secret.0.len() > MAX_SECRET_BYTES {
        return Err(Refusal::invalid("token secret", "it is too long"));
    }
    Ok(())
}

pub(super) fn create(draft: &mut Draft, id: &str, record: &TokenRecord, now: i64) -> Result<(), Stop> {
    if token(draft.view(), id)?.is_some() {
        return Err(Refusal::invalid("token id", format!("there is a token {id:?} already")).into());
    }
    // Those that can't be used any more make room.
    for (old, record) in tokens(draft.view())? {
        if record.expires <= now || record.uses == Some(0) {
            draft.overlay.remove(Table::Trust, token_key(&old));
        }
    }
    if tokens(draft.view())?.len() >= MAX_JOIN_TOKENS {
        let why = format!("there are {MAX_JOIN_TOKENS} already; revoke those that are not needed");
        return Err(Refusal::invalid("tokens", why).into());
    }
    draft.overlay.put(Table::Trust, token_key(id), record);
    Ok(())
}

pub(super) fn rotate(draft: &mut Draft, id: &str, secret: &Sealed, now: i64) -> Result<(), Stop> {
    let record = token(draft.view(), id)?.ok_or_else(|| not_found(id))?;
    let secret = if crate::planted!(KeepOldSecret) { record.secret.clone() } else { secret.clone() };
    let record = TokenRecord { secret, created: now, ..record };
    draft.overlay.put(Table::Trust, token_key(id), &record);
    Ok(())
}

pub(super) fn revoke(draft: &mut Draft, id: &str) -> Result<(), Stop> {
    token(draft.view(), id)?.ok_or_else(|| not_found(id))?;
    if id.starts_with(DEFAULT) {
        let why = "it is one of the two that every cluster has; `raft-kv token rotate` makes it useless to who has it";
        return Err(Refusal::invalid("token id", why).into());
    }
    draft.overlay.remove(Table::Trust, token_key(id));
    Ok(())
}

/// Takes one use of a token for a node of `role`. It is not given back if what follows fails: whether
/// that was done may be unknown, and a use given back twice would let in one node too many.
pub(super) fn take(draft: &mut Draft, id: &str, role: Role, now: i64) -> Result<(), Stop> {
    let Some(record) = token(draft.view(), id)? else {
        return Err(bad("it was revoked; ask for another"));
    };
    if record.role != role {
        return Err(bad("it is for another role"));
    }
    if record.expires <= now {
        return Err(bad("it has expired; ask for another"));
    }
    match record.uses {
        None => {}
        Some(0) => return Err(bad("it has been used as often as it may be; ask for another")),
        Some(left) => {
            let left = if crate::planted!(ForgetUse) { left } else { left - 1 };
            let record = TokenRecord { uses: Some(left), ..record };
            draft.overlay.put(Table::Trust, token_key(id), &record);
        }
    }
    Ok(())
}
