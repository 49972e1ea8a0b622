//! Changes of users, roles, permissions, and of whether they count, with etcd's rules.
//!
//! What the user root needs can't be taken while permissions count, so nobody is locked out. A
//! change that changes nothing makes no new revision.

use super::records::{
    AuthStatus, ROOT, RoleRecord, UserRecord, role, role_key, status, status_key, user, user_key, users,
};
use crate::error::{AuthRefusal, Refusal};
use crate::limits::{
    MAX_AUTH_NAME_BYTES, MAX_KEY_BYTES, MAX_ROLE_PERMISSIONS, MAX_ROLES, MAX_SECRET_BYTES, MAX_USER_ROLES,
    MAX_USERS,
};
use crate::machine::command::Answer;
use crate::machine::draft::Draft;
use crate::machine::stop::Stop;
use crate::machine::store::Table;
use crate::machine::trust::check_key;
use crate::planted;
use crate::types::{AuthChange, KeyRange, PasswordHash, Permission, Sealed};

/// Whether the change made a difference.
type Changed = Result<bool, Stop>;

fn refused<T>(why: AuthRefusal) -> Result<T, Stop> {
    Err(Refusal::Auth(why).into())
}

/// Refuses a change that is out of its bounds, whatever users and roles there are.
pub fn validate(change: &AuthChange) -> Result<(), Refusal> {
    let names: &[&String] = match change {
        AuthChange::Enable { token_key } => {
            check_sealed("token key", token_key)?;
            &[]
        }
        AuthChange::Disable => &[],
        AuthChange::UserAdd { name, password } | AuthChange::UserPassword { name, password } => {
            password.as_ref().map_or(Ok(()), check_password)?;
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

/// Nothing but what is sealed comes into the log.
fn check_sealed(field: &str, secret: &Sealed) -> Result<(), Refusal> {
    if secret.key().is_none() || secret.0.len() > MAX_SECRET_BYTES {
        return Err(Refusal::invalid(field, "it is not sealed; hand it to a member, who seals it"));
    }
    Ok(())
}

fn check_password(hash: &PasswordHash) -> Result<(), Refusal> {
    match hash {
        PasswordHash::Sealed(hash) => check_sealed("password's hash", hash),
        PasswordHash::Clear(_) if planted!(LogClearSecret) => Ok(()),
        PasswordHash::Clear(_) => check_sealed("password's hash", &Sealed::default()),
    }
}

/// A password as it is stored. What is sealed with a key that is given up nobody could open soon.
fn stored(draft: &Draft, password: &Option<PasswordHash>) -> Result<Option<Sealed>, Stop> {
    match password {
        None => Ok(None),
        Some(PasswordHash::Sealed(hash)) => {
            check_key(draft, hash)?;
            Ok(Some(hash.clone()))
        }
        // Refused before it is proposed; a log that has one all the same is not made worse by it.
        Some(PasswordHash::Clear(hash)) => Ok(Some(Sealed(hash.clone().into()))),
    }
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

fn enable(draft: &Draft, status: &mut AuthStatus, token_key: &Sealed) -> Changed {
    if status.enabled {
        return Ok(false);
    }
    match user(draft.view(), ROOT)? {
        None => return refused(AuthRefusal::RootMissing),
        Some(root) if !root.is_root() => return refused(AuthRefusal::RootRoleMissing),
        Some(_) => {}
    }
    check_key(draft, token_key)?;
    status.enabled = true;
    status.token_key = token_key.clone();
    Ok(true)
}

fn full(what: &str, max: u64) -> Stop {
    Refusal::invalid(what, format!("there are {max} already, which is the limit")).into()
}

fn user_add(
    draft: &mut Draft,
    status: &mut AuthStatus,
    name: &str,
    password: &Option<PasswordHash>,
) -> Changed {
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
    let password = stored(draft, password)?;
    let record = UserRecord { password, password_revision, roles: Vec::new() };
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
fn user_password(
    draft: &mut Draft,
    status: &AuthStatus,
    name: &str,
    password: &Option<PasswordHash>,
) -> Changed {
    let mut record = existing_user(draft, name)?;
    if record.password.is_some() {
        record.password = stored(draft, password)?;
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
