//! One server of the two, seen through one connection. Sends a request as it is and hands back the
//! answer with only those fields levelled that can't be equal: ids, terms, times, sizes.

use std::collections::HashMap;
use std::time::Duration;

use etcd_api::etcdserverpb::auth_client::AuthClient;
use etcd_api::etcdserverpb::cluster_client::ClusterClient;
use etcd_api::etcdserverpb::kv_client::KvClient;
use etcd_api::etcdserverpb::lease_client::LeaseClient;
use etcd_api::etcdserverpb::maintenance_client::MaintenanceClient;
use etcd_api::etcdserverpb::watch_client::WatchClient;
use etcd_api::etcdserverpb::{
    AlarmRequest, LeaseKeepAliveRequest, LeaseRevokeRequest, RangeRequest, ResponseHeader, StatusRequest,
};
use tonic::Request;
use tonic::transport::Channel;

use crate::ask::{Answer, Ask};
use crate::server::Place;

/// No answer after this is one of its own.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// A connection, and what belongs to this server only.
#[derive(Debug)]
pub struct Side {
    kv: KvClient<Channel>,
    lease: LeaseClient<Channel>,
    cluster: ClusterClient<Channel>,
    maintenance: MaintenanceClient<Channel>,
    auth: AuthClient<Channel>,
    /// For streams.
    pub watch: WatchClient<Channel>,
    tokens: HashMap<String, String>,
    member: u64,
}

macro_rules! send {
    ($side:ident, $client:ident, $method:ident, $variant:ident, $message:expr, $user:expr) => {{
        let request = $side.request($message.clone(), $user);
        match $side.$client.$method(request).await {
            Ok(answer) => Answer::$variant(answer.into_inner()),
            Err(status) => Answer::refused(&status),
        }
    }};
}

impl Side {
    /// Connects and waits until the server has a leader.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn connect(place: &Place, member: usize) -> Result<Self, String> {
        let channel = place.connect(member).await?;
        let big = 64 << 20;
        let mut side = Self {
            kv: KvClient::new(channel.clone()).max_decoding_message_size(big),
            lease: LeaseClient::new(channel.clone()),
            cluster: ClusterClient::new(channel.clone()),
            maintenance: MaintenanceClient::new(channel.clone()),
            auth: AuthClient::new(channel.clone()),
            watch: WatchClient::new(channel).max_decoding_message_size(big),
            tokens: HashMap::new(),
            member: 0,
        };
        let mut last = String::new();
        for _ in 0..200 {
            match side.kv.range(RangeRequest { key: "?".into(), ..Default::default() }).await {
                Ok(answer) => {
                    side.member = answer.into_inner().header.map_or(0, |header| header.member_id);
                    return Ok(side);
                }
                Err(status) => last = status.to_string(),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(format!("{:?} has no leader: {last}", place.addrs))
    }

    /// A request with the user's token, if the user has one.
    pub fn request<T>(&self, message: T, user: Option<&str>) -> Request<T> {
        let mut request = Request::new(message);
        let Some(user) = user else { return request };
        // Who never got a token sends one that nobody issued.
        let token = self.tokens.get(user).map_or("nobody.1", String::as_str);
        if let Ok(value) = token.parse() {
            request.metadata_mut().insert("token", value);
        }
        request
    }

    /// Sends one request.
    pub async fn ask(&mut self, ask: &Ask, user: Option<&str>) -> Answer {
        let answer = tokio::time::timeout(ANSWER_LIMIT, self.send(ask, user)).await;
        let answer =
            answer.unwrap_or_else(|_| Answer::Refused { code: -1, text: "no answer in time".to_owned() });
        if let (Ask::Authenticate(sent), Answer::Authenticate(got)) = (ask, &answer) {
            self.tokens.insert(sent.name.clone(), got.token.clone());
        }
        self.levelled(answer)
    }

    async fn send(&mut self, ask: &Ask, user: Option<&str>) -> Answer {
        match ask {
            Ask::Range(m) => send!(self, kv, range, Range, m, user),
            Ask::Put(m) => send!(self, kv, put, Put, m, user),
            Ask::Delete(m) => send!(self, kv, delete_range, Delete, m, user),
            Ask::Txn(m) => send!(self, kv, txn, Txn, m, user),
            Ask::Compact(m) => send!(self, kv, compact, Compact, m, user),
            Ask::Grant(m) => send!(self, lease, lease_grant, Grant, m, user),
            Ask::GrantBriefly(m) => {
                let answer = send!(self, lease, lease_grant, GrantBriefly, m, user);
                self.revoke_again(answer, user).await
            }
            Ask::Revoke(m) => send!(self, lease, lease_revoke, Revoke, m, user),
            Ask::TimeToLive(m) => send!(self, lease, lease_time_to_live, TimeToLive, m, user),
            Ask::Leases(m) => send!(self, lease, lease_leases, Leases, m, user),
            Ask::KeepAlive(m) => self.keep_alive(m.clone(), user).await,
            Ask::MemberList(m) => send!(self, cluster, member_list, MemberList, m, user),
            Ask::MemberAdd(m) => send!(self, cluster, member_add, MemberAdd, m, user),
            Ask::MemberRemove(m) => send!(self, cluster, member_remove, MemberRemove, m, user),
            Ask::MemberUpdate(m) => send!(self, cluster, member_update, MemberUpdate, m, user),
            Ask::MemberPromote(m) => send!(self, cluster, member_promote, MemberPromote, m, user),
            Ask::Alarm(m) => {
                let member_id = if m.member_id == 1 { self.member } else { m.member_id };
                send!(self, maintenance, alarm, Alarm, AlarmRequest { member_id, ..*m }, user)
            }
            Ask::Status(m) => send!(self, maintenance, status, Status, m, user),
            Ask::Defragment(m) => send!(self, maintenance, defragment, Defragment, m, user),
            Ask::MoveLeader(m) => send!(self, maintenance, move_leader, MoveLeader, m, user),
            Ask::Authenticate(m) => send!(self, auth, authenticate, Authenticate, m, user),
            Ask::AuthEnable(m) => send!(self, auth, auth_enable, AuthEnable, m, user),
            Ask::AuthDisable(m) => send!(self, auth, auth_disable, AuthDisable, m, user),
            Ask::AuthStatus(m) => send!(self, auth, auth_status, AuthStatus, m, user),
            Ask::UserAdd(m) => send!(self, auth, user_add, UserAdd, m, user),
            Ask::UserGet(m) => send!(self, auth, user_get, UserGet, m, user),
            Ask::UserList(m) => send!(self, auth, user_list, UserList, m, user),
            Ask::UserDelete(m) => send!(self, auth, user_delete, UserDelete, m, user),
            Ask::UserChangePassword(m) => {
                send!(self, auth, user_change_password, UserChangePassword, m, user)
            }
            Ask::UserGrantRole(m) => send!(self, auth, user_grant_role, UserGrantRole, m, user),
            Ask::UserRevokeRole(m) => send!(self, auth, user_revoke_role, UserRevokeRole, m, user),
            Ask::RoleAdd(m) => send!(self, auth, role_add, RoleAdd, m, user),
            Ask::RoleGet(m) => send!(self, auth, role_get, RoleGet, m, user),
            Ask::RoleList(m) => send!(self, auth, role_list, RoleList, m, user),
            Ask::RoleDelete(m) => send!(self, auth, role_delete, RoleDelete, m, user),
            Ask::RoleGrantPermission(m) => {
                send!(self, auth, role_grant_permission, RoleGrantPermission, m, user)
            }
            Ask::RoleRevokePermission(m) => {
                send!(self, auth, role_revoke_permission, RoleRevokePermission, m, user)
            }
        }
    }

    async fn keep_alive(&mut self, messages: Vec<LeaseKeepAliveRequest>, user: Option<&str>) -> Answer {
        let request = self.request(tokio_stream::iter(messages), user);
        let mut stream = match self.lease.lease_keep_alive(request).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => return Answer::refused(&status),
        };
        let mut answers = Vec::new();
        loop {
            match stream.message().await {
                Ok(Some(answer)) => answers.push(answer),
                Ok(None) => return Answer::KeepAlive(answers),
                Err(status) => return Answer::refused(&status),
            }
        }
    }

    async fn revoke_again(&mut self, answer: Answer, user: Option<&str>) -> Answer {
        if let Answer::GrantBriefly(granted) = &answer {
            let request = self.request(LeaseRevokeRequest { id: granted.id }, user);
            if let Err(status) = self.lease.lease_revoke(request).await {
                return Answer::refused(&status);
            }
        }
        answer
    }

    /// Whether the server still answers at all.
    pub async fn lives(&mut self) -> bool {
        let asked = self.maintenance.status(StatusRequest {});
        tokio::time::timeout(ANSWER_LIMIT, asked).await.is_ok_and(|answer| match answer {
            Ok(_) => true,
            Err(status) => status.code() != tonic::Code::Unavailable,
        })
    }

    /// `answer` with what can't be equal made so.
    fn levelled(&self, mut answer: Answer) -> Answer {
        if let Some(header) = header_of(&mut answer) {
            level_header(header);
        }
        match &mut answer {
            Answer::GrantBriefly(granted) => granted.id = i64::from(granted.id > 0),
            Answer::TimeToLive(left) => {
                // etcd's are in the order of a hash table.
                left.keys.sort();
            }
            Answer::Leases(all) => all.leases.sort_by_key(|lease| lease.id),
            Answer::KeepAlive(all) => {
                all.iter_mut().filter_map(|one| one.header.as_mut()).for_each(level_header);
            }
            Answer::MemberList(list) => {
                for member in &mut list.members {
                    member.id = u64::from(member.id == self.member);
                    member.name.clear();
                    member.peer_ur_ls.truncate(1);
                    member.client_ur_ls.truncate(1);
                    member.peer_ur_ls.iter_mut().for_each(String::clear);
                    member.client_ur_ls.iter_mut().for_each(String::clear);
                }
            }
            Answer::Alarm(alarms) => {
                for alarm in &mut alarms.alarms {
                    if alarm.member_id == self.member {
                        alarm.member_id = 1;
                    }
                }
                alarms.alarms.sort_by_key(|alarm| (alarm.member_id, alarm.alarm));
            }
            Answer::Status(status) => {
                for error in &mut status.errors {
                    *error = error.replace(&format!("{}", self.member), "1");
                }
                status.errors.sort();
                status.version.clear();
                status.storage_version.clear();
                (status.db_size, status.db_size_in_use, status.db_size_quota) = (0, 0, 0);
                status.leader = u64::from(status.leader == self.member);
                status.raft_index = u64::from(status.raft_index > 0);
                status.raft_applied_index = u64::from(status.raft_applied_index > 0);
                status.raft_term = u64::from(status.raft_term > 0);
                status.downgrade_info = None;
            }
            Answer::Authenticate(got) => got.token = (!got.token.is_empty()).to_string(),
            _ => {}
        }
        answer
    }
}

fn level_header(header: &mut ResponseHeader) {
    header.cluster_id = u64::from(header.cluster_id != 0);
    header.member_id = u64::from(header.member_id != 0);
    header.raft_term = u64::from(header.raft_term != 0);
}

macro_rules! headers {
    ($answer:expr, $($name:ident)*) => {
        match $answer {
            $(Answer::$name(inner) => inner.header.as_mut(),)*
            Answer::KeepAlive(all) => all.first_mut().and_then(|one| one.header.as_mut()),
            Answer::Refused { .. } => None,
        }
    };
}

/// The header of an answer.
pub fn header_of(answer: &mut Answer) -> Option<&mut ResponseHeader> {
    headers!(answer, Range Put Delete Txn Compact Grant GrantBriefly Revoke TimeToLive Leases MemberList
        MemberAdd MemberRemove MemberUpdate MemberPromote Alarm Status Defragment MoveLeader Authenticate
        AuthEnable AuthDisable AuthStatus UserAdd UserGet UserList UserDelete UserChangePassword
        UserGrantRole UserRevokeRole RoleAdd RoleGet RoleList RoleDelete RoleGrantPermission
        RoleRevokePermission)
}
