//! What one caller may do, and everything that can be asked for.
//!
//! Both lists are exhaustive: a new command or a new operation does not compile until it says here
//! what it needs.

use super::records::{ROOT, role, status, user};
use super::spans::Spans;
use crate::error::{AuthRefusal, Refusal, StorageFailed};
use crate::machine::command::Command;
use crate::machine::lease;
use crate::machine::stop::Stop;
use crate::machine::store::Read;
use crate::planted;
use crate::types::{
    Caller, DeleteRequest, KeyRange, LeaseId, Permission, PermissionKind, PointChange, PutRequest, TxnOp,
    TxnRequest, point_range,
};

/// What is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Asked<'a> {
    /// Nothing that needs a name.
    Open,
    /// What every user may do.
    Named,
    /// What only root may do.
    Root,
    /// What only the program that holds a member may do, or root while permissions count: everything
    /// about certificates and tokens.
    Trust,
    /// A change of the store.
    Command(&'a Command),
    /// Reading and writing every key.
    Everything,
    /// Reading keys.
    Range(&'a KeyRange),
    /// Reading keys in a transaction.
    ReadTxn(&'a TxnRequest),
    /// Following keys: their values, and those before.
    Watch(&'a KeyRange),
    /// Reading which keys end with a lease.
    LeaseKeys(LeaseId),
    /// Reading a user's roles: its own, or root.
    User(&'a str),
    /// Reading a role's permissions: one's own role, or root.
    Role(&'a str),
}

/// What one caller may do, at one revision of users and roles.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    revision: u64,
    rights: Rights,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Rights {
    /// Permissions do not count, or not for this caller.
    Off,
    /// Everything.
    Root,
    /// Nothing, because no user is named.
    Nobody,
    /// Nothing, because there is no such user.
    Stranger,
    /// What the roles allow together.
    User { name: String, roles: Vec<String>, read: Spans, write: Spans },
}

fn denied<T>() -> Result<T, Stop> {
    Err(Refusal::Auth(AuthRefusal::Denied).into())
}

impl Standing {
    /// What a caller may do by the users and roles of this view.
    ///
    /// # Errors
    /// [`AuthRefusal::OldRevision`] for a user that was checked against other users and roles.
    pub fn of(view: &dyn Read, caller: &Caller) -> Result<Self, Stop> {
        let status = status(view)?;
        let revision = status.revision;
        let rights = match caller {
            Caller::Full => Rights::Off,
            _ if !status.enabled => Rights::Off,
            Caller::Anonymous => Rights::Nobody,
            // The door resolves tokens; none comes further.
            Caller::Bearer { .. } => return Err(Refusal::Auth(AuthRefusal::InvalidToken).into()),
            Caller::User { revision: checked, .. } if *checked != revision => {
                return Err(Refusal::Auth(AuthRefusal::OldRevision).into());
            }
            Caller::User { name, .. } => rights(view, name)?,
        };
        Ok(Self { revision, rights })
    }

    /// Whether permissions count and those checked at `revision` are not these.
    pub fn is_of_other_revision(&self, revision: u64) -> bool {
        self.rights != Rights::Off && self.revision != revision
    }

    /// Refuses what this caller may not do. Leases are looked up in `view`.
    pub fn check(&self, view: &dyn Read, asked: &Asked) -> Result<(), Stop> {
        let may = match &self.rights {
            _ if *asked == Asked::Open => return Ok(()),
            Rights::Off | Rights::Root => return Ok(()),
            Rights::Nobody => return Err(Refusal::Auth(AuthRefusal::NoUser).into()),
            Rights::Stranger => return denied(),
            Rights::User { name, roles, read, write } => May { view, name, roles, read, write },
        };
        if may.all(asked)? { Ok(()) } else { denied() }
    }
}

fn rights(view: &dyn Read, name: &str) -> Result<Rights, StorageFailed> {
    let Some(user) = user(view, name)? else { return Ok(Rights::Stranger) };
    if user.is_root() {
        return Ok(Rights::Root);
    }
    let mut permissions: Vec<Permission> = Vec::new();
    for name in user.roles.iter().filter(|name| *name != ROOT) {
        permissions.extend(role(view, name)?.unwrap_or_default().permissions);
    }
    let kinds = |wanted: PermissionKind| {
        let fits = move |permission: &&Permission| {
            permission.kind == wanted || permission.kind == PermissionKind::ReadWrite
        };
        Spans::of(permissions.iter().filter(fits).map(|permission| &permission.range))
    };
    let (read, write) = (kinds(PermissionKind::Read), kinds(PermissionKind::Write));
    Ok(Rights::User { name: name.to_owned(), roles: user.roles, read, write })
}

/// A user's rights against a state.
struct May<'a> {
    view: &'a dyn Read,
    name: &'a str,
    roles: &'a [String],
    read: &'a Spans,
    write: &'a Spans,
}

impl May<'_> {
    fn all(&self, asked: &Asked) -> Result<bool, StorageFailed> {
        Ok(match asked {
            Asked::Open | Asked::Named => true,
            Asked::Root | Asked::Trust => false,
            Asked::Everything => self.everything(),
            Asked::Command(command) => self.command(command)?,
            Asked::Range(range) | Asked::Watch(range) => self.read.cover(range),
            Asked::ReadTxn(request) => self.txn(request)?,
            Asked::LeaseKeys(id) => self.leased(*id, self.read)?,
            Asked::User(name) => *name == self.name,
            Asked::Role(name) => self.roles.iter().any(|role| role == name),
        })
    }

    fn command(&self, command: &Command) -> Result<bool, StorageFailed> {
        Ok(match command {
            Command::Put(request) => self.put(request)?,
            Command::Delete(request) => self.delete(request),
            Command::Txn(request) => self.txn(request)?,
            Command::Compact { .. } => self.everything(),
            Command::Point(PointChange::Rollback { prefix, .. }) => {
                let range = point_range(prefix.as_ref());
                self.read.cover(&range) && (self.write.cover(&range) || planted!(RollbackByReader))
            }
            // What one pins or removes concerns everybody's history, as compaction does.
            Command::Point(_) => self.everything(),
            Command::LeaseRevoke { id } => self.leased(*id, self.write)?,
            Command::LeaseGrant { .. } | Command::Noop => true,
            Command::LeaseExpire { .. }
            | Command::MemberUpdate(_)
            | Command::Trust(_)
            | Command::Auth(_)
            | Command::Alarm(_)
            | Command::Quota { .. }
            | Command::Seen { .. }
            | Command::RaiseRevision { .. }
            | Command::As { .. }
            | Command::From { .. } => false,
        })
    }

    fn everything(&self) -> bool {
        self.read.is_everything() && self.write.is_everything()
    }

    /// Every compare, and every operation of both branches: which one runs is not known before.
    fn txn(&self, request: &TxnRequest) -> Result<bool, StorageFailed> {
        if !request.compares.iter().all(|compare| self.read.cover(&compare.range)) {
            return Ok(false);
        }
        for op in request.success.iter().chain(&request.failure) {
            let may = match op {
                TxnOp::Range(request) => self.read.cover(&request.range),
                TxnOp::Put(request) => self.put(request)?,
                TxnOp::Delete(request) => self.delete(request),
                TxnOp::Txn(_) if planted!(SkipNestedAuth) => true,
                TxnOp::Txn(nested) => self.txn(nested)?,
            };
            if !may {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A key put on a lease will end with it, and so will the lease's other keys with whoever can
    /// end it: all of them must be writable.
    fn put(&self, request: &PutRequest) -> Result<bool, StorageFailed> {
        let key = KeyRange::key(request.key.clone());
        if !self.write.cover(&key) || (request.prev_kv && !self.read.cover(&key)) {
            return Ok(false);
        }
        if request.lease == 0 || planted!(SkipLeaseAuth) {
            return Ok(true);
        }
        self.leased(request.lease, self.write)
    }

    fn delete(&self, request: &DeleteRequest) -> bool {
        self.write.cover(&request.range) && (!request.prev_kv || self.read.cover(&request.range))
    }

    /// Whether all keys that end with the lease now are among `spans`.
    fn leased(&self, id: LeaseId, spans: &Spans) -> Result<bool, StorageFailed> {
        if spans.is_everything() {
            return Ok(true);
        }
        let keys = lease::keys(self.view, id)?;
        Ok(keys.into_iter().all(|key| spans.cover(&KeyRange::key(key))))
    }
}
