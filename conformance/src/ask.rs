//! A request to either server and its answer, as plain values that can be kept, sent again and
//! compared. Says nothing about which answer is right.

use etcd_api::etcdserverpb::*;
use tonic::Status;

macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($request:ty) -> $response:ty,)*) => {
        /// One request.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Ask {
            $($(#[$doc])* $name($request),)*
        }

        /// What a server said to it.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Answer {
            $($(#[$doc])* $name($response),)*
            /// An error: gRPC's code and the text.
            Refused {
                /// The code as a number.
                code: i32,
                /// The text that clients match.
                text: String,
            },
        }

        impl Ask {
            /// The call's name.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$name(_) => stringify!($name),)*
                }
            }
        }
    };
}

calls! {
    /// Reads keys.
    Range(RangeRequest) -> RangeResponse,
    /// Writes a key.
    Put(PutRequest) -> PutResponse,
    /// Deletes keys.
    Delete(DeleteRangeRequest) -> DeleteRangeResponse,
    /// A transaction.
    Txn(TxnRequest) -> TxnResponse,
    /// Forgets history.
    Compact(CompactionRequest) -> CompactionResponse,
    /// A lease under a given id.
    Grant(LeaseGrantRequest) -> LeaseGrantResponse,
    /// A lease that is revoked at once: for ids chosen by the server and for short times.
    GrantBriefly(LeaseGrantRequest) -> LeaseGrantResponse,
    /// Ends a lease.
    Revoke(LeaseRevokeRequest) -> LeaseRevokeResponse,
    /// What is left of a lease.
    TimeToLive(LeaseTimeToLiveRequest) -> LeaseTimeToLiveResponse,
    /// All leases.
    Leases(LeaseLeasesRequest) -> LeaseLeasesResponse,
    /// Renews leases, one after the other on one stream.
    KeepAlive(Vec<LeaseKeepAliveRequest>) -> Vec<LeaseKeepAliveResponse>,
    /// The members.
    MemberList(MemberListRequest) -> MemberListResponse,
    /// A member that can't be added.
    MemberAdd(MemberAddRequest) -> MemberAddResponse,
    /// A member that can't be removed.
    MemberRemove(MemberRemoveRequest) -> MemberRemoveResponse,
    /// A member that can't be changed.
    MemberUpdate(MemberUpdateRequest) -> MemberUpdateResponse,
    /// A member that can't be promoted.
    MemberPromote(MemberPromoteRequest) -> MemberPromoteResponse,
    /// Alarms. The member's id 1 stands for the server's own.
    Alarm(AlarmRequest) -> AlarmResponse,
    /// The member's state.
    Status(StatusRequest) -> StatusResponse,
    /// Gives memory back.
    Defragment(DefragmentRequest) -> DefragmentResponse,
    /// Leadership to a member that can't have it.
    MoveLeader(MoveLeaderRequest) -> MoveLeaderResponse,
    /// A name and a password; the token is kept for later requests of that user.
    Authenticate(AuthenticateRequest) -> AuthenticateResponse,
    /// Turns authorisation on.
    AuthEnable(AuthEnableRequest) -> AuthEnableResponse,
    /// Turns it off.
    AuthDisable(AuthDisableRequest) -> AuthDisableResponse,
    /// Whether it is on.
    AuthStatus(AuthStatusRequest) -> AuthStatusResponse,
    /// A new user.
    UserAdd(AuthUserAddRequest) -> AuthUserAddResponse,
    /// A user's roles.
    UserGet(AuthUserGetRequest) -> AuthUserGetResponse,
    /// All users.
    UserList(AuthUserListRequest) -> AuthUserListResponse,
    /// Deletes a user.
    UserDelete(AuthUserDeleteRequest) -> AuthUserDeleteResponse,
    /// Another password.
    UserChangePassword(AuthUserChangePasswordRequest) -> AuthUserChangePasswordResponse,
    /// Gives a user a role.
    UserGrantRole(AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse,
    /// Takes it away.
    UserRevokeRole(AuthUserRevokeRoleRequest) -> AuthUserRevokeRoleResponse,
    /// A new role.
    RoleAdd(AuthRoleAddRequest) -> AuthRoleAddResponse,
    /// A role's permissions.
    RoleGet(AuthRoleGetRequest) -> AuthRoleGetResponse,
    /// All roles.
    RoleList(AuthRoleListRequest) -> AuthRoleListResponse,
    /// Deletes a role.
    RoleDelete(AuthRoleDeleteRequest) -> AuthRoleDeleteResponse,
    /// Permits a range.
    RoleGrantPermission(AuthRoleGrantPermissionRequest) -> AuthRoleGrantPermissionResponse,
    /// Takes it away.
    RoleRevokePermission(AuthRoleRevokePermissionRequest) -> AuthRoleRevokePermissionResponse,
}

impl Answer {
    /// An error as an answer.
    pub fn refused(status: &Status) -> Self {
        Self::Refused { code: status.code() as i32, text: status.message().to_owned() }
    }
}

impl Answer {
    /// Whether the server itself gave it: a lost connection and a time that ran out are none.
    pub fn came(&self) -> bool {
        let lost = ["tcp connect error", "transport error", "no answer in time", "operation was canceled"];
        match self {
            Self::Refused { text, .. } => !lost.contains(&text.as_str()),
            _ => true,
        }
    }
}

/// One step of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A request, as a user or as nobody.
    Ask {
        /// Whose token is sent; nothing is sent for a user who has none.
        user: Option<String>,
        /// The request.
        ask: Ask,
    },
    /// A stream on which watches are opened (and ids cancelled) in this order; it stays open.
    Open {
        /// Whose token is sent.
        user: Option<String>,
        /// What is sent.
        requests: Vec<WatchRequest>,
    },
    /// What all open streams got is compared, and they are closed.
    Collect,
}

impl Step {
    /// What the step counts as.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ask { ask, .. } => ask.name(),
            Self::Open { .. } => "Watch",
            Self::Collect => "Collect",
        }
    }
}
