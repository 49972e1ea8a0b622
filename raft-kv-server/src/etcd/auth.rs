//! The service Auth: users, roles, permissions and logins. Passwords become hashes here, before
//! anything is handed on; no log entry ever holds one.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use etcd_api::authpb;
use etcd_api::etcdserverpb::auth_server::Auth;
use etcd_api::etcdserverpb::*;
use raft_kv::client::{Handle, hash_password};
use raft_kv::error::{AuthRefusal, Error, Refusal};
use raft_kv::types::{
    AuthChange, AuthQuery, AuthView, Header, KeyRange, PasswordHash, Permission, PermissionKind as Kind,
};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::Etcd;
use super::convert::header;
use super::status::status;

/// Passwords that are hashed at once; further ones wait.
const MAX_HASHES: usize = 2;

type Answer<T> = Result<Response<T>, Status>;

/// The service Auth.
#[derive(Clone, Debug)]
pub struct AuthService {
    etcd: Etcd,
    hashes: Arc<Semaphore>,
}

impl AuthService {
    /// The service of the member behind `etcd`.
    pub fn new(etcd: Etcd) -> Self {
        Self { etcd, hashes: Arc::new(Semaphore::new(MAX_HASHES)) }
    }

    async fn change<T>(
        &self,
        request: &Request<T>,
        change: AuthChange,
    ) -> Result<Option<ResponseHeader>, Status> {
        let handle = self.etcd.handle_of(request)?;
        Ok(header(handle.auth_change(change).await.map_err(status)?))
    }

    /// What a user is stored with: the hash that is given, or that of the password.
    async fn hashed(&self, password: String, hashed: &str) -> Result<Option<PasswordHash>, Status> {
        if !hashed.is_empty() {
            let text = STANDARD.decode(hashed).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let unread = || refused(Refusal::invalid("password's hash", "it is not a bcrypt hash in base64"));
            return text.ok_or_else(unread).map(|hash| Some(hash.into()));
        }
        let _turn = self.hashes.acquire().await.expect("it is never closed");
        let hash = tokio::task::spawn_blocking(move || hash_password(&password)).await;
        hash.expect("hashing does not panic").map(|hash| Some(hash.into())).map_err(refused)
    }
}

fn refused(refusal: Refusal) -> Status {
    status(Error::Refused(refusal))
}

async fn ask(handle: Handle, query: AuthQuery) -> Result<(Option<ResponseHeader>, AuthView), Status> {
    let (at, view): (Header, AuthView) = handle.auth_query(query).await.map_err(status)?;
    Ok((header(at), view))
}

fn names(view: AuthView) -> Result<Vec<String>, Status> {
    match view {
        AuthView::Names(names) => Ok(names),
        other => Err(Status::internal(format!("names were asked for, not {other:?}"))),
    }
}

fn permission(given: Option<authpb::Permission>) -> Result<Permission, Status> {
    let given = given.ok_or_else(|| refused(AuthRefusal::PermissionMissing.into()))?;
    let kind = match authpb::permission::Type::try_from(given.perm_type) {
        Ok(authpb::permission::Type::Read) => Kind::Read,
        Ok(authpb::permission::Type::Write) => Kind::Write,
        Ok(authpb::permission::Type::Readwrite) => Kind::ReadWrite,
        Err(_) => return Err(refused(Refusal::invalid("permission", "it is of no known type"))),
    };
    Ok(Permission { kind, range: KeyRange::span(given.key, given.range_end) })
}

fn shown(permission: Permission) -> authpb::Permission {
    let kind = match permission.kind {
        Kind::Read => authpb::permission::Type::Read,
        Kind::Write => authpb::permission::Type::Write,
        Kind::ReadWrite => authpb::permission::Type::Readwrite,
    };
    let KeyRange { key, end } = permission.range;
    authpb::Permission { perm_type: kind.into(), key, range_end: end }
}

#[tonic::async_trait]
impl Auth for AuthService {
    async fn auth_enable(&self, request: Request<AuthEnableRequest>) -> Answer<AuthEnableResponse> {
        // The member draws the key.
        let change = AuthChange::Enable { token_key: Default::default() };
        Ok(Response::new(AuthEnableResponse { header: self.change(&request, change).await? }))
    }

    async fn auth_disable(&self, request: Request<AuthDisableRequest>) -> Answer<AuthDisableResponse> {
        let header = self.change(&request, AuthChange::Disable).await?;
        Ok(Response::new(AuthDisableResponse { header }))
    }

    async fn auth_status(&self, request: Request<AuthStatusRequest>) -> Answer<AuthStatusResponse> {
        match ask(self.etcd.handle_of(&request)?, AuthQuery::Status).await? {
            (header, AuthView::Status { enabled, revision }) => {
                Ok(Response::new(AuthStatusResponse { header, enabled, auth_revision: revision }))
            }
            (_, other) => Err(Status::internal(format!("the status was asked for, not {other:?}"))),
        }
    }

    async fn authenticate(&self, request: Request<AuthenticateRequest>) -> Answer<AuthenticateResponse> {
        // Whoever logs in anew may hold a token that has ended; it is not looked at.
        let AuthenticateRequest { name, password } = request.into_inner();
        let handle = self.etcd.own_handle();
        let (at, token) = handle.authenticate(&name, &password).await.map_err(status)?;
        Ok(Response::new(AuthenticateResponse { header: header(at), token }))
    }

    async fn user_add(&self, mut request: Request<AuthUserAddRequest>) -> Answer<AuthUserAddResponse> {
        let AuthUserAddRequest { name, password, options, hashed_password } =
            std::mem::take(request.get_mut());
        // Before a password is hashed: nobody else may make this member work for it.
        self.etcd.handle_of(&request)?.may_manage().await.map_err(status)?;
        let password = match options.is_some_and(|options| options.no_password) {
            true => None,
            false => self.hashed(password, &hashed_password).await?,
        };
        let header = self.change(&request, AuthChange::UserAdd { name, password }).await?;
        Ok(Response::new(AuthUserAddResponse { header }))
    }

    async fn user_get(&self, request: Request<AuthUserGetRequest>) -> Answer<AuthUserGetResponse> {
        let handle = self.etcd.handle_of(&request)?;
        let (header, view) = ask(handle, AuthQuery::User(request.into_inner().name)).await?;
        Ok(Response::new(AuthUserGetResponse { header, roles: names(view)? }))
    }

    async fn user_list(&self, request: Request<AuthUserListRequest>) -> Answer<AuthUserListResponse> {
        let (header, view) = ask(self.etcd.handle_of(&request)?, AuthQuery::Users).await?;
        Ok(Response::new(AuthUserListResponse { header, users: names(view)? }))
    }

    async fn user_delete(&self, request: Request<AuthUserDeleteRequest>) -> Answer<AuthUserDeleteResponse> {
        let change = AuthChange::UserDelete { name: request.get_ref().name.clone() };
        Ok(Response::new(AuthUserDeleteResponse { header: self.change(&request, change).await? }))
    }

    async fn user_change_password(
        &self,
        mut request: Request<AuthUserChangePasswordRequest>,
    ) -> Answer<AuthUserChangePasswordResponse> {
        let AuthUserChangePasswordRequest { name, password, hashed_password } =
            std::mem::take(request.get_mut());
        self.etcd.handle_of(&request)?.may_manage().await.map_err(status)?;
        let password = self.hashed(password, &hashed_password).await?;
        let header = self.change(&request, AuthChange::UserPassword { name, password }).await?;
        Ok(Response::new(AuthUserChangePasswordResponse { header }))
    }

    async fn user_grant_role(
        &self,
        request: Request<AuthUserGrantRoleRequest>,
    ) -> Answer<AuthUserGrantRoleResponse> {
        let AuthUserGrantRoleRequest { user, role } = request.get_ref().clone();
        let header = self.change(&request, AuthChange::UserGrant { name: user, role }).await?;
        Ok(Response::new(AuthUserGrantRoleResponse { header }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<AuthUserRevokeRoleRequest>,
    ) -> Answer<AuthUserRevokeRoleResponse> {
        let AuthUserRevokeRoleRequest { name, role } = request.get_ref().clone();
        let header = self.change(&request, AuthChange::UserRevoke { name, role }).await?;
        Ok(Response::new(AuthUserRevokeRoleResponse { header }))
    }

    async fn role_add(&self, request: Request<AuthRoleAddRequest>) -> Answer<AuthRoleAddResponse> {
        let change = AuthChange::RoleAdd { role: request.get_ref().name.clone() };
        Ok(Response::new(AuthRoleAddResponse { header: self.change(&request, change).await? }))
    }

    async fn role_get(&self, request: Request<AuthRoleGetRequest>) -> Answer<AuthRoleGetResponse> {
        let handle = self.etcd.handle_of(&request)?;
        match ask(handle, AuthQuery::Role(request.into_inner().role)).await? {
            (header, AuthView::Permissions(held)) => {
                let perm = held.into_iter().map(shown).collect();
                Ok(Response::new(AuthRoleGetResponse { header, perm }))
            }
            (_, other) => Err(Status::internal(format!("permissions were asked for, not {other:?}"))),
        }
    }

    async fn role_list(&self, request: Request<AuthRoleListRequest>) -> Answer<AuthRoleListResponse> {
        let (header, view) = ask(self.etcd.handle_of(&request)?, AuthQuery::Roles).await?;
        Ok(Response::new(AuthRoleListResponse { header, roles: names(view)? }))
    }

    async fn role_delete(&self, request: Request<AuthRoleDeleteRequest>) -> Answer<AuthRoleDeleteResponse> {
        let change = AuthChange::RoleDelete { role: request.get_ref().role.clone() };
        Ok(Response::new(AuthRoleDeleteResponse { header: self.change(&request, change).await? }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<AuthRoleGrantPermissionRequest>,
    ) -> Answer<AuthRoleGrantPermissionResponse> {
        let AuthRoleGrantPermissionRequest { name, perm } = request.get_ref().clone();
        let change = AuthChange::RoleGrant { role: name, permission: permission(perm)? };
        Ok(Response::new(AuthRoleGrantPermissionResponse { header: self.change(&request, change).await? }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<AuthRoleRevokePermissionRequest>,
    ) -> Answer<AuthRoleRevokePermissionResponse> {
        let AuthRoleRevokePermissionRequest { role, key, range_end } = request.get_ref().clone();
        let change = AuthChange::RoleRevoke { role, range: KeyRange::span(key, range_end) };
        Ok(Response::new(AuthRoleRevokePermissionResponse { header: self.change(&request, change).await? }))
    }
}
