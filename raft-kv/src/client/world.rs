//! What the loop's effects become outside: frames on QUIC, snapshots on streams of their own,
//! connections that follow the membership.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use std::collections::BTreeMap;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::local::Local;
use crate::codec::Wire;
use crate::error::{Error, NotDone, Refusal};
use crate::net::{BulkError, Dialer, Endpoint, Pace, PeerNet, Priority, Transfers};
use crate::node::shell::World;
use crate::node::wire::PeerFrame;
use crate::raft::PeerMessage;
use crate::types::{Member, MemberRecord, NodeId};

/// The world of one node.
pub(super) struct Outside {
    endpoint: Endpoint,
    peers: PeerNet,
    me: NodeId,
    runtime: tokio::runtime::Handle,
    addresses: Mutex<BTreeMap<NodeId, String>>,
    /// Members that the state does not know yet and others vouch for.
    acquaintances: Mutex<BTreeMap<NodeId, String>>,
    known: watch::Sender<Vec<(NodeId, String)>>,
    local: OnceLock<Weak<Local>>,
    /// How fast snapshots may leave, all together.
    pace: Arc<Pace>,
    transfers: Arc<Transfers>,
}

/// How long it waits before a transfer that broke is tried again.
const SNAPSHOT_PAUSE: Duration = Duration::from_millis(500);
/// The same where there is no room for it: people have to make some.
const ROOM_PAUSE: Duration = Duration::from_secs(5);

impl Outside {
    pub(super) fn new(endpoint: Endpoint, peers: PeerNet, me: NodeId, snapshot_rate: u64) -> Self {
        let runtime = tokio::runtime::Handle::current();
        let (addresses, acquaintances) = Default::default();
        let (known, local) = (watch::Sender::default(), OnceLock::new());
        let (pace, transfers) = (Arc::new(Pace::new(snapshot_rate)), Arc::default());
        Self { endpoint, peers, me, runtime, addresses, acquaintances, known, local, pace, transfers }
    }

    /// The members and where they are, as they change.
    pub(super) fn known(&self) -> watch::Receiver<Vec<(NodeId, String)>> {
        self.known.subscribe()
    }

    /// Snapshots to and from this member.
    pub(super) fn transfers(&self) -> Arc<Transfers> {
        self.transfers.clone()
    }

    /// Tells it whose world it is, once.
    pub(super) fn connect(&self, local: &Arc<Local>) {
        self.local.set(Arc::downgrade(local)).expect("connected once");
    }

    /// Ends the connections of members that were removed.
    pub(super) fn close_refused(&self) {
        self.endpoint.live().note_change();
        let _runtime = self.runtime.enter();
        if let Some(local) = self.local() {
            local.recheck(&self.endpoint);
        }
    }

    /// Answers to a member that the state does not know yet go to this address.
    pub(super) fn acquaint(&self, member: MemberRecord) {
        self.acquaintances.lock().insert(member.id, member.addr);
        self.reach();
    }

    /// A connection for requests to that member at that address, and to nobody else.
    pub(super) async fn dialer(&self, addr: &str, id: NodeId) -> Result<Dialer, Error> {
        self.endpoint.dialer(addr, Some(id)).await
    }

    /// Connects to whoever is known, by the state or by word.
    fn reach(&self) {
        let mut addresses = self.addresses.lock().clone();
        let mut acquaintances = self.acquaintances.lock();
        let live = self.endpoint.live();
        acquaintances.retain(|id, _| !addresses.contains_key(id) && live.is_vouched(*id));
        addresses.extend(acquaintances.clone());
        let _runtime = self.runtime.enter();
        self.peers.set_peers(addresses.into_iter().collect());
    }

    fn local(&self) -> Option<Arc<Local>> {
        self.local.get()?.upgrade()
    }
}

impl World for Outside {
    fn send(&self, frames: Vec<(NodeId, PeerFrame)>) {
        let mut by_peer: BTreeMap<NodeId, Vec<(Priority, Bytes)>> = BTreeMap::new();
        for (to, frame) in frames {
            let priority = if frame.urgent() { Priority::Urgent } else { Priority::Append };
            by_peer.entry(to).or_default().push((priority, frame.to_bytes()));
        }
        for (to, frames) in by_peer {
            self.peers.send(to, frames);
        }
    }

    fn send_snapshot(&self, to: NodeId, message: PeerMessage, folder: PathBuf) {
        let (endpoint, addr) = (self.endpoint.clone(), self.addresses.lock().get(&to).cloned());
        let (local, pace, transfers) = (self.local(), self.pace.clone(), self.transfers.clone());
        let index = message.snapshot_meta().map_or(0, |meta| meta.index);
        self.runtime.spawn(async move {
            let transfer = transfers.send(to);
            tracing::info!(%to, index, "sending a snapshot");
            let counted = (&*pace, &transfer);
            let mut ended = local.as_ref().map(|local| local.shell.ended());
            let ended = async {
                match &mut ended {
                    Some(ended) => drop(ended.wait_for(Option::is_some).await),
                    None => std::future::pending().await,
                }
            };
            let sent = async {
                match addr {
                    Some(addr) => endpoint.send_snapshot(to, &addr, message.to_bytes(), &folder, counted).await,
                    None => Err(Error::Refused(Refusal::MemberNotFound { id: to }).into()),
                }
            };
            let sent = tokio::select! {
                sent = sent => sent,
                () = ended => Err(Error::NotDone(NotDone::ShuttingDown).into()),
            };
            let (bytes, spared, took) = transfer.so_far();
            drop(transfer);
            match &sent {
                Ok(()) => tracing::info!(%to, index, bytes, spared, ?took, "sent a snapshot"),
                Err(error) => {
                    tracing::warn!(%to, index, bytes, spared, ?took, %error, "a snapshot was not sent; it is tried again");
                    let no_room =
                        matches!(error, BulkError::Transfer(Error::Refused(Refusal::NoRoom { .. })));
                    tokio::time::sleep(if no_room { ROOM_PAUSE } else { SNAPSHOT_PAUSE }).await;
                }
            }
            if let Some(local) = local {
                local.shell.snapshot_sent(to, sent.is_ok());
            }
        });
    }

    fn members(&self, members: &[Member]) {
        let addresses: BTreeMap<_, _> =
            members.iter().map(|member| (member.record.id, member.record.addr.clone())).collect();
        let known = addresses.contains_key(&self.me);
        self.known.send_replace(addresses.iter().map(|(id, addr)| (*id, addr.clone())).collect());
        *self.addresses.lock() = addresses;
        self.reach();
        self.close_refused();
        if !known && let Some(local) = self.local() {
            local.shell.fail(Error::Stopped(removed_text()));
        }
    }
}

/// What a removed member and those who meet it are told.
pub(super) fn removed_text() -> String {
    "this member was removed from the cluster: by `raft-kv member rm`, or by a recovery that began a new epoch \
     without it; keep its data directory aside or empty it, and join anew with a token"
        .into()
}
