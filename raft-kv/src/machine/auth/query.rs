//! What is told of users and roles. Never a password, never the key of tokens.

use super::records::{ROOT, names, role, status, user};
use crate::error::{AuthRefusal, Refusal};
use crate::machine::stop::{Settled, Stop, settle};
use crate::machine::store::Read;
use crate::types::{AuthQuery, AuthView, KeyRange, Permission, PermissionKind};

/// Answers a question about users and roles.
pub fn query(view: &dyn Read, query: &AuthQuery) -> Settled<AuthView> {
    settle(answer(view, query))
}

fn answer(view: &dyn Read, query: &AuthQuery) -> Result<AuthView, Stop> {
    Ok(match query {
        AuthQuery::Status => {
            let status = status(view)?;
            AuthView::Status { enabled: status.enabled, revision: status.revision }
        }
        AuthQuery::Users => AuthView::Names(names(view, true)?),
        AuthQuery::Roles => AuthView::Names(names(view, false)?),
        AuthQuery::User(name) => {
            let user = user(view, name)?.ok_or(Refusal::Auth(AuthRefusal::UserNotFound))?;
            AuthView::Names(user.roles)
        }
        AuthQuery::Role(name) => {
            let role = role(view, name)?.ok_or(Refusal::Auth(AuthRefusal::RoleNotFound))?;
            // The role root says so, whatever it was granted.
            let everything =
                Permission { kind: PermissionKind::ReadWrite, range: KeyRange::span(&b""[..], &b"\0"[..]) };
            AuthView::Permissions(if name == ROOT { vec![everything] } else { role.permissions })
        }
    })
}
