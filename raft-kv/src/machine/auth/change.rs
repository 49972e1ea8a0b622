//! Changes of users, roles, permissions, and of whether they count, with etcd's rules.
//!
//! What the user root needs can't be taken while permissions count, so nobody is locked out. A
//! change that changes nothing makes no new revision.

use bytes::Bytes;

use super::records::{
    AuthStatus, ROOT, RoleRecord, UserRecord, role, role_key, status, status_key, user, user_key, users,
};
use crate::error::{AuthRefusal, Refusal};
use crate::limits::{
    MAX_AUTH_NAME_BYTES, MAX_BCRYPT_COST, MAX_KEY_BYTES, MAX_ROLE_PERMISSIONS, MAX_ROLES, MAX_USER_ROLES,
    MAX_USERS, TOKEN_KEY_BYTES,
};
use crate::machine::command::Answer;
use crate::machine::draft::Draft;
use crate::machine::stop::Stop;
use crate::machine::store::Table;
use crate::types::{AuthChange, KeyRange, Permission};

/// Whether the change made a difference.
type Changed = Result<bool, Stop>;

fn refused<T>(why: AuthRefusal) -> Result<T, Stop> {
    Err(Refusal::Auth(why).into())
}

/// Refuses a change that is out of its bounds, whatever users and roles there are.
pub fn validate(change: &AuthChange) -> Result<(), Refusal> {
    let names: &[&String] = match change {
        AuthChange::Enable { token_key } if token_key.len() != TOKEN_KEY_BYTES => {
            return Err(Refusal::invalid("token key", format!("it does not have {TOKEN_KEY_BYTES} bytes")));
        }
        AuthChange::Enable { .. } | AuthChange::Disable => &[],
        AuthChange::UserAdd { name, password } | AuthChange::UserPassword { name, password } => {
            password.as_deref().map_or(Ok(()), check_hash)?;
            &[name]
        }
        AuthChange::UserDelete { name } => &[name],
        AuthChange::UserGrant { name, role } | AuthChange::UserRevoke { name, role } => &[name, role],
        AuthChange::RoleAdd { role } | AuthChange::RoleDelete { role } => &[role],
        AuthChange::RoleGrant { role, permission } => {
            check_range(&permission.range)?;
            &[role]
        }
        AuthChange::RoleRevoke { role, range } => {
            check_len(range)?;
            &[role]
        }
    };
    match names.iter().find(|name| name.len() > MAX_AUTH_NAME_BYTES) {
        Some(name) => {
            let why = format!("it has {} bytes, the limit is {MAX_AUTH_NAME_BYTES}", name.len());
            Err(Refusal::invalid("name", why))
        }
        None => Ok(()),
    }
}

/// Whether it has the form of a bcrypt hash, of a cost that can be borne.
fn check_hash(hash: &str) -> Result<(), Refusal> {
    let bytes = hash.as_bytes();
    let letter = |byte: &u8| byte.is_ascii_alphanumeric() || b"./".contains(byte);
    let cost = hash.get(4..6).and_then(|cost| cost.parse::<u32>().ok()).unwrap_or(0);
    let fits = bytes.len() == 60
        && bytes.starts_with(b"$2")
        && b"abxy".contains(&bytes[2])
        && bytes[3] == b'$'
        && bytes[6] == b'$'
        && bytes[7..].iter().all(letter);
    if !fits || !(4..=MAX_BCRYPT_COST).contains(&cost) {
        let why = format!("it is not a bcrypt hash of a cost from 4 to {MAX_BCRYPT_COST}");
        return Err(Refusal::invalid("password's hash", why));
    }
    Ok(())
}

fn check_len(range: &KeyRange) -> Result<(), Refusal> {
    let len = range.key.len().max(range.end.len());
    if len > MAX_KEY_BYTES {
        return Err(Refusal::KeyTooLarge { len: len as u64, max: MAX_KEY_BYTES as u64 });
    }
    Ok(())
}

/// A permission is for at least one key.
fn check_range(range: &KeyRange) -> Result<(), Refusal> {
    check_len(range)?;
    let open = range.is_single() || range.end.as_ref() == b"\0";
    if range.key.is_empty() || !(open || range.key < range.end) {
        return Err(Refusal::Auth(AuthRefusal::RootNeeded));
    }
    Ok(())
}

/// Carries a change out.
pub fn change(draft: &mut Draft, change: &AuthChange) -> Result<Answer, Stop> {
    let mut status = status(draft.view())?;
    let changed = match change {
        AuthChange::Enable { token_key } => enable(draft, &mut status, token_key)?,
        AuthChange::Disable => std::mem::take(&mut status.enabled),
        AuthChange::UserAdd { name, password } => user_add(draft, &mut status, name, password)?,
        AuthChange::UserDelete { name } => user_delete(draft, &mut status, name)?,
        AuthChange::UserPassword { name, password } => user_password(draft, &status, name, password)?,
        AuthChange::UserGrant { name, role } => user_grant(draft, name, role)?,
        AuthChange::UserRevoke { name, role } => user_revoke(draft, &status, name, role)?,
        AuthChange::RoleAdd { role } => role_add(draft, &mut status, role)?,
        AuthChange::RoleDelete { role } => role_delete(draft, &mut status, role)?,
        AuthChange::RoleGrant { role, permission } => role_grant(draft, role, permission)?,
        AuthChange::RoleRevoke { role, range } => role_revoke(draft, role, range)?,
    };
    if changed {
        status.revision += 1;
        draft.overlay.put(Table::Trust, status_key(), &status);
        draft.known.forget();
        draft.auth_changed = Some(status.revision);
    }
    Ok(Answer::Done)
}

fn enable(draft: &Draft, status: &mut AuthStatus, token_key: &Bytes) -> Changed {
    if status.enabled {
        return Ok(false);
    }
    match user(draft.view(), ROOT)? {
        None => return refused(AuthRefusal::RootMissing),
        Some(root) if !root.is_root() => return refused(AuthRefusal::RootRoleMissing),
        Some(_) => {}
    }
    status.enabled = true;
    status.token_key = token_key.clone();
    Ok(true)
}

fn full(what: &str, max: u64) -> Stop {
    Refusal::invalid(what, format!("there are {max} already, which is the limit")).into()
}

fn user_add(draft: &mut Draft, status: &mut AuthStatus, name: &str, password: &Option<String>) -> Changed {
    if name.is_empty() {
        return refused(AuthRefusal::UserEmpty);
    }
    if user(draft.view(), name)?.is_some() {
        return refused(AuthRefusal::UserExists);
    }
    if status.users >= MAX_USERS {
        return Err(full("users", MAX_USERS));
    }
    status.users += 1;
    let password_revision = status.revision + 1;
    let record = UserRecord { password: password.clone(), password_revision, roles: Vec::new() };
    draft.overlay.put(Table::Trust, user_key(name), &record);
    Ok(true)
}

fn user_delete(draft: &mut Draft, status: &mut AuthStatus, name: &str) -> Changed {
    if status.enabled && name == ROOT {
        return refused(AuthRefusal::RootNeeded);
    }
    existing_user(draft, name)?;
    status.users = status.users.saturating_sub(1);
    draft.overlay.remove(Table::Trust, user_key(name));
    Ok(true)
}

/// A user without a password stays without: it was made to prove itself by certificate alone.
fn user_password(draft: &mut Draft, status: &AuthStatus, name: &str, password: &Option<String>) -> Changed {
    let mut record = existing_user(draft, name)?;
    if record.password.is_some() {
        record.password.clone_from(password);
    }
    record.password_revision = status.revision + 1;
    draft.overlay.put(Table::Trust, user_key(name), &record);
    Ok(true)
}

fn user_grant(draft: &mut Draft, name: &str, granted: &str) -> Changed {
    let mut record = existing_user(draft, name)?;
    // The role root needs no record to mean everything.
    if granted != ROOT {
        existing_role(draft, granted)?;
    }
    let Err(at) = record.roles.binary_search_by(|role| role.as_str().cmp(granted)) else {
        return Ok(false);
    };
    if record.roles.len() >= MAX_USER_ROLES {
        return Err(full("the user's roles", MAX_USER_ROLES as u64));
    }
    record.roles.insert(at, granted.to_owned());
    draft.overlay.put(Table::Trust, user_key(name), &record);
    Ok(true)
}

fn user_revoke(draft: &mut Draft, status: &AuthStatus, name: &str, revoked: &str) -> Changed {
    if status.enabled && name == ROOT && revoked == ROOT {
        return refused(AuthRefusal::RootNeeded);
    }
    let mut record = existing_user(draft, name)?;
    let Ok(at) = record.roles.binary_search_by(|role| role.as_str().cmp(revoked)) else {
        return refused(AuthRefusal::RoleNotGranted);
    };
    record.roles.remove(at);
    draft.overlay.put(Table::Trust, user_key(name), &record);
    Ok(true)
}

fn role_add(draft: &mut Draft, status: &mut AuthStatus, name: &str) -> Changed {
    if name.is_empty() {
        return refused(AuthRefusal::RoleEmpty);
    }
    if role(draft.view(), name)?.is_some() {
        return refused(AuthRefusal::RoleExists);
    }
    if status.roles >= MAX_ROLES {
        return Err(full("roles", MAX_ROLES));
    }
    status.roles += 1;
    draft.overlay.put(Table::Trust, role_key(name), &RoleRecord::default());
    Ok(true)
}

fn role_delete(draft: &mut Draft, status: &mut AuthStatus, name: &str) -> Changed {
    if status.enabled && name == ROOT {
        return refused(AuthRefusal::RootNeeded);
    }
    existing_role(draft, name)?;
    for (user, mut record) in users(draft.view())? {
        if let Ok(at) = record.roles.binary_search_by(|role| role.as_str().cmp(name)) {
            record.roles.remove(at);
            draft.overlay.put(Table::Trust, user_key(&user), &record);
        }
    }
    status.roles = status.roles.saturating_sub(1);
    draft.overlay.remove(Table::Trust, role_key(name));
    Ok(true)
}

fn place(record: &RoleRecord, range: &KeyRange) -> Result<usize, usize> {
    let order = |held: &Permission| held.range.key.cmp(&range.key).then(held.range.end.cmp(&range.end));
    record.permissions.binary_search_by(order)
}

fn role_grant(draft: &mut Draft, name: &str, permission: &Permission) -> Changed {
    let mut record = existing_role(draft, name)?;
    match place(&record, &permission.range) {
        Ok(at) if record.permissions[at] == *permission => return Ok(false),
        Ok(at) => record.permissions[at] = permission.clone(),
        Err(_) if record.permissions.len() >= MAX_ROLE_PERMISSIONS => {
            return Err(full("the role's permissions", MAX_ROLE_PERMISSIONS as u64));
        }
        Err(at) => record.permissions.insert(at, permission.clone()),
    }
    draft.overlay.put(Table::Trust, role_key(name), &record);
    Ok(true)
}

fn role_revoke(draft: &mut Draft, name: &str, range: &KeyRange) -> Changed {
    let mut record = existing_role(draft, name)?;
    let Ok(at) = place(&record, range) else {
        return refused(AuthRefusal::PermissionNotGranted);
    };
    record.permissions.remove(at);
    draft.overlay.put(Table::Trust, role_key(name), &record);
    Ok(true)
}

fn existing_user(draft: &Draft, name: &str) -> Result<UserRecord, Stop> {
    user(draft.view(), name)?.ok_or_else(|| Refusal::Auth(AuthRefusal::UserNotFound).into())
}

fn existing_role(draft: &Draft, name: &str) -> Result<RoleRecord, Stop> {
    role(draft.view(), name)?.ok_or_else(|| Refusal::Auth(AuthRefusal::RoleNotFound).into())
}
