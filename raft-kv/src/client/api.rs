//! The calls a node answers, as values: one list for callers in the process and for callers over
//! QUIC. Tags are on the wire between versions: they never change meaning.

use bytes::Bytes;

use crate::codec::{wire_enum, wire_struct};
use crate::error::Error;
use crate::machine::Answer;
use crate::machine::command::Command;
use crate::types::{
    AlarmKind, AlarmRequest, AuthChange, AuthQuery, AuthView, ClusterId, EnrolRequest, HandedKeys, Header,
    Hidden, Index, LeaseId, LeaseStatus, Member, MemberRecord, NodeId, OnceId, PointCall, PointsReply,
    QuotaCall, RangeRequest, RangeResponse, ReadmitRequest, Revision, Role, StateHash, Term, TransferCounts,
    TrustCall, TrustReply, TxnRequest, TxnResponse, Usage, WatchBatch, WatchRequest,
};

/// A request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Call {
    /// Reads keys.
    Range(RangeRequest),
    /// Changes the store: put, delete, a transaction that writes, leases.
    Command {
        /// What to change.
        command: Command,
        /// The caller's name for it, so that a repeat is answered and not done again.
        once: Option<OnceId>,
    },
    /// A transaction that only reads.
    ReadTxn(TxnRequest),
    /// Forgets old versions.
    Compact {
        /// The oldest revision that stays readable.
        revision: Revision,
        /// Answer only when this member has removed them from its store.
        physical: bool,
    },
    /// Gives a lease its full time again.
    LeaseKeepAlive(LeaseId),
    /// What a lease has left.
    LeaseTimeToLive {
        /// Which lease.
        id: LeaseId,
        /// Also list its keys.
        keys: bool,
    },
    /// Every lease.
    Leases,
    /// The members.
    Members,
    /// Makes a learner a voter.
    MemberPromote(NodeId),
    /// Takes a member out for good.
    MemberRemove(NodeId),
    /// The answering member and what it knows of the cluster.
    Info,
    /// The join token of a role.
    JoinToken(Role),
    /// A certificate for a client or tool.
    IssueCertificate {
        /// Its name (goes into the certificate).
        name: String,
        /// What it may do; managers come by `join`, not by this.
        role: Role,
        /// The certificate request (DER); only its public key is taken.
        request: Bytes,
    },
    /// Moves leadership to a member, or to the most caught-up one.
    Transfer(Option<NodeId>),
    /// Follows keys: answered by a stream of [`Reply::Watch`].
    Watch(WatchRequest),
    /// Joins the cluster; the one call that needs a token and no certificate.
    Join(JoinRequest),
    /// A member whose log was lost asks to be taken in under a new id; its certificate says who it
    /// was.
    Rejoin {
        /// The certificate request (DER).
        request: Bytes,
        /// Its name.
        name: String,
        /// Where it can be reached.
        addr: String,
        /// Where HTTP clients reach it; empty where they don't.
        client_url: String,
    },
    /// Changes users, roles or permissions.
    Auth(AuthChange),
    /// Asks about them.
    AuthQuery(AuthQuery),
    /// A token for a user with a password.
    Authenticate {
        /// The user.
        name: String,
        /// Its password.
        password: String,
    },
    /// Raises, ends or lists alarms.
    Alarm(AlarmRequest),
    /// The answering member's checksum over its key space, at a revision; 0 for now.
    HashKv(Revision),
    /// Changes a member's name or address.
    MemberUpdate(MemberRecord),
    /// Makes the revision at least this, and forgets all history.
    RaiseRevision(Revision),
    /// Asks the cluster's authority.
    Trust(TrustCall),
    /// A client or worker asks for its first certificate, by a token: needs no certificate.
    Enrol(EnrolRequest),
    /// A node whose certificate is not believed any more comes back, by a token.
    Readmit(ReadmitRequest),
    /// Asks about rollback points; they are changed by commands.
    Points(PointCall),
    /// Asks about the quota on live bytes, or sets it.
    Quota(QuotaCall),
    /// All of the state, as a stream of [`Reply::Backup`].
    Backup {
        /// Whether the data keys come along.
        keys: bool,
    },
    /// When revisions were there, as the answering member has seen it.
    Dates {
        /// Those behind this one.
        since: Revision,
    },
}
wire_enum!(Call {
    1 => Range(request), 2 => Command { command, once }, 3 => ReadTxn(request),
    4 => Compact { revision, physical }, 5 => LeaseKeepAlive(id), 6 => LeaseTimeToLive { id, keys },
    7 => Leases, 8 => Members, 9 => MemberPromote(id), 10 => MemberRemove(id), 11 => Info,
    12 => JoinToken(role), 13 => IssueCertificate { name, role, request }, 14 => Transfer(to),
    15 => Watch(request), 16 => Join(request), 17 => Rejoin { request, name, addr, client_url },
    18 => Auth(change), 19 => AuthQuery(query), 20 => Authenticate { name, password },
    21 => Alarm(request), 22 => HashKv(revision), 23 => MemberUpdate(record), 24 => RaiseRevision(to), 25 => Trust(call), 26 => Enrol(request), 27 => Readmit(request), 28 => Points(call),
    30 => Quota(call),
    29 => Backup { keys },
    33 => Dates { since },
});

/// The answer to a [`Call`] of the same place in the list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// To a range.
    Range(RangeResponse),
    /// To a command.
    Command(Answer),
    /// To a transaction that only reads.
    Txn(TxnResponse),
    /// To anything that has nothing to tell.
    Done,
    /// To a question about one lease.
    Lease(LeaseStatus),
    /// Ids and granted seconds of all leases.
    Leases(Vec<(LeaseId, i64)>),
    /// To members and to changes of them.
    Members(Vec<Member>),
    /// To info.
    Info(Box<Info>),
    /// A token.
    Token(Hidden),
    /// A certificate (DER) and the roots (DER) to trust.
    Certificate {
        /// The leaf first.
        chain: Vec<Bytes>,
        /// All trusted roots.
        roots: Vec<Bytes>,
    },
    /// Of a watch.
    Watch(WatchBatch),
    /// To a join.
    Joined(Joined),
    /// To a question about users and roles.
    Auth(AuthView),
    /// To a checksum.
    Hash(StateHash),
    /// To alarms: those there are after it.
    Alarms(Vec<(NodeId, AlarmKind)>),
    /// Of the cluster's authority.
    Trust(TrustReply),
    /// Of rollback points.
    Points(PointsReply),
    /// What the live keys take, and what they may.
    Usage(Usage),
    /// Of a backup.
    Backup(BackupPart),
    /// Revisions with times at which they were there, in milliseconds since 1970; both ascend.
    Dates(Vec<(Revision, i64)>),
}
wire_enum!(Reply {
    1 => Range(response), 2 => Command(answer), 3 => Txn(response), 4 => Done, 5 => Lease(status),
    6 => Leases(leases), 7 => Members(members), 8 => Info(info), 9 => Token(token),
    10 => Certificate { chain, roots }, 11 => Watch(batch), 12 => Joined(joined),
    13 => Auth(view), 14 => Hash(hash), 15 => Alarms(alarms), 16 => Trust(reply), 17 => Points(reply),
    19 => Usage(usage),
    18 => Backup(part),
    21 => Dates(dates),
});

/// What goes back over the wire: where it comes from, and the answer or the error.
pub type Answered = Result<(Header, Reply), Error>;

/// A part of a backup on its way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BackupPart {
    /// What it is of; first.
    Begin(BackupInfo),
    /// So much of its content.
    Data(Bytes),
}
wire_enum!(BackupPart { 1 => Begin(info), 2 => Data(bytes) });

/// What a backup is of.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BackupInfo {
    /// The cluster.
    pub cluster: ClusterId,
    /// The member that made it.
    pub member: NodeId,
    /// The revision that it is consistent at.
    pub revision: Revision,
    /// The last entry in it.
    pub index: Index,
    /// That entry's term.
    pub term: Term,
    /// When it was made, in seconds since 1970.
    pub made: i64,
    /// The version of `raft-kv` that made it.
    pub version: String,
    /// Bytes of its content: a tar of the files of a checkpoint.
    pub bytes: u64,
    /// Files of the state in it.
    pub files: u64,
    /// The revision that it has the changes since; 0 for all of a cluster.
    pub since: Revision,
    /// Whether it has the data keys that the cluster's secrets are sealed with.
    pub keys: bool,
    /// In an archive: the SHA-256 of the file that it goes on from; empty elsewhere.
    pub follows: Bytes,
}
wire_struct!(BackupInfo {
    cluster,
    member,
    revision,
    index,
    term,
    made,
    version,
    bytes,
    files,
    since,
    keys,
    follows
});

/// What a joiner sends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JoinRequest {
    /// The token's secret part.
    pub secret: Hidden,
    /// The certificate request (DER).
    pub request: Bytes,
    /// The name it wants.
    pub name: String,
    /// Where it can be reached.
    pub addr: String,
    /// Where HTTP clients reach it, `https://host:port`; empty where they don't.
    pub client_url: String,
}
wire_struct!(JoinRequest { secret, request, name, addr, client_url });

/// What a joiner gets.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Joined {
    /// The cluster joined.
    pub cluster: ClusterId,
    /// The joiner's id for ever.
    pub node: NodeId,
    /// Its certificate chain (DER), leaf first.
    pub chain: Vec<Bytes>,
    /// The roots to trust (DER).
    pub roots: Vec<Bytes>,
    /// The members, itself included.
    pub members: Vec<Member>,
    /// The keys that the cluster's secrets are sealed with.
    pub keys: HandedKeys,
}
wire_struct!(Joined { cluster, node, chain, roots, members, keys });

/// A member and what it knows of the cluster.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Info {
    /// The cluster.
    pub cluster: ClusterId,
    /// The member that answers.
    pub member: NodeId,
    /// Its name.
    pub name: String,
    /// Its advertised address.
    pub addr: String,
    /// The leader it knows, if any.
    pub leader: Option<NodeId>,
    /// Its raft term.
    pub term: Term,
    /// Whether it only learns.
    pub learner: bool,
    /// Last entry it knows committed.
    pub committed: Index,
    /// Last entry in its state.
    pub applied: Index,
    /// Its current revision.
    pub revision: Revision,
    /// The oldest revision that can be read, or 0.
    pub compacted: Revision,
    /// Bytes of its state on disk.
    pub state_bytes: u64,
    /// `raft-kv`'s version.
    pub version: String,
    /// SHA-256 of the root certificate, hexadecimal.
    pub root_digest: String,
    /// When its own certificate ends, in seconds since 1970.
    pub certificate_ends: i64,
    /// Watchers it serves.
    pub watchers: u64,
    /// Syncs to disk and requests proposed since it started: (syncs, requests).
    pub syncs: (u64, u64),
    /// Whether its certificate should have been renewed by now: less than a fifth of its life is left.
    pub certificate_ends_soon: bool,
    /// What the live keys take, and what they may.
    pub usage: Usage,
    /// Bytes that are free on the disk of its data directory; 0 where that is not known.
    pub disk_free: u64,
    /// Members whose disk is short, as this one knows it.
    pub disk_short: Vec<NodeId>,
    /// Snapshots that it has sent and received, and those under way.
    pub snapshots: TransferCounts,
    /// How far the reading of its disk has come.
    pub scrub: ScrubStatus,
    /// First entry in its log: who is behind that gets a snapshot.
    pub log_first: Index,
    /// The cluster's epoch: 1, and one more with each recovery.
    pub epoch: u64,
}
/// How far a member has come with reading its disk again, which finds what has rotted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ScrubStatus {
    /// Rounds since its start.
    pub rounds: u64,
    /// When the last one ended, in seconds since 1970; 0 before that.
    pub ended: i64,
    /// Bytes that it read.
    pub bytes: u64,
    /// Damaged places found since its start.
    pub problems: u64,
}
wire_struct!(ScrubStatus { rounds, ended, bytes, problems });
wire_struct!(Info {
    cluster,
    member,
    name,
    addr,
    leader,
    term,
    learner,
    committed,
    applied,
    revision,
    compacted,
    state_bytes,
    version,
    root_digest,
    certificate_ends,
    watchers,
    syncs,
    certificate_ends_soon,
    usage,
    disk_free,
    disk_short,
    snapshots,
    scrub,
    log_first,
    epoch,
});

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::Wire;
    use crate::error::{NotDone, Refusal, Unknown};
    use crate::types::{KeyRange, MemberRecord, MemberRole, PutRequest};

    fn every_call() -> Vec<Call> {
        let put = PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() };
        let range = RangeRequest { range: KeyRange::prefix("k"), limit: -1, ..RangeRequest::default() };
        let request = Bytes::from_static(b"csr");
        let (name, addr, secret) = (String::from("n"), String::from("h:1"), Hidden::from("s"));
        vec![
            Call::Range(range),
            Call::Command { command: Command::Put(put), once: Some(OnceId { client: 1, seq: 2 }) },
            Call::ReadTxn(TxnRequest::default()),
            Call::Compact { revision: -1, physical: true },
            Call::LeaseKeepAlive(i64::MIN),
            Call::LeaseTimeToLive { id: 1, keys: true },
            Call::Leases,
            Call::Members,
            Call::MemberPromote(NodeId(1)),
            Call::MemberRemove(NodeId(u64::MAX)),
            Call::Info,
            Call::JoinToken(Role::Worker),
            Call::IssueCertificate { name: name.clone(), role: Role::Client, request: request.clone() },
            Call::Transfer(None),
            Call::Transfer(Some(NodeId(1))),
            Call::Watch(WatchRequest { start_revision: -5, ..WatchRequest::default() }),
            Call::Join(JoinRequest {
                secret,
                request: request.clone(),
                name: name.clone(),
                addr: addr.clone(),
                client_url: "https://h:2".into(),
            }),
            Call::Rejoin { request, name, addr, client_url: String::new() },
            Call::Backup { keys: true },
            Call::Dates { since: 7 },
        ]
    }

    fn every_answer() -> Vec<Answered> {
        let header = Header { cluster: ClusterId(1), member: NodeId(2), revision: 3, term: 4 };
        let record =
            MemberRecord { id: NodeId(1), name: "m".into(), addr: "h:1".into(), client_url: "u".into() };
        let members = vec![Member { record, role: MemberRole::Learner }];
        let (chain, roots) = (vec![Bytes::from_static(b"c")], vec![Bytes::from_static(b"r")]);
        let joined = Joined {
            cluster: ClusterId(1),
            node: NodeId(2),
            chain: chain.clone(),
            roots: roots.clone(),
            members: members.clone(),
            keys: crate::pki::Keyring::generate().handed(),
        };
        let replies = [
            Reply::Range(RangeResponse::default()),
            Reply::Command(Answer::Members(members.clone())),
            Reply::Txn(TxnResponse::default()),
            Reply::Done,
            Reply::Lease(LeaseStatus { id: 1, ttl: -1, granted_ttl: 0, keys: vec!["k".into()] }),
            Reply::Leases(vec![(1, 2)]),
            Reply::Members(members),
            Reply::Info(Box::new(Info { name: "n".into(), syncs: (1, 2), ..Info::default() })),
            Reply::Token("t".into()),
            Reply::Certificate { chain, roots },
            Reply::Watch(WatchBatch::Compacted(7)),
            Reply::Watch(WatchBatch::Progress(7)),
            Reply::Watch(WatchBatch::Changes(vec![])),
            Reply::Joined(joined),
            Reply::Backup(BackupPart::Begin(BackupInfo { version: "1".into(), ..BackupInfo::default() })),
            Reply::Backup(BackupPart::Data(Bytes::from_static(b"part"))),
            Reply::Dates(vec![(3, 4), (5, 6)]),
        ];
        let errors = [
            Error::Refused(Refusal::EmptyRange),
            Error::NotDone(NotDone::NoState),
            Error::Unknown(Unknown::ConnectionLost),
            Error::Stopped("disk".into()),
        ];
        replies.into_iter().map(|reply| Ok((header, reply))).chain(errors.map(Err)).collect()
    }

    /// It reads back, and neither a part of it nor more than it does.
    fn check<T: Wire + PartialEq + std::fmt::Debug>(value: &T) {
        let bytes = value.to_bytes();
        assert_eq!(&T::from_bytes(bytes.clone()).unwrap(), value);
        for len in 0..bytes.len() {
            assert!(T::from_bytes(bytes.slice(..len)).is_err(), "{len} bytes of {value:?}");
        }
        assert!(T::from_bytes([&bytes[..], &[0]].concat().into()).is_err(), "more than {value:?}");
    }

    #[test]
    fn calls_and_answers_read_back() {
        every_call().iter().for_each(check);
        every_answer().iter().for_each(check);
    }

    #[test]
    fn tags_keep_their_meaning() {
        let tags: Vec<u8> = every_call().iter().map(|call| call.to_bytes()[0]).collect();
        assert_eq!(tags, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 14, 15, 16, 17, 29, 33]);
    }

    proptest! {
        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), tag in 0..20u8) {
            let tagged = Bytes::from([&[tag], &bytes[..]].concat());
            let _ = (Call::from_bytes(tagged.clone()), Reply::from_bytes(tagged));
            let _ = (Call::from_bytes(bytes.clone().into()), Answered::from_bytes(bytes.into()));
        }
    }
}
