//! Services that record what reaches them and answer what they were told.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use etcd_api::etcdserverpb::watch_request::RequestUnion;
use etcd_api::etcdserverpb::*;
use etcd_api::{v3electionpb as election, v3lockpb as lock};
use futures_util::{Stream, StreamExt, stream};
use parking_lot::Mutex;
use raft_kv_server::etcd::Certificate;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tonic::metadata::KeyAndValueRef;
use tonic::{Code, Request, Response, Status, Streaming, async_trait};

use super::Answered;

/// What a fake does when asked.
#[derive(Clone, Debug)]
pub enum Told {
    /// Answers this, once.
    Answer(Value),
    /// Answers these and ends.
    Stream(Vec<Result<Value, Status>>),
    Refuse(Status),
    /// Does not answer.
    Never,
    /// Answers each message of a stream with its id.
    Echo,
    /// Answers for ever.
    Endless,
}

impl Told {
    /// To say what etcd said.
    pub fn from_etcd(theirs: &Answered) -> Self {
        if theirs.content_type != "application/json" || theirs.is_parse_error() || theirs.body.is_empty() {
            return Self::Stream(vec![]);
        }
        let lines = theirs.lines();
        let refused = |code: &Value, text: &Value| {
            let code = Code::from(i32::try_from(code.as_i64().expect("a number")).expect("a code"));
            Status::new(code, text.as_str().expect("text"))
        };
        match &lines[0] {
            line if line["code"].is_number() => Self::Refuse(refused(&line["code"], &line["message"])),
            line if line["error"].is_object() => {
                Self::Refuse(refused(&line["error"]["grpc_code"], &line["error"]["message"]))
            }
            line if line["result"].is_object() => {
                Self::Stream(lines.iter().map(|line| Ok(line["result"].clone())).collect())
            }
            line => Self::Answer(line.clone()),
        }
    }
}

pub struct Fakes(Arc<Fake>);

pub struct Fake {
    told: Told,
    met: Arc<Mutex<Vec<(String, Value)>>>,
    heard: Mutex<BTreeMap<String, String>>,
    made: Arc<Mutex<usize>>,
    over: watch::Sender<bool>,
}

impl Fakes {
    pub fn told(told: Told) -> Self {
        let (met, heard, made) = Default::default();
        Self(Arc::new(Fake { told, met, heard, made, over: watch::Sender::new(false) }))
    }

    pub fn service(&self) -> Arc<Fake> {
        self.0.clone()
    }

    /// The calls, and the messages in them.
    pub fn met(&self) -> Vec<(String, Value)> {
        self.0.met.lock().clone()
    }

    /// The last call's metadata and certificate.
    pub fn heard(&self) -> BTreeMap<String, String> {
        self.0.heard.lock().clone()
    }

    /// Answers of an endless stream so far.
    pub fn made(&self) -> usize {
        *self.0.made.lock()
    }

    /// Whether a stream of requests has ended.
    pub fn is_over(&self) -> bool {
        *self.0.over.borrow()
    }

    pub async fn over(&self) {
        self.0.over.subscribe().wait_for(|over| *over).await.expect("the sender is here");
    }
}

type Answers<A> = Pin<Box<dyn Stream<Item = Result<A, Status>> + Send>>;

fn made<A: DeserializeOwned>(value: Value) -> A {
    serde_json::from_value(value).expect("an answer of this type")
}

impl Fake {
    fn hear<T>(&self, request: &Request<T>) {
        let mut heard = self.heard.lock();
        for pair in request.metadata().iter() {
            if let KeyAndValueRef::Ascii(key, value) = pair {
                heard.insert(key.to_string(), value.to_str().expect("text").to_owned());
            }
        }
        if let Some(certificate) = request.extensions().get::<Certificate>() {
            heard.insert("certificate".to_owned(), certificate.name.clone());
        }
    }

    fn meet<T: Serialize>(&self, call: &str, message: &T) {
        self.met.lock().push((call.to_owned(), serde_json::to_value(message).expect("JSON")));
    }

    async fn answer<Q: Serialize, A: DeserializeOwned>(
        &self,
        call: &str,
        request: Request<Q>,
    ) -> Result<Response<A>, Status> {
        self.hear(&request);
        self.meet(call, request.get_ref());
        match &self.told {
            Told::Answer(value) => Ok(Response::new(made(value.clone()))),
            Told::Refuse(status) => Err(status.clone()),
            Told::Never => std::future::pending().await,
            other => panic!("{other:?} is not for {call}"),
        }
    }

    fn answers<A: DeserializeOwned + Send + 'static>(&self) -> Result<Response<Answers<A>>, Status> {
        let list = match &self.told {
            Told::Answer(value) => vec![Ok(value.clone())],
            Told::Stream(list) => list.clone(),
            Told::Refuse(status) => return Err(status.clone()),
            Told::Endless => {
                let count = self.made.clone();
                let endless = stream::repeat_with(move || {
                    *count.lock() += 1;
                    Ok(made(json!({})))
                });
                return Ok(Response::new(Box::pin(endless)));
            }
            other => panic!("{other:?} is not for a stream"),
        };
        Ok(Response::new(Box::pin(stream::iter(list).map(|answer| answer.map(made)))))
    }

    fn both<Q, A>(
        &self,
        call: &'static str,
        request: Request<Streaming<Q>>,
        echo: fn(Q) -> A,
    ) -> Result<Response<Answers<A>>, Status>
    where
        Q: Serialize + Send + 'static,
        A: DeserializeOwned + Send + 'static,
    {
        self.hear(&request);
        if !matches!(self.told, Told::Echo) {
            return self.answers();
        }
        let (met, over, mut messages) = (self.met.clone(), self.over.clone(), request.into_inner());
        let (answer, answers) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Ok(Some(message)) = messages.message().await {
                met.lock().push((call.to_owned(), serde_json::to_value(&message).expect("JSON")));
                if answer.send(Ok(echo(message))).await.is_err() {
                    break;
                }
            }
            over.send_replace(true);
        });
        Ok(Response::new(Box::pin(stream::unfold(answers, |mut answers| async move {
            Some((answers.recv().await?, answers))
        }))))
    }
}

macro_rules! fake {
    ($service:path { $($method:ident($request:ty) -> $answer:ty;)* } $($more:tt)*) => {
        #[async_trait]
        impl $service for Fake {
            $(async fn $method(&self, request: Request<$request>) -> Result<Response<$answer>, Status> {
                self.answer(stringify!($method), request).await
            })*
            $($more)*
        }
    };
}

fake!(kv_server::Kv {
    range(RangeRequest) -> RangeResponse;
    put(PutRequest) -> PutResponse;
    delete_range(DeleteRangeRequest) -> DeleteRangeResponse;
    txn(TxnRequest) -> TxnResponse;
    compact(CompactionRequest) -> CompactionResponse;
}
    type RangeStreamStream = Answers<RangeStreamResponse>;
    async fn range_stream(&self, _: Request<RangeRequest>) -> Result<Response<Answers<RangeStreamResponse>>, Status> {
        panic!("RangeStream has no path")
    }
);
fake!(watch_server::Watch {}
    type WatchStream = Answers<WatchResponse>;
    async fn watch(&self, request: Request<Streaming<WatchRequest>>) -> Result<Response<Answers<WatchResponse>>, Status> {
        self.both("watch", request, |message| {
            let watch_id = match message.request_union {
                Some(RequestUnion::CreateRequest(create)) => create.watch_id,
                Some(RequestUnion::CancelRequest(cancel)) => cancel.watch_id,
                _ => 0,
            };
            WatchResponse { watch_id, ..WatchResponse::default() }
        })
    }
);
fake!(lease_server::Lease {
    lease_grant(LeaseGrantRequest) -> LeaseGrantResponse;
    lease_revoke(LeaseRevokeRequest) -> LeaseRevokeResponse;
    lease_time_to_live(LeaseTimeToLiveRequest) -> LeaseTimeToLiveResponse;
    lease_leases(LeaseLeasesRequest) -> LeaseLeasesResponse;
}
    type LeaseKeepAliveStream = Answers<LeaseKeepAliveResponse>;
    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Answers<LeaseKeepAliveResponse>>, Status> {
        self.both("lease_keep_alive", request, |message| {
            LeaseKeepAliveResponse { id: message.id, ..LeaseKeepAliveResponse::default() }
        })
    }
);
fake!(cluster_server::Cluster {
    member_add(MemberAddRequest) -> MemberAddResponse;
    member_remove(MemberRemoveRequest) -> MemberRemoveResponse;
    member_update(MemberUpdateRequest) -> MemberUpdateResponse;
    member_list(MemberListRequest) -> MemberListResponse;
    member_promote(MemberPromoteRequest) -> MemberPromoteResponse;
});
fake!(maintenance_server::Maintenance {
    alarm(AlarmRequest) -> AlarmResponse;
    status(StatusRequest) -> StatusResponse;
    defragment(DefragmentRequest) -> DefragmentResponse;
    hash(HashRequest) -> HashResponse;
    hash_kv(HashKvRequest) -> HashKvResponse;
    move_leader(MoveLeaderRequest) -> MoveLeaderResponse;
    downgrade(DowngradeRequest) -> DowngradeResponse;
}
    type SnapshotStream = Answers<SnapshotResponse>;
    async fn snapshot(&self, request: Request<SnapshotRequest>) -> Result<Response<Answers<SnapshotResponse>>, Status> {
        self.hear(&request);
        self.meet("snapshot", request.get_ref());
        self.answers()
    }
);
fake!(auth_server::Auth {
    auth_enable(AuthEnableRequest) -> AuthEnableResponse;
    auth_disable(AuthDisableRequest) -> AuthDisableResponse;
    auth_status(AuthStatusRequest) -> AuthStatusResponse;
    authenticate(AuthenticateRequest) -> AuthenticateResponse;
    user_add(AuthUserAddRequest) -> AuthUserAddResponse;
    user_get(AuthUserGetRequest) -> AuthUserGetResponse;
    user_list(AuthUserListRequest) -> AuthUserListResponse;
    user_delete(AuthUserDeleteRequest) -> AuthUserDeleteResponse;
    user_change_password(AuthUserChangePasswordRequest) -> AuthUserChangePasswordResponse;
    user_grant_role(AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse;
    user_revoke_role(AuthUserRevokeRoleRequest) -> AuthUserRevokeRoleResponse;
    role_add(AuthRoleAddRequest) -> AuthRoleAddResponse;
    role_get(AuthRoleGetRequest) -> AuthRoleGetResponse;
    role_list(AuthRoleListRequest) -> AuthRoleListResponse;
    role_delete(AuthRoleDeleteRequest) -> AuthRoleDeleteResponse;
    role_grant_permission(AuthRoleGrantPermissionRequest) -> AuthRoleGrantPermissionResponse;
    role_revoke_permission(AuthRoleRevokePermissionRequest) -> AuthRoleRevokePermissionResponse;
});
fake!(lock::lock_server::Lock {
    lock(lock::LockRequest) -> lock::LockResponse;
    unlock(lock::UnlockRequest) -> lock::UnlockResponse;
});
fake!(election::election_server::Election {
    campaign(election::CampaignRequest) -> election::CampaignResponse;
    proclaim(election::ProclaimRequest) -> election::ProclaimResponse;
    leader(election::LeaderRequest) -> election::LeaderResponse;
    resign(election::ResignRequest) -> election::ResignResponse;
}
    type ObserveStream = Answers<election::LeaderResponse>;
    async fn observe(
        &self,
        request: Request<election::LeaderRequest>,
    ) -> Result<Response<Answers<election::LeaderResponse>>, Status> {
        self.hear(&request);
        self.meet("observe", request.get_ref());
        self.answers()
    }
);
