//! What must always hold, one property a file. Each is plain data in and a verdict out, so that
//! each is tested by itself with good and bad histories.

pub mod changes;
pub mod commits;
pub mod elections;
pub mod history;
pub mod leases;
pub mod logs;
pub mod model;
pub mod points;
pub mod promises;
pub mod space;
pub mod states;
pub mod trust;
pub mod watches;
pub mod witness;

/// What was violated, and how.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    /// The property.
    pub check: &'static str,
    /// What was seen.
    pub detail: String,
}

impl Violation {
    /// A violation of `check`.
    pub fn new(check: &'static str, detail: impl Into<String>) -> Self {
        Self { check, detail: detail.into() }
    }
}

/// Whether a property held.
pub type Verdict = Result<(), Violation>;

/// A verdict that it did not.
pub(super) fn violation(check: &'static str, detail: String) -> Verdict {
    Err(Violation { check, detail })
}
