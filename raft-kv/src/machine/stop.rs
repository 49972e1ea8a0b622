//! Why a step of the machine ended early: the request's fault or the disk's.

use crate::error::{Refusal, StorageFailed};

/// A refusal leaves the state as it was; a failed store ends the process.
#[derive(Debug)]
pub enum Stop {
    /// The request is at fault.
    Refused(Refusal),
    /// The store failed.
    Failed(StorageFailed),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<StorageFailed> for Stop {
    fn from(failed: StorageFailed) -> Self {
        Self::Failed(failed)
    }
}

/// What public functions return: the store's failure outside, the refusal inside.
pub type Settled<T> = Result<Result<T, Refusal>, StorageFailed>;

/// Sorts the two kinds of wrong apart.
pub fn settle<T>(result: Result<T, Stop>) -> Settled<T> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(Stop::Refused(refusal)) => Ok(Err(refusal)),
        Err(Stop::Failed(failed)) => Err(failed),
    }
}
