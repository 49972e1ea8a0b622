//! What others ask of this node over QUIC: members' frames and snapshots, clients' calls, joins.
//! Each connection and each request is a task of its own; none can hold up the loop.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rand::Rng;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::api::{Answered, Call, JoinRequest, Joined, Reply};
use super::auth::Asker;
use super::backup;
use super::config::{check_addr, check_client_url, check_name};
use super::local::{Local, random};
use super::node::{OWN_PATIENCE, hosts_of};
use super::trust::authority::{Issued, now};
use super::trust::{Presented, Turns, Wanted, follow};
use super::worker;
use super::world::removed_text;
use crate::codec::Wire;
use crate::error::{Error, NotDone, Refusal};
use crate::limits;
use crate::machine;
use crate::machine::command::Command;
use crate::net::{Accepted, BulkConn, ClientConn, Endpoint, JoinConn, PeerEvent, PeerNet, RequestStream};
use crate::node::ask::What;
use crate::node::shell::Incoming;
use crate::node::wire::PeerFrame;
use crate::raft::PeerMessage;
use crate::storage::check::{Harm, Problem, check_files};
use crate::types::{
    Caller, ConfChange, MemberRecord, MemberRole, NodeId, Role, TrustCall, TrustChange, WatchBatch,
    WatchRequest,
};

/// A snapshot that is larger is not taken.
const MAX_SNAPSHOT_BYTES: u64 = 1 << 40;
/// Without a leader for this long a member asks whether it still is one.
const LEADERLESS: Duration = Duration::from_secs(5);
/// How often it is tried again to take a member in whose old id is removed already, and after what pause.
const REJOIN_TRIES: u32 = 20;
const REJOIN_PAUSE: Duration = Duration::from_millis(500);
/// How long the last answer of a request may take to arrive.
const LAST_ANSWER: Duration = Duration::from_secs(2);

/// Carries members' frames to the loop.
pub(super) async fn pump(local: Arc<Local>, mut events: mpsc::Receiver<PeerEvent>) {
    while let Some(event) = events.recv().await {
        match event {
            PeerEvent::Frame { from, frame } => {
                let bytes = frame.len();
                match PeerFrame::from_bytes(frame) {
                    // A snapshot comes on a stream of its own, with its files.
                    Ok(PeerFrame::Raft(message)) if message.is_snapshot() => {
                        tracing::warn!(%from, "dropped a snapshot message without files");
                    }
                    Ok(frame) => local.shell.frame(from, frame, bytes).await,
                    Err(error) => tracing::warn!(%from, %error, "dropped a frame"),
                }
            }
            PeerEvent::Unreachable(id) | PeerEvent::Disconnected(id) => local.shell.unreachable(id),
            PeerEvent::Connected(id) => tracing::debug!(%id, "connected"),
        }
    }
}

/// Takes connections in until the endpoint is closed.
pub(super) async fn accept(local: Arc<Local>, endpoint: Endpoint, peers: PeerNet, served: Arc<Semaphore>) {
    while let Some(accepted) = endpoint.accept().await {
        let local = local.clone();
        match accepted {
            Accepted::Peer(connection) => peers.receive(connection),
            Accepted::Bulk(connection) => drop(tokio::spawn(receive_snapshot(local, connection))),
            Accepted::Client(connection) => {
                drop(tokio::spawn(serve_client(local, connection, served.clone())))
            }
            Accepted::Join(connection) => drop(tokio::spawn(serve_joiner(local, connection))),
        }
    }
}

async fn receive_snapshot(local: Arc<Local>, connection: BulkConn) {
    let from = connection.identity().node;
    let Ok(incoming) = connection.incoming().await else {
        return;
    };
    let message = PeerMessage::from_bytes(incoming.header.clone()).ok().filter(PeerMessage::is_snapshot);
    let Some(message) = message else {
        return incoming.refuse(Refusal::invalid("header", "it is no snapshot message").into()).await;
    };
    let Some(folder) = local.shell.incoming().start() else {
        return incoming.refuse(Error::NotDone(NotDone::Busy)).await;
    };
    let index = message.snapshot_meta().map_or(0, |meta| meta.index);
    if let Err(refusal) = room_for(&local, incoming.bytes, folder.clone()).await {
        tracing::warn!(%from, index, bytes = incoming.bytes, %refusal, "a snapshot was refused");
        // What a try before has brought stays: less is missing the next time.
        let forget = forget_partial(local.shell.incoming(), local.shell.incoming().broken(true));
        incoming.refuse(refusal.into()).await;
        drop(local);
        return forget.await;
    }
    tracing::info!(%from, index, bytes = incoming.bytes, "receiving a snapshot");
    let transfer = local.transfers.receive(from);
    let mut ended = local.shell.ended();
    let received = tokio::select! {
        received = incoming.receive_into(&folder, MAX_SNAPSHOT_BYTES, &transfer) => received,
        // Nobody is left to install it; the connection ends with this.
        _ = ended.wait_for(Option::is_some) => Err(Error::NotDone(NotDone::ShuttingDown).into()),
    };
    let (bytes, spared, took) = transfer.so_far();
    drop(transfer);
    match received {
        Ok(()) => {
            tracing::info!(%from, index, bytes, spared, ?took, "received a snapshot");
            let looked = folder.clone();
            let looked = tokio::task::spawn_blocking(move || damage_in(&looked)).await;
            if let Some(damage) = looked.expect("a look does not panic") {
                // Raft finds this member where it was and sends another; the sender's own scrub ends its part.
                tracing::error!(%from, index, %damage, "the sender's state is damaged; its snapshot is not taken");
                local.shell.incoming().broken(false);
                return;
            }
            local.shell.snapshot_arrived(from, message, folder);
        }
        Err(error) => {
            tracing::warn!(%from, index, bytes, spared, ?took, %error, "a snapshot did not arrive");
            let incoming = local.shell.incoming();
            let counter = incoming.broken(error.may_go_on());
            let forget = forget_partial(incoming, counter);
            drop(local);
            forget.await;
        }
    }
}

/// Whether a snapshot of so many bytes fits on the disk, beside what a try before has left of it in `folder`.
async fn room_for(local: &Arc<Local>, bytes: u64, folder: PathBuf) -> Result<(), Refusal> {
    let disk = local.disk.clone();
    let look = move || {
        let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let here: u64 = files.filter_map(|file| Some(file.metadata().ok()?.len())).sum();
        disk.has_room(bytes.saturating_sub(here))
    };
    tokio::task::spawn_blocking(look).await.expect("a look does not panic")
}

/// The first damage in what was received: it is the sender's files byte for byte, also where those have rotted.
fn damage_in(folder: &Path) -> Option<Problem> {
    if crate::planted!(InstallDamaged) {
        return None;
    }
    let listed = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let tables: Vec<_> = listed.filter(|path| path.extension().is_some_and(|it| it == "sst")).collect();
    let found = check_files(&tables, &mut |_| true).unwrap_or_default();
    found.into_iter().find(|problem| problem.harm == Harm::Damage)
}

/// What has arrived of a snapshot is kept for another try, but not for ever.
pub(super) fn forget_partial(incoming: &Arc<Incoming>, counter: u64) -> impl Future<Output = ()> + use<> {
    let incoming = Arc::downgrade(incoming);
    async move {
        tokio::time::sleep(limits::PARTIAL_SNAPSHOT_KEPT).await;
        if let Some(incoming) = incoming.upgrade() {
            incoming.forget(counter);
        }
    }
}

async fn serve_client(local: Arc<Local>, connection: ClientConn, served: Arc<Semaphore>) {
    let turns = Arc::new(Turns::new());
    while let Some(stream) = connection.next_stream().await {
        let Ok(permit) = served.clone().acquire_owned().await else {
            return;
        };
        tokio::spawn(serve_request(local.clone(), stream, turns.clone(), permit));
    }
}

async fn serve_request(
    local: Arc<Local>,
    mut stream: RequestStream,
    turns: Arc<Turns>,
    served: OwnedSemaphorePermit,
) {
    let call = match stream.recv().await {
        Ok(Some(frame)) => {
            Call::from_bytes(frame).map_err(|error| Refusal::Malformed { what: error.what.into() }.into())
        }
        Ok(None) => return,
        Err(error) => Err(error),
    };
    // A worker is served little; nothing below has to think of it.
    let call = call.and_then(|call| worker::admit(stream.identity, call));
    // Lives until the answer has arrived.
    let mut spared = None;
    let answered = match call {
        Ok(Call::Trust(TrustCall::Status)) if worker::is_one(stream.identity) => {
            local.own_status(&stream).await
        }
        Ok(Call::Watch(request)) => {
            drop(served);
            return serve_watch(&local, stream, request).await;
        }
        Ok(Call::Trust(TrustCall::Follow)) => {
            drop(served);
            return follow(&local, stream, &turns).await;
        }
        Ok(Call::Trust(TrustCall::Renew { request })) => local.renew(&stream, &turns, &request).await,
        Ok(Call::Backup { keys }) => {
            drop(served);
            return backup::serve(&local, stream, keys).await;
        }
        // Who rejoins proves by its certificate who it was; anything else is asked for in a name.
        Ok(Call::Rejoin { request, name, addr, client_url }) => {
            let place = Place { name, addr, client_url };
            rejoin(&local, &stream, request, place, &mut spared).await
        }
        Ok(call) => carry_out(&local, &stream, call).await,
        Err(error) => Err(error),
    };
    answer(&mut stream, &answered).await;
}

async fn carry_out(local: &Local, stream: &RequestStream, call: Call) -> Answered {
    let asker = asker(local, stream)?;
    if super::trust::gives_trust(&call) {
        local.asks_with_newest(stream).await?;
    }
    local.call_as(&asker, call, OWN_PATIENCE).await
}

/// For whom a request is served, and whose certificate it came with.
pub(super) fn asker(local: &Local, stream: &RequestStream) -> Result<Asker, Error> {
    let node = stream.identity.map(|identity| identity.node);
    Ok(Asker { caller: caller(local, stream)?, node })
}

/// For whom a request is served: a member may do everything, a client what its name may.
fn caller(local: &Local, stream: &RequestStream) -> Result<Caller, Error> {
    match stream.identity.map(|identity| identity.role) {
        Some(Role::Manager) => Ok(Caller::Full),
        Some(Role::Client) => local.caller(None, stream.name.as_deref()),
        Some(Role::Worker) => Err(Refusal::NotAllowed { role: Role::Worker.to_string() }.into()),
        None => Err(Refusal::NotAllowed { role: "joiner's missing".into() }.into()),
    }
}

pub(super) async fn answer(stream: &mut RequestStream, answered: &Answered) {
    let told = worker::told(stream.identity, answered);
    if stream.send(told.to_bytes()).await.is_ok() {
        stream.finish();
        // The asker has it all, or is gone, or will not take it.
        let _ = tokio::time::timeout(LAST_ANSWER, stream.stopped()).await;
    }
}

async fn serve_watch(local: &Arc<Local>, mut stream: RequestStream, request: WatchRequest) {
    let (mut changes, range) = (local.shell.auth_changes(), request.range.clone());
    changes.mark_unchanged();
    let begun = async {
        let caller = caller(local, &stream)?;
        // Read before the watch begins: behind this revision nothing is missed by going on from it.
        let header = local.now()?;
        Ok((header, local.watch_as(&caller, request, OWN_PATIENCE).await?))
    };
    let (header, mut watch) = match begun.await {
        Ok(begun) => begun,
        Err(error) => return answer(&mut stream, &Err(error)).await,
    };
    let created: Answered = Ok((header, Reply::Done));
    if stream.send(created.to_bytes()).await.is_err() {
        return;
    }
    let stopped = stream.stopped();
    tokio::pin!(stopped);
    loop {
        let batch = tokio::select! {
            biased;
            // Its name may be a user's only now.
            Ok(()) = changes.changed() => match caller(local, &stream)
                .and_then(|caller| local.may_watch(&caller, &range))
            {
                Ok(()) => continue,
                Err(error) => Err(error),
            },
            () = &mut stopped => return,
            batch = watch.next() => batch,
        };
        let answered: Answered = match batch {
            Ok(Some(batch)) => local.now().map(|header| (header, Reply::Watch(batch))),
            Ok(None) => return stream.finish(),
            Err(error) => Err(error),
        };
        let last = matches!(answered, Err(_) | Ok((_, Reply::Watch(WatchBatch::Compacted(_)))));
        if last {
            return answer(&mut stream, &answered).await;
        }
        if stream.send(answered.to_bytes()).await.is_err() {
            return;
        }
    }
}

async fn serve_joiner(local: Arc<Local>, connection: JoinConn) {
    let from = connection.remote_addr().ip();
    while let Some(mut stream) = connection.next_stream().await {
        let answered = match stream.recv().await {
            Ok(Some(frame)) => match Call::from_bytes(frame) {
                Ok(Call::Join(request)) => join(&local, from, request).await,
                Ok(Call::Enrol(request)) => local.enrol(from, request).await,
                Ok(Call::Readmit(request)) => local.readmit(from, request).await,
                Ok(_) => Err(Refusal::NotAllowed { role: "joiner's missing".into() }.into()),
                Err(error) => {
                    local.unreadable(from);
                    Err(Refusal::Malformed { what: error.what.into() }.into())
                }
            },
            Ok(None) => continue,
            Err(error) => Err(error),
        };
        answer(&mut stream, &answered).await;
    }
}

async fn join(local: &Arc<Local>, from: IpAddr, request: JoinRequest) -> Answered {
    let unfit = |role| {
        let why = format!("it is for the role {role}, and a member needs one for the role manager");
        (role != Role::Manager).then_some(why)
    };
    let token = local.presented(from, &request.secret, unfit).await?;
    let place = Place { name: request.name, addr: request.addr, client_url: request.client_url };
    admit_member(local, &request.request, place, Some(token), None).await
}

/// While it lives, the connections of a member outlive its place in the cluster.
struct Spared(Arc<Local>, NodeId);

impl Spared {
    fn new(local: &Arc<Local>, node: NodeId) -> Self {
        *local.spared.lock().entry(node).or_default() += 1;
        Self(local.clone(), node)
    }
}

impl Drop for Spared {
    fn drop(&mut self) {
        let mut spared = self.0.spared.lock();
        if let Some(count) = spared.get_mut(&self.1) {
            *count -= 1;
        }
        spared.retain(|_, count| *count > 0);
    }
}

async fn rejoin(
    local: &Arc<Local>,
    stream: &RequestStream,
    request: Bytes,
    place: Place,
    spared: &mut Option<Spared>,
) -> Answered {
    let identity = stream.identity.filter(|identity| identity.role == Role::Manager);
    let Some(identity) = identity else {
        return Err(Refusal::NotAllowed { role: "client".into() }.into());
    };
    local.asks_with_newest(stream).await?;
    // Nothing is begun without a quorum, or for somebody who has gone: its old id is removed on the way, and
    // with that it could not ask again.
    tokio::select! {
        () = stream.stopped() => return Err(Error::NotDone(NotDone::Deadline)),
        confirmed = local.barrier(OWN_PATIENCE) => confirmed?,
    }
    // The connection must live until it has the new one.
    *spared = Some(Spared::new(local, identity.node));
    let mut tries = 0;
    loop {
        let answered = admit_member(local, &request, place.clone(), None, Some(identity.node)).await;
        // What only has to be repeated is repeated here. Its name may be taken by a try of its own that is
        // still under way elsewhere.
        let taken = matches!(answered, Err(Error::Refused(Refusal::MemberTaken { .. })));
        let repeatable = taken || matches!(answered, Err(Error::NotDone(_) | Error::Unknown(_)));
        let members = local.shell.read(machine::read::members)?;
        let known = members.iter().any(|member| member.record.id == identity.node);
        if !repeatable || known || tries == REJOIN_TRIES {
            return answered;
        }
        tries += 1;
        tokio::time::sleep(REJOIN_PAUSE).await;
    }
}

/// What a new member says of itself.
#[derive(Clone)]
struct Place {
    name: String,
    addr: String,
    client_url: String,
}

/// Takes a member in under a new id; `old` is the id under which it was known before.
async fn admit_member(
    local: &Arc<Local>,
    request: &[u8],
    place: Place,
    token: Option<Presented>,
    old: Option<NodeId>,
) -> Answered {
    let Place { name, addr, client_url } = place;
    check_name(&name)?;
    check_addr(&addr)?;
    check_client_url(&client_url)?;
    // A bad request is refused before anything is done for it.
    crate::pki::request_key(request)?;
    let members = local.shell.read(machine::read::members)?;
    // A join that was cut short leaves a learner of the same name and address that never came.
    let abandoned = members.iter().find(|member| {
        member.role == MemberRole::Learner && member.record.name == name && member.record.addr == addr
    });
    let old = old.filter(|old| members.iter().any(|member| member.record.id == *old));
    if let Some(old) = old.or(abandoned.map(|member| member.record.id)) {
        local.call(Call::MemberRemove(old), OWN_PATIENCE).await?;
        // Its name and address are free here too, before it is looked whether they are.
        local.barrier(OWN_PATIENCE).await?;
    }
    let node = NodeId(random());
    let hosts = hosts_of(&addr, &client_url);
    let token_id = token.as_ref().map_or(String::new(), |token| token.id.clone());
    let (role, renewal) = (Role::Manager, false);
    let wanted = Wanted { node, role, name: name.clone(), hosts, token: token_id, renewal };
    let record = MemberRecord { id: node, name, addr, client_url };
    let change = ConfChange::AddLearner(record.clone());
    local.read(|view| machine::read::admit_change(view, &change))??;
    // Known before it is a member: whoever is one may be dialled and must be let in.
    let Issued { chain, roots, .. } = local.issue_request(&wanted, request).await?;
    if let Some(token) = &token {
        local.still_welcome(node, token).await?;
    }
    let added = local.add_learner(record, OWN_PATIENCE).await;
    if added.is_err() {
        // Nobody has its certificate. Where it is a member after all this is refused.
        let forget = TrustChange::NodeRemove { id: node, now: now() };
        let _ = local.propose_trust(forget).await;
    }
    let members = added?;
    tracing::info!(%node, "a member joined");
    let keys = local.handed_keys()?;
    let joined = Joined { cluster: local.cluster, node, chain, roots, members, keys };
    Ok((local.now()?, Reply::Joined(joined)))
}

/// A member that was removed while it was away hears it from the others, who turn it away.
///
/// After a recovery the member that went on has another id, and whoever is at a known address is asked too. What
/// that one says ends a member only where it had no leader since it started: where most of an epoch are alive
/// after all, a moment without a leader must not end them.
pub(super) async fn notice_removal(local: Arc<Local>, endpoint: Endpoint) {
    let mut leadership = local.shell.leadership();
    let mut was_led = false;
    loop {
        let led = leadership.wait_for(|leadership| leadership.leader.is_some());
        let led = tokio::time::timeout(LEADERLESS, led).await.map(|led| led.map(drop));
        match led {
            Ok(Ok(())) => {
                was_led = true;
                let pause = LEADERLESS + Duration::from_millis(rand::rng().random_range(0..500));
                tokio::time::sleep(pause).await;
                continue;
            }
            Ok(Err(_)) => return,
            Err(_) => {}
        }
        let members = local.shell.read(machine::read::members).unwrap_or_default();
        for record in members.into_iter().map(|member| member.record).filter(|record| record.id != local.me) {
            if turned_away(&endpoint, &record.addr, Some(record.id)).await
                || (turned_away(&endpoint, &record.addr, None).await && !was_led)
            {
                return local.shell.fail(Error::Stopped(removed_text()));
            }
        }
    }
}

/// Whether the member at `addr`, which must be `id` if given, says that this one was removed.
async fn turned_away(endpoint: &Endpoint, addr: &str, id: Option<NodeId>) -> bool {
    let Err(Error::Refused(refusal)) = endpoint.dialer(addr, id).await else { return false };
    let removed = refusal.to_string().contains("removed");
    if removed && id.is_none() {
        tracing::error!(
            %addr,
            "the member there has this one for removed: a recovery may have begun a new epoch without it"
        );
    }
    removed
}

/// Tells the cluster where this member is reached, should that differ from what it knows.
pub(super) async fn announce_address(local: Arc<Local>) {
    loop {
        let mut leadership = local.shell.leadership();
        if leadership.wait_for(|leadership| leadership.leader.is_some()).await.is_err() {
            return;
        }
        let members = local.shell.read(machine::read::members).unwrap_or_default();
        let known = members.into_iter().find(|member| member.record.id == local.me);
        match known {
            Some(member)
                if member.record.addr == local.addr && member.record.client_url == local.client_url =>
            {
                return;
            }
            Some(member) => {
                let (addr, client_url) = (local.addr.clone(), local.client_url.clone());
                let record = MemberRecord { addr, client_url, ..member.record };
                let what = What::Command { command: Command::MemberUpdate(record), once: None };
                match local.shell.ask(what, OWN_PATIENCE).await {
                    Err(Error::Refused(refusal)) => {
                        tracing::error!(%refusal, "the cluster does not take this member's new address");
                        return;
                    }
                    Err(error) => tracing::warn!(%error, "could not announce the new address yet"),
                    Ok(_) => return,
                }
            }
            None => {} // the state has not arrived yet
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_table_that_was_received_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("CURRENT"), "what is no table is RocksDB's to open").unwrap();
        assert_eq!(damage_in(folder.path()), None);
        std::fs::write(folder.path().join("000007.sst"), [7; 4096]).unwrap();
        let damage = damage_in(folder.path()).expect("it is no table");
        assert!(damage.file.ends_with("000007.sst"), "{damage}");
    }

    #[cfg(feature = "sim")]
    #[test]
    fn a_planted_bug_is_found_here() {
        use crate::planted::{Bug, with};
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("000007.sst"), [7; 4096]).unwrap();
        assert!(damage_in(folder.path()).is_some());
        assert_eq!(with(Some(Bug::InstallDamaged), || damage_in(folder.path())), None);
    }
}
