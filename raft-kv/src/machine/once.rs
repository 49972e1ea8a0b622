//! Answers kept for repeats: a request that names itself is done at most once, whatever its
//! caller, the network or a change of leader does to it.
//!
//! A refusal is kept like any answer, else a late duplicate could do what its caller was told
//! had not been done. Only the newest answer of a client is kept, and of so many clients; the
//! one that was used the longest ago goes first, which every member sees the same.

use bytes::Bytes;

use super::command::Answer;
use super::draft::Draft;
use super::format::{load, meta, tagged};
use super::stop::Stop;
use super::store::Table;
use crate::codec::{Wire, wire_struct};
use crate::error::{AuthRefusal, Refusal, StorageFailed};
use crate::limits::{MAX_ONCE_ANSWER_BYTES, MAX_ONCE_CLIENTS};
use crate::planted;
use crate::types::{OnceId, Revision};

/// The revision right after a request, and what it was answered.
pub type Answered = (Revision, Result<Answer, Refusal>);

/// The newest answer of a client.
struct Kept {
    seq: u64,
    /// The user it was done for; nobody else is told.
    owner: String,
    /// Where it stands in the order of use.
    used: u64,
    revision: Revision,
    result: Result<Answer, Refusal>,
}
wire_struct!(Kept { seq, owner, used, revision, result });

/// How many clients are kept, and the clock of their use.
#[derive(Default)]
struct Clock {
    clients: u64,
    used: u64,
}
wire_struct!(Clock { clients, used });

fn client_key(client: u64) -> Bytes {
    tagged(0, client)
}

fn used_key(used: u64) -> Bytes {
    tagged(1, used)
}

/// The answer where this request or a newer one of its client was done already, if for the same
/// user.
pub fn repeated(draft: &Draft, once: OnceId, owner: &str) -> Result<Option<Answered>, StorageFailed> {
    let kept: Option<Kept> = load(draft.view(), Table::Once, &client_key(once.client))?;
    Ok(match kept {
        Some(kept) if kept.owner != owner => Some((draft.revision, Err(Refusal::Auth(AuthRefusal::Denied)))),
        Some(kept) if kept.seq == once.seq && !planted!(RepeatOnce) => Some((kept.revision, kept.result)),
        Some(kept) if kept.seq > once.seq => {
            let overtaken = Refusal::OnceOvertaken { seq: once.seq, newest: kept.seq };
            Some((draft.revision, Err(overtaken)))
        }
        _ => None,
    })
}

/// Refuses an answer that is too large to be kept.
pub fn check_answer(answer: &Answer) -> Result<(), Stop> {
    if answer.to_bytes().len() > MAX_ONCE_ANSWER_BYTES {
        let why = format!(
            "its answer has more than {MAX_ONCE_ANSWER_BYTES} bytes and can't be kept for repeats; \
             ask for less in it, or send it without a name"
        );
        return Err(Refusal::invalid("request name", why).into());
    }
    Ok(())
}

/// Keeps the outcome of a request that was done now, and forgets the oldest client if full.
pub fn keep(
    draft: &mut Draft,
    once: OnceId,
    owner: &str,
    revision: Revision,
    result: &Result<Answer, Refusal>,
) -> Result<(), StorageFailed> {
    let mut clock: Clock = load(draft.view(), Table::Meta, meta::ONCE)?.unwrap_or_default();
    let before: Option<Kept> = load(draft.view(), Table::Once, &client_key(once.client))?;
    match before {
        Some(before) => draft.overlay.remove(Table::Once, used_key(before.used)),
        None if clock.clients >= MAX_ONCE_CLIENTS => forget_oldest(draft)?,
        None => clock.clients += 1,
    }
    clock.used += 1;
    let owner = owner.to_owned();
    let kept = Kept { seq: once.seq, owner, used: clock.used, revision, result: result.clone() };
    draft.overlay.put(Table::Once, client_key(once.client), &kept);
    draft.overlay.put(Table::Once, used_key(clock.used), &once.client);
    draft.overlay.put(Table::Meta, meta::ONCE, &clock);
    Ok(())
}

fn forget_oldest(draft: &mut Draft) -> Result<(), StorageFailed> {
    let oldest = draft.view().scan(Table::Once, &used_key(0), None).next().transpose()?;
    let (key, client) = oldest.expect("a full table has an oldest client");
    let client: u64 = super::format::decode(Table::Once, client)?;
    draft.overlay.remove(Table::Once, key);
    draft.overlay.remove(Table::Once, client_key(client));
    Ok(())
}
