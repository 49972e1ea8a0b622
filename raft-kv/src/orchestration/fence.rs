//! A leader's right to write: taken once when its leadership begins, compared in each of its transactions, so that
//! a stale leader's writes are refused however late they come.

use super::layout;
use super::store::Store;
use crate::error::{Error, NotDone, Refusal};
use crate::limits::MAX_ORCHESTRATION_TRIES;
use crate::types::{
    Compare, CompareOp, CompareTarget, KeyRange, PutRequest, RangeRequest, Revision, TxnOp, TxnRequest,
};

/// See the module. Good until a later term's is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fence {
    /// The term of the leadership.
    pub term: u64,
    revision: Revision,
}

impl Fence {
    /// Takes the fence for a term; again for the same term gives the same.
    ///
    /// # Errors
    /// [`Refusal::Fenced`] where a later term has it, and the store's.
    pub async fn take<S: Store>(store: &S, term: u64) -> Result<Self, Error> {
        for _ in 0..MAX_ORCHESTRATION_TRIES {
            let (held, revision) = held(store).await?;
            if held == term && revision != 0 {
                return Ok(Self { term, revision });
            }
            if held > term {
                return Err(Refusal::Fenced { term, held }.into());
            }
            let value = term.to_le_bytes().to_vec().into();
            let put = PutRequest { key: layout::fence(), value, ..Default::default() };
            let compares = vec![at(revision)];
            let request = TxnRequest { compares, success: vec![TxnOp::Put(put)], ..Default::default() };
            let (header, answer) = store.txn(request).await?;
            if answer.succeeded {
                return Ok(Self { term, revision: header.revision });
            }
        }
        Err(Error::NotDone(NotDone::Busy))
    }

    /// What each transaction of its leader compares.
    pub(super) fn compare(self) -> Compare {
        at(self.revision)
    }

    /// Refuses where a later one was taken.
    pub(super) async fn check<S: Store>(self, store: &S) -> Result<(), Error> {
        let (held, revision) = held(store).await?;
        if revision == self.revision { Ok(()) } else { Err(Refusal::Fenced { term: self.term, held }.into()) }
    }
}

fn at(revision: Revision) -> Compare {
    let target = CompareTarget::Mod(revision);
    Compare { range: KeyRange::key(layout::fence()), op: CompareOp::Equal, target }
}

/// The newest term and the revision that took it; zeros for none.
async fn held<S: Store>(store: &S) -> Result<(u64, Revision), Error> {
    let request = RangeRequest { range: KeyRange::key(layout::fence()), ..Default::default() };
    let (_, found) = store.range(request).await?;
    let Some(kv) = found.kvs.first() else { return Ok((0, 0)) };
    let Ok(term) = <[u8; 8]>::try_from(kv.value.as_ref()) else {
        return Err(Refusal::Malformed { what: crate::types::readable(&kv.key) }.into());
    };
    Ok((u64::from_le_bytes(term), kv.mod_revision))
}
