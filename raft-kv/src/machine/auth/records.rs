//! The records: whether permissions count, users, roles. They lie beside the cluster's trust, each
//! under a key of its own, and are part of what members compare.

use bytes::Bytes;

use crate::codec::wire_struct;
use crate::error::StorageFailed;
use crate::machine::format::{decode, load};
use crate::machine::store::{Read, Table};
use crate::types::{Permission, Sealed};

const STATUS: &[u8] = b"auth";
const USERS: &[u8] = b"user/";
/// Just behind every user's key.
const USERS_END: &[u8] = b"user0";
const ROLES: &[u8] = b"role/";
/// Just behind every role's key.
const ROLES_END: &[u8] = b"role0";

/// The user and the role that may do everything.
pub const ROOT: &str = "root";

/// Whether permissions count.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthStatus {
    /// Whether they do.
    pub enabled: bool,
    /// Counts up with each change of users, roles, or of whether they count; 1 at first.
    pub revision: u64,
    /// Signs tokens. Drawn anew at each enabling; it must never be shown.
    pub token_key: Sealed,
    /// How many users there are.
    pub users: u64,
    /// How many roles there are.
    pub roles: u64,
}
wire_struct!(AuthStatus { enabled, revision, token_key, users, roles });

impl Default for AuthStatus {
    fn default() -> Self {
        Self { enabled: false, revision: 1, token_key: Sealed::default(), users: 0, roles: 0 }
    }
}

/// A user.
#[derive(Clone, PartialEq, Eq)]
pub struct UserRecord {
    /// The bcrypt hash of the password, sealed; none for one that proves itself by certificate alone.
    pub password: Option<Sealed>,
    /// The revision of users and roles at which the password last changed: older tokens have ended.
    pub password_revision: u64,
    /// Names of roles, ascending.
    pub roles: Vec<String>,
}
wire_struct!(UserRecord { password, password_revision, roles });

impl UserRecord {
    /// Whether it may do everything.
    pub fn is_root(&self) -> bool {
        self.roles.iter().any(|role| role == ROOT)
    }
}

/// A role.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct RoleRecord {
    /// By range; no range twice.
    pub permissions: Vec<Permission>,
}
wire_struct!(RoleRecord { permissions });

/// The key of the status.
pub fn status_key() -> Bytes {
    Bytes::from_static(STATUS)
}

/// The key of a user's record.
pub fn user_key(name: &str) -> Bytes {
    [USERS, name.as_bytes()].concat().into()
}

/// The key of a role's record.
pub fn role_key(name: &str) -> Bytes {
    [ROLES, name.as_bytes()].concat().into()
}

/// Whether permissions count.
pub fn status(view: &dyn Read) -> Result<AuthStatus, StorageFailed> {
    Ok(load(view, Table::Trust, STATUS)?.unwrap_or_default())
}

/// The user of that name.
pub fn user(view: &dyn Read, name: &str) -> Result<Option<UserRecord>, StorageFailed> {
    load(view, Table::Trust, &user_key(name))
}

/// The role of that name.
pub fn role(view: &dyn Read, name: &str) -> Result<Option<RoleRecord>, StorageFailed> {
    load(view, Table::Trust, &role_key(name))
}

/// Every user, by name.
pub fn users(view: &dyn Read) -> Result<Vec<(String, UserRecord)>, StorageFailed> {
    view.scan(Table::Trust, USERS, Some(USERS_END))
        .map(|pair| {
            let (key, value) = pair?;
            Ok((name_in(&key, USERS), decode(Table::Trust, value)?))
        })
        .collect()
}

/// The names of all users, or of all roles, ascending.
pub fn names(view: &dyn Read, of_users: bool) -> Result<Vec<String>, StorageFailed> {
    let (from, to) = if of_users { (USERS, USERS_END) } else { (ROLES, ROLES_END) };
    view.scan(Table::Trust, from, Some(to)).map(|pair| Ok(name_in(&pair?.0, from))).collect()
}

/// Keys are made of texts, so none is lost here.
fn name_in(key: &Bytes, prefix: &[u8]) -> String {
    String::from_utf8_lossy(&key[prefix.len()..]).into_owned()
}
