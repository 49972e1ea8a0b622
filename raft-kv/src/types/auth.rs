//! Users, roles and permissions, with etcd v3's meaning; and who a caller is.

use super::{KeyRange, NodeId, PasswordHash, Sealed};
use crate::codec::{wire_enum, wire_struct};

/// Who makes a call, as far as the store's own permissions go.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Caller {
    /// The program that holds the member, or another member: no permission is asked.
    #[default]
    Full,
    /// Somebody from outside who named no user: may do everything while authentication is off,
    /// and next to nothing while it is on.
    Anonymous,
    /// A user, proven by a token or by a certificate.
    User {
        /// The name.
        name: String,
        /// The revision of the users and roles that the caller was checked against; a command
        /// that is applied after they changed is refused and must be sent again.
        revision: u64,
    },
    /// A user whose token is of newer users and roles than the member has heard of: it is looked at
    /// when the member has caught up. Never in the log.
    Bearer {
        /// The token.
        token: String,
    },
}
wire_enum!(Caller { 1 => Full, 2 => Anonymous, 3 => User { name, revision }, 4 => Bearer { token } });

/// What a permission allows.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum PermissionKind {
    /// Reading.
    #[default]
    Read,
    /// Writing.
    Write,
    /// Both.
    ReadWrite,
}
wire_enum!(PermissionKind { 0 => Read, 1 => Write, 2 => ReadWrite });

/// One permission of a role.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Permission {
    /// What it allows.
    pub kind: PermissionKind,
    /// On which keys.
    pub range: KeyRange,
}
wire_struct!(Permission { kind, range });

/// A change of users, roles, permissions, or of whether they count.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AuthChange {
    /// From now on permissions count. Needs the user `root` with the role `root`.
    Enable {
        /// The key that signs tokens from now on, drawn at random and sealed by the member that is asked.
        token_key: Sealed,
    },
    /// From now on everybody with a certificate may do everything.
    Disable,
    /// Makes a user.
    UserAdd {
        /// The name; not empty.
        name: String,
        /// The bcrypt hash of the password; `None` for one that proves itself by certificate only.
        password: Option<PasswordHash>,
    },
    /// Removes a user.
    UserDelete {
        /// The name.
        name: String,
    },
    /// Gives a user another password; the tokens it has end.
    UserPassword {
        /// The name.
        name: String,
        /// As in `UserAdd`.
        password: Option<PasswordHash>,
    },
    /// Gives a user a role.
    UserGrant {
        /// The user.
        name: String,
        /// The role.
        role: String,
    },
    /// Takes a role from a user.
    UserRevoke {
        /// The user.
        name: String,
        /// The role.
        role: String,
    },
    /// Makes a role.
    RoleAdd {
        /// The name; not empty.
        role: String,
    },
    /// Removes a role, from its users too.
    RoleDelete {
        /// The name.
        role: String,
    },
    /// Gives a role a permission, or changes the one it has on exactly that range.
    RoleGrant {
        /// The role.
        role: String,
        /// The permission.
        permission: Permission,
    },
    /// Takes the permission on exactly that range from a role.
    RoleRevoke {
        /// The role.
        role: String,
        /// The range.
        range: KeyRange,
    },
}
wire_enum!(AuthChange {
    1 => Enable { token_key }, 2 => Disable, 3 => UserAdd { name, password }, 4 => UserDelete { name },
    5 => UserPassword { name, password }, 6 => UserGrant { name, role }, 7 => UserRevoke { name, role },
    8 => RoleAdd { role }, 9 => RoleDelete { role }, 10 => RoleGrant { role, permission },
    11 => RoleRevoke { role, range },
});

/// A question about users and roles.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AuthQuery {
    /// Whether permissions count.
    Status,
    /// A user's roles.
    User(String),
    /// All users' names.
    Users,
    /// A role's permissions.
    Role(String),
    /// All roles' names.
    Roles,
}
wire_enum!(AuthQuery { 1 => Status, 2 => User(name), 3 => Users, 4 => Role(role), 5 => Roles });

/// The answer to an [`AuthQuery`] of the same place in the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AuthView {
    /// Whether permissions count, and the revision of users and roles.
    Status {
        /// Whether they count.
        enabled: bool,
        /// Counts up with each change of users and roles.
        revision: u64,
    },
    /// Names of roles or users, ascending.
    Names(Vec<String>),
    /// A role's permissions, by range.
    Permissions(Vec<Permission>),
}
wire_enum!(AuthView { 1 => Status { enabled, revision }, 2 => Names(names), 3 => Permissions(permissions) });

/// What can be wrong with a member, cluster-wide.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum AlarmKind {
    /// Raised by hand, as in etcd: nothing that needs space is taken until the alarm is ended by hand.
    NoSpace,
    /// Its state differs from the others'.
    Corrupt,
    /// Its disk is nearly full. Raised by itself and ended by itself; while it votes, nothing that
    /// needs space is taken.
    DiskShort,
}
wire_enum!(AlarmKind { 1 => NoSpace, 2 => Corrupt, 3 => DiskShort });

/// Raises or ends alarms, or lists them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum AlarmRequest {
    /// The alarms there are; of one kind, if named.
    List(Option<AlarmKind>),
    /// Raises one.
    Raise(NodeId, AlarmKind),
    /// Ends one.
    End(NodeId, AlarmKind),
}
wire_enum!(AlarmRequest { 1 => List(kind), 2 => Raise(node, kind), 3 => End(node, kind) });

/// A checksum over the key space of one member: equal on all members at equal revisions.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StateHash {
    /// CRC-32C.
    pub hash: u32,
    /// The revision up to which it counts.
    pub revision: i64,
    /// The oldest readable revision there; -1 before the first compaction.
    pub compacted: i64,
}
wire_struct!(StateHash { hash, revision, compacted });
