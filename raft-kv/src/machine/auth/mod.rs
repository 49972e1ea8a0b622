//! Users, roles and permissions: the replicated records, the changes of them, and the one function
//! that says what a caller may do.
//!
//! Every request is asked for here in full, down to the last operation of a nested transaction:
//! at the door on the state that serves it, and again where it is applied. Passwords are only
//! stored here; they are checked at the door.

mod change;
mod query;
mod records;
mod spans;
mod standing;

pub use change::{change, validate};
pub use query::query;
pub use records::{AuthStatus, UserRecord, status, user};
pub(super) use records::{status_key, user_key, users};
pub use standing::{Asked, Standing};

use std::collections::BTreeMap;
use std::rc::Rc;

use super::command::Command;
use super::draft::Draft;
use super::stop::{Settled, Stop, settle};
use super::store::Read;
use crate::error::{AuthRefusal, Refusal};
use crate::planted;
use crate::types::Caller;

/// Whether `caller` may do what is asked, by the users and roles of this view. Total.
pub fn authorize(view: &dyn Read, caller: &Caller, asked: &Asked) -> Settled<()> {
    settle((|| match (caller, asked) {
        (Caller::Full, _) | (_, Asked::Open) => Ok(()),
        // Whoever could give out certificates could be anybody.
        (_, Asked::Trust) if !status(view)?.enabled => {
            Err(Refusal::NotAllowed { role: "client".into() }.into())
        }
        _ => Standing::of(view, caller)?.check(view, asked),
    })())
}

/// As [`authorize`], for a caller that was let in before and whose users or roles may have changed
/// since: only what counts now is looked at.
pub fn still_authorized(view: &dyn Read, caller: &Caller, asked: &Asked) -> Settled<()> {
    match caller {
        Caller::User { name, .. } => {
            let revision = status(view)?.revision;
            authorize(view, &Caller::User { name: name.clone(), revision }, asked)
        }
        _ => authorize(view, caller, asked),
    }
}

/// What is known of callers while a batch is applied: one look at the store for each. Forgotten at each change of users and roles.
#[derive(Default)]
pub struct Known(BTreeMap<Option<String>, Rc<Standing>>);

impl Known {
    /// Users or roles may have changed.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}

/// Refuses a command that its caller may not give at its place in the log.
pub fn admit(draft: &mut Draft, caller: &Caller, command: &Command) -> Result<(), Stop> {
    if matches!(caller, Caller::Full) || planted!(SkipApplyAuth) {
        return Ok(());
    }
    let (name, checked) = match caller {
        Caller::User { name, revision } => (Some(name.clone()), Some(*revision)),
        Caller::Full | Caller::Anonymous | Caller::Bearer { .. } => (None, None),
    };
    let standing = match draft.known.0.get(&name) {
        Some(standing) => standing.clone(),
        None => {
            let standing = Rc::new(Standing::of(draft.view(), caller)?);
            draft.known.0.insert(name, standing.clone());
            standing
        }
    };
    // What is known of a name is of one revision; each command was checked at its own.
    if checked.is_some_and(|checked| standing.is_of_other_revision(checked)) {
        return Err(Refusal::Auth(AuthRefusal::OldRevision).into());
    }
    standing.check(draft.view(), &Asked::Command(command))
}
