//! Every bound of the product, in one place and checked against each other when compiled.
//! Reaching one gives a typed refusal or back-pressure, never a crash.

use std::time::Duration;

/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 32 * 1024;
/// Largest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 1024 * 1024 + 512 * 1024 - MAX_KEY_BYTES;
/// Largest request in its encoded form, in bytes.
pub const MAX_REQUEST_BYTES: usize = 1024 * 1024 + 512 * 1024;
/// Operations in each of a transaction's three lists.
pub const MAX_TXN_OPS: usize = 128;
/// What every key of tasks and state begins with; callers from outside write nothing there by raw keys.
pub const ORCHESTRATION_PREFIX: &str = "_rk/";
/// Longest kind, id or name of an object, task or service, in bytes.
pub const MAX_ORCHESTRATION_NAME_BYTES: usize = 256;
/// Labels of an object, task or node.
pub const MAX_LABELS: usize = 64;
/// Longest name of a label, in bytes.
pub const MAX_LABEL_NAME_BYTES: usize = 128;
/// Longest value of a label, in bytes.
pub const MAX_LABEL_VALUE_BYTES: usize = 512;
/// Objects that one object or task refers to.
pub const MAX_REFS: usize = 64;
/// Largest spec of an object or task, in bytes.
pub const MAX_SPEC_BYTES: usize = 512 * 1024;
/// Largest status of an object, in bytes.
pub const MAX_OBJECT_STATUS_BYTES: usize = 128 * 1024;
/// Longest message and error of a task's status, in bytes each.
pub const MAX_STATUS_TEXT_BYTES: usize = 4 * 1024;
/// Largest description of a node, in bytes.
pub const MAX_DESCRIPTION_BYTES: usize = 128 * 1024;
/// Letters and digits of a task's id that is drawn.
pub const TASK_ID_LEN: usize = 25;
/// Conditions of one batch of changes of tasks and state: one or two for each change, one for each reference.
pub const MAX_BATCH_COMPARES: usize = 96;
/// Operations of each nested transaction of a batch.
pub const ORCHESTRATION_NESTED_OPS: usize = MAX_TXN_OPS - MAX_BATCH_COMPARES;
/// Keys that one batch writes.
pub const MAX_BATCH_WRITES: usize = MAX_BATCH_COMPARES * ORCHESTRATION_NESTED_OPS;
/// Keys of tasks and state that one transaction reads.
pub const MAX_ORCHESTRATION_READ_KEYS: usize = 64;
/// Keys that one step of a listing finds.
pub const MAX_LISTED_AT_ONCE: usize = 1000;
/// How often a change is tried again because others changed what it rests on.
pub const MAX_ORCHESTRATION_TRIES: usize = 32;
/// Tasks whose status one transaction takes from their node.
pub const MAX_REPORTED_AT_ONCE: usize = 32;
/// Tasks of a slot that a look for ended ones finds.
pub const MAX_SLOT_LOOK: usize = 256;
/// Ended tasks of a slot that one transaction removes.
pub const MAX_TRIMMED_AT_ONCE: usize = 8;
/// Tasks of a node that are looked at before its record is removed.
pub const MAX_NODE_TASKS_LOOK: usize = 4096;
/// How deep transactions nest.
pub const MAX_TXN_DEPTH: usize = 8;
/// Longest time to live of a lease, in seconds (etcd's own bound).
pub const MAX_LEASE_TTL: i64 = 9_000_000_000;
/// Shortest time to live of a lease, in seconds; less is raised to it.
pub const MIN_LEASE_TTL: i64 = 2;
/// Leases that one log entry may end.
pub const MAX_LEASES_PER_EXPIRY: usize = 256;
/// Longest member name, in bytes.
pub const MAX_NAME_BYTES: usize = 128;
/// Longest address, in bytes.
pub const MAX_ADDR_BYTES: usize = 256;
/// Join tokens.
pub const MAX_JOIN_TOKENS: usize = 1000;
/// Nodes that the authority knows: members, clients and workers with a certificate.
pub const MAX_NODES: u64 = 100_000;
/// Records of trust that one change removes because they have ended.
pub const MAX_TIDIED_PER_STEP: usize = 64;
/// Nodes that one change says were verified.
pub const MAX_VERIFIED_PER_STEP: usize = 256;
/// Secrets that one change seals anew.
pub const MAX_RESEALED_PER_STEP: usize = 256;
/// Longest secret as it is sealed, in bytes: the key of a root is the longest.
pub const MAX_SEALED_BYTES: usize = 8 * 1024;
/// Seconds that a new data key waits for members that have not stored it and that a quorum does not need.
pub const DATA_KEY_PATIENCE: i64 = 5;
/// Longest text of what went wrong at a node, in bytes.
pub const MAX_NODE_ERROR_BYTES: usize = 512;
/// Streams of one connection that tell what is believed as it changes.
pub const MAX_FOLLOWS_PER_CONNECTION: usize = 4;
/// Clusters that one was restored from, one after the other, whose clients' and workers' certificates count.
pub const MAX_PREDECESSORS: usize = 16;
/// Roots that can be believed at once: the one in force and those that are to replace it.
pub const MAX_BELIEVED_ROOTS: usize = 4;
/// Keys of roots that were given up and are remembered.
pub const MAX_DISTRUSTED: usize = 64;
/// Certificates between leaves and a root.
pub const MAX_INTERMEDIATES: usize = 3;
/// Largest certificate of a root or intermediate, in bytes.
pub const MAX_CERTIFICATE_BYTES: usize = 16 * 1024;
/// An external signer that takes longer is ended.
pub const SIGNER_DEADLINE: Duration = Duration::from_secs(30);
/// Bytes that an external signer may answer.
pub const MAX_SIGNER_ANSWER_BYTES: usize = 64 * 1024;
/// External signers that one member runs at once; further requests wait for a turn.
pub const MAX_SIGNER_RUNS: usize = 4;
/// Members of a raft group, learners included.
pub const MAX_MEMBERS: usize = 15;
/// Clients whose last answer is kept for repeats.
pub const MAX_ONCE_CLIENTS: u64 = 10_000;
/// Largest answer kept for repeats, in bytes; a request whose answer is larger can't be named.
pub const MAX_ONCE_ANSWER_BYTES: usize = 2 * 1024 * 1024;
/// Longest name of a user or a role, in bytes.
pub const MAX_AUTH_NAME_BYTES: usize = 256;
/// Users.
pub const MAX_USERS: u64 = 10_000;
/// Roles.
pub const MAX_ROLES: u64 = 10_000;
/// Roles of one user.
pub const MAX_USER_ROLES: usize = 256;
/// Permissions of one role.
pub const MAX_ROLE_PERMISSIONS: usize = 1024;
/// Highest cost of a stored password's hash: what one check of it may take.
pub const MAX_BCRYPT_COST: u32 = 16;
/// Longest password, in bytes: bcrypt looks at no more.
pub const MAX_PASSWORD_BYTES: usize = 72;
/// The key that signs tokens, in bytes.
pub const TOKEN_KEY_BYTES: usize = 32;
/// Longest token that is looked at, in bytes.
pub const MAX_TOKEN_BYTES: usize = 1024;
/// How long a token is valid.
pub const TOKEN_VALIDITY: Duration = Duration::from_secs(12 * 3600);
/// Passwords that are checked at once; further ones wait.
pub const MAX_PASSWORD_CHECKS: usize = 2;
/// What one request may remove, in bytes: keys, values and [`DELETE_KEY_BYTES`] for each key. A lease
/// never holds more than can be removed at its end.
pub const MAX_DELETE_BYTES: usize = 256 * 1024 * 1024;
/// What removing a key takes in memory besides key and value, in bytes: its records in four tables
/// and its event.
pub const DELETE_KEY_BYTES: usize = 512;
/// Longest secret of a join token, in bytes.
pub const MAX_SECRET_BYTES: usize = 256;
/// The highest revision that the store can be raised to; there is as much room above it.
pub const MAX_RAISED_REVISION: i64 = 1 << 62;
/// Bytes of live keys and values that a new cluster's quota allows.
pub const DEFAULT_QUOTA_BYTES: u64 = 8 * 1024 * 1024 * 1024;
/// Bytes of a member's disk that are kept free for what must go on when it is short: its log, what of
/// the state is still in memory, and what removes keys and versions.
pub const DISK_RESERVE_BYTES: u64 = 1024 * 1024 * 1024;
/// How often a member looks how much of its disk is free.
pub const DISK_LOOK: Duration = Duration::from_secs(1);
/// The same where not much more is free than the reserve.
pub const DISK_LOOK_CLOSELY: Duration = Duration::from_millis(100);
/// A member whose disk was short and that its leader has not heard of for this long stops nothing any more.
pub const DISK_SILENCE: Duration = Duration::from_secs(10);
/// By how much the revision of a new epoch, or of a restored cluster, goes up unless told otherwise: a week of
/// 1,500 writes a second that whoever goes on knows nothing of.
pub const RECOVERY_REVISIONS: i64 = 1_000_000_000;
/// By how much a new epoch's term goes up: 30 years of an election a second.
pub const RECOVERY_TERMS: u64 = 1_000_000_000;
/// Bytes of entries that a recovery carries out at once.
pub const RECOVERY_READ_BYTES: u64 = 8 * 1024 * 1024;
/// Physical removals of old versions between two batches of entries.
pub const COMPACT_STEP_KEYS: usize = 1000;
/// Rollback points, those not counted that rollbacks make. A difference opens a scan for each.
pub const MAX_POINTS: usize = 512;
/// Rollback points made by rollbacks that are kept.
pub const MAX_UNDO_POINTS: usize = 16;
/// Schedules of rollback points.
pub const MAX_SCHEDULES: usize = 16;
/// Points that one schedule keeps, at most.
pub const MAX_SCHEDULE_KEEP: u32 = 256;
/// Shortest time from one point of a schedule to the next, in seconds.
pub const MIN_SCHEDULE_SECONDS: u64 = 10;
/// Longest time from one point of a schedule to the next, in seconds.
pub const MAX_SCHEDULE_SECONDS: u64 = 366 * 24 * 3600;
/// Longest name of a rollback point, a schedule or an author, in bytes. A schedule's points have 17
/// more.
pub const MAX_POINT_NAME_BYTES: usize = 128;
/// Longest comment on a rollback point, in bytes.
pub const MAX_POINT_COMMENT_BYTES: usize = 1024;
/// The last time that a rollback point may be made or expire, in milliseconds since 1970: the year
/// 2500.
pub const MAX_POINT_TIME: i64 = 16_725_225_600_000;
/// Keys that one step of a rollback looks at: what the store writes at once. Members write the same
/// records of a rollback only with the same steps: a change of this is a change of the log's meaning.
pub const ROLLBACK_STEP_KEYS: usize = 1024;
/// Keys and values that one step of a rollback handles, in bytes (one larger key goes alone). As above.
pub const ROLLBACK_STEP_BYTES: usize = 4 * 1024 * 1024;
/// Keys that one page of a difference looks at.
pub const MAX_DIFF_STEPS: u64 = 10_000;
/// Keys and values in one page of a difference, in bytes (one larger key goes alone).
pub const MAX_DIFF_PAGE_BYTES: usize = 1024 * 1024;

/// Payload that one log entry gathers from many callers, in bytes; one larger request goes alone.
pub const MAX_ENTRY_BATCH_BYTES: usize = 64 * 1024;
/// Requests that one log entry gathers.
pub const MAX_ENTRY_BATCH_REQUESTS: usize = 256;
/// Largest log entry, in bytes: a whole batch and one largest request.
pub const MAX_ENTRY_BYTES: usize = MAX_REQUEST_BYTES + MAX_ENTRY_BATCH_BYTES + 64 * 1024;
/// Entry bytes in one append message, as raft counts them (one larger entry goes alone).
pub const MAX_APPEND_BYTES: u64 = 256 * 1024;
/// Append messages on their way to one follower.
pub const MAX_INFLIGHT_APPENDS: usize = 64;
/// Entry bytes proposed and not yet committed; beyond it callers are told to wait.
pub const MAX_UNCOMMITTED_BYTES: u64 = 64 * 1024 * 1024;
/// Entry bytes handed to the state machine in one go.
pub const MAX_COMMITTED_BYTES: u64 = 4 * 1024 * 1024;
/// Committed entry bytes that wait for the state machine before proposals are refused.
pub const MAX_APPLY_LAG_BYTES: usize = 32 * 1024 * 1024;
/// Requests of local callers waiting for an answer on one node.
pub const MAX_WAITING_REQUESTS: usize = 32 * 1024;
/// Bytes of requests of local callers waiting on one node.
pub const MAX_WAITING_BYTES: usize = 64 * 1024 * 1024;
/// Largest term or index that is believed: far above what a cluster reaches, far below overflow.
pub const MAX_RAFT_NUMBER: u64 = 1 << 60;
/// Longest context in a heartbeat, in bytes.
pub const MAX_PEER_CONTEXT_BYTES: usize = 64;
/// Linearizable reads waiting for raft's confirmation; more are refused.
pub const MAX_PENDING_READS: usize = 4096;
/// Largest frame between peers, in bytes.
pub const MAX_FRAME_BYTES: usize = 8 * 1024 * 1024;
/// Frames from peers that wait for the loop, in bytes.
pub const MAX_INBOX_BYTES: usize = 32 * 1024 * 1024;
/// Frames queued for one peer.
pub const MAX_PEER_OUTBOX_FRAMES: usize = 4096;
/// Bytes queued for one peer; beyond it frames are dropped and raft is told.
pub const MAX_PEER_OUTBOX_BYTES: usize = 16 * 1024 * 1024;
/// Log kept in memory for followers, in bytes.
pub const LOG_CACHE_BYTES: usize = 32 * 1024 * 1024;
/// Bytes of one file of the raft log; a larger record gets a larger file of its own.
pub const LOG_SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// Emptied files of the raft log that are kept for reuse.
pub const LOG_SPARE_SEGMENTS: usize = 2;
/// Recent changes kept in memory for watchers, in bytes.
pub const WATCH_RING_BYTES: usize = 64 * 1024 * 1024;
/// Events gathered in one answer to a watcher, in bytes (one larger revision goes alone).
pub const WATCH_BATCH_BYTES: usize = 1024 * 1024;
/// Watchers of one node.
pub const MAX_WATCHERS: usize = 200_000;
/// Watchers of one stream.
pub const MAX_WATCHERS_PER_STREAM: usize = 100_000;
/// Recent changes that one poll of a watcher looks at: the hub is locked meanwhile.
pub const MAX_POLL_SCAN: usize = 4096;
/// Readings of history for watchers that one node does at once; each holds about
/// [`WATCH_BATCH_BYTES`].
pub const MAX_WATCH_READS: usize = 8;
/// Ranges, and transactions of nothing else, that one process reads aside at once; more wait. Each
/// holds at most [`MAX_RANGE_BYTES`].
pub const MAX_RANGE_READS: usize = 16;
/// Readings of the whole store that one process does at once: checksums and measures; more wait.
pub const MAX_WHOLE_READS: usize = 4;
/// Bytes of a range's answer before it must be asked for in pages.
pub const MAX_RANGE_BYTES: usize = 64 * 1024 * 1024;
/// Bytes of a streamed range's part (one larger key goes alone).
pub const RANGE_CHUNK_BYTES: usize = 1024 * 1024;
/// Keys of a streamed range's first part; later ones grow and shrink by their bytes.
pub const RANGE_FIRST_KEYS: usize = 10;
/// Keys of a streamed range's part, at most.
pub const MAX_RANGE_CHUNK_KEYS: usize = 10_240;
/// Counts of ranges that one node remembers.
pub const MAX_REMEMBERED_COUNTS: usize = 256;
/// Longest key and end of a range whose count is remembered, in bytes.
pub const MAX_REMEMBERED_RANGE_BYTES: usize = 4 * 1024;
/// Revisions, and changes, that a remembered count is brought forward or back by.
pub const MAX_COUNT_STEPS: i64 = 4096;

/// Large answers and batches of watch events on their way to the clients of one node's HTTPS door, in
/// bytes.
pub const MAX_ANSWERS_BYTES: usize = 512 * 1024 * 1024;
/// Answers up to this do not count as large, in bytes: they are bounded by the streams that there can
/// be.
pub const SMALL_ANSWER_BYTES: usize = 4 * 1024;
/// How long a large answer waits for others to be sent before it is refused.
pub const ANSWER_PATIENCE: Duration = Duration::from_secs(1);
/// An answer that its client has read nothing of for this long is ended where others wait for room.
pub const ANSWER_STALL: Duration = Duration::from_secs(10);
/// A watcher's stream that its client has not read from for this long keeps no history in memory.
pub const STALLED_AFTER: Duration = Duration::from_millis(100);

/// Connections of one node, in all.
pub const MAX_CONNECTIONS: usize = 4096;
/// Failed joins that one address (IPv6: one /64) may have at once; more wait.
pub const MAX_JOIN_FAILURES_PER_SOURCE: u32 = 10;
/// After this long one failed join of an address is forgiven.
pub const JOIN_FAILURE_PER_SOURCE: Duration = Duration::from_secs(3);
/// Failed joins of all addresses that a node looks at; beyond it addresses that failed lately wait.
pub const MAX_JOIN_FAILURES: u32 = 200;
/// After this long one failed join in all is forgiven.
pub const JOIN_FAILURE: Duration = Duration::from_millis(100);
/// Addresses whose failed joins are remembered.
pub const MAX_FAILING_SOURCES: usize = 4096;
/// Handshakes under way on one node.
pub const MAX_HANDSHAKES: usize = 256;
/// A handshake that takes longer is dropped.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);
/// Streams that one connection may have open towards us.
pub const MAX_STREAMS_PER_CONNECTION: u32 = 1024;
/// A request from outside must arrive whole within this.
pub const REQUEST_READ_DEADLINE: Duration = Duration::from_secs(10);
/// How long a request waits for its answer where the caller names no deadline.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(7);
/// The longest that a request may be told to wait.
pub const MAX_PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);
/// Requests from outside that one node reads, carries out or answers at once; more wait at the
/// door. Watches that have begun do not count, they are bounded by [`MAX_WATCHERS`].
pub const MAX_SERVED_REQUESTS: usize = 8192;

/// Largest frame of a request, in bytes: a largest request and what surrounds it.
pub const MAX_REQUEST_FRAME_BYTES: usize = MAX_REQUEST_BYTES + 64 * 1024;
/// Largest JSON value that the gateway reads as one request, in bytes: a largest request in base64,
/// and what surrounds it.
pub const MAX_JSON_REQUEST_BYTES: usize = MAX_REQUEST_BYTES / 3 * 4 + 512 * 1024;
/// Values in one request in JSON: bounds what a few bytes of it may become in memory.
pub const MAX_JSON_VALUES: usize = 64 * 1024;
/// Largest frame of an answer, in bytes: a largest range and what surrounds it.
pub const MAX_ANSWER_FRAME_BYTES: usize = MAX_RANGE_BYTES + MAX_REQUEST_FRAME_BYTES;
/// Largest frame of somebody who has not joined yet, in bytes.
pub const MAX_JOIN_FRAME_BYTES: usize = 32 * 1024;
/// Largest certificate request that is looked at, in bytes; an honest one has about 250.
pub const MAX_CSR_BYTES: usize = 8 * 1024;
/// What is kept of an unverified connection's unread data, in bytes.
pub const UNVERIFIED_WINDOW_BYTES: u32 = 64 * 1024;
/// What is kept of a verified connection's unread data, in bytes, over all its streams.
pub const VERIFIED_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// What is kept of one stream's unread data, in bytes.
pub const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Verified connections that wait for the node to take them.
pub const ACCEPT_QUEUE: usize = 64;
/// Without a sign of life a connection ends after this.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(5);
/// A dialler sends a sign of life this often.
pub const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Pause after the first failed dial of a peer; it doubles up to [`MAX_DIAL_PAUSE`].
pub const MIN_DIAL_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause between two dials of a peer.
pub const MAX_DIAL_PAUSE: Duration = Duration::from_secs(1);
/// Bytes of a snapshot's file under one checksum.
pub const BULK_CHUNK_BYTES: usize = 256 * 1024;
/// The same where the rate is small.
pub const MIN_BULK_CHUNK_BYTES: usize = 16 * 1024;
/// The smallest rate to which snapshots may be bound, in bytes per second: below it a receiver could
/// think that the sender is gone.
pub const MIN_SNAPSHOT_RATE: u64 = 64 * 1024;
/// How long what arrived of a snapshot that broke is kept for another try.
pub const PARTIAL_SNAPSHOT_KEPT: Duration = Duration::from_secs(600);
/// How long the checkpoint of a transfer that broke, and the log behind it, are kept for another try.
pub const CHECKPOINT_KEPT: Duration = Duration::from_secs(60);
/// Largest frame of a snapshot, in bytes: a chunk with its checksum, or the header.
pub const MAX_BULK_FRAME_BYTES: usize = 1024 * 1024;
/// Files of one snapshot.
pub const MAX_BULK_FILES: u32 = 100_000;
/// A sender of a snapshot that sends nothing for this long is given up.
pub const BULK_STALL: Duration = Duration::from_secs(30);

/// How fast a member's disk is read again to find what has rotted, in bytes a second.
pub const SCRUB_BYTES_PER_SECOND: u64 = 16 * 1024 * 1024;
/// How often all of it is read again.
pub const SCRUB_EVERY: Duration = Duration::from_secs(24 * 60 * 60);

/// Connections to one node's HTTPS door.
pub const MAX_DOOR_CONNECTIONS: usize = 16 * 1024;
/// TLS handshakes under way at the HTTPS door; more wait before they are accepted.
pub const MAX_DOOR_HANDSHAKES: usize = 128;
/// A handshake at the HTTPS door that takes longer is dropped.
pub const DOOR_HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);
/// HTTP/2 streams that one connection may have open: watch streams are streams.
pub const MAX_DOOR_STREAMS: u32 = 16 * 1024;
/// Bytes of a request's headers.
pub const MAX_DOOR_HEADER_BYTES: u32 = 64 * 1024;
/// An HTTP/1.1 request's headers must arrive within this.
pub const DOOR_HEADER_DEADLINE: Duration = Duration::from_secs(10);
/// Largest gRPC message that is decoded, in bytes; what is above [`MAX_REQUEST_BYTES`] and below
/// this is refused with etcd's own words.
pub const MAX_DOOR_MESSAGE_BYTES: usize = MAX_REQUEST_BYTES + 512 * 1024;

/// One tick of raft's clock.
pub const TICK: Duration = Duration::from_millis(50);
/// Ticks between heartbeats.
pub const HEARTBEAT_TICKS: usize = 2;
/// Ticks without a leader before an election, at least.
pub const ELECTION_TICKS: usize = 20;
/// Ticks without a leader before an election, below this.
pub const ELECTION_TICKS_MAX: usize = 30;

const _: () = {
    // An escaped byte takes three; a changed object writes its labels and references and removes those of before.
    assert!(
        3 * (MAX_LABEL_NAME_BYTES + MAX_LABEL_VALUE_BYTES + 5 * MAX_ORCHESTRATION_NAME_BYTES) < MAX_KEY_BYTES
    );
    assert!(MAX_REFS + 4 <= MAX_BATCH_COMPARES && 4 * MAX_LABELS + 2 * MAX_REFS + 8 <= MAX_BATCH_WRITES);
    assert!(
        2 * MAX_REPORTED_AT_ONCE + 1 <= MAX_BATCH_COMPARES && MAX_TRIMMED_AT_ONCE * 2 <= MAX_BATCH_COMPARES
    );
    assert!(
        2 * MAX_REPORTED_AT_ONCE * MAX_STATUS_TEXT_BYTES + MAX_SPEC_BYTES + MAX_OBJECT_STATUS_BYTES
            < MAX_REQUEST_BYTES
    );
    assert!(MAX_ORCHESTRATION_READ_KEYS * MAX_SPEC_BYTES <= MAX_RANGE_BYTES);
    assert!(MAX_KEY_BYTES + MAX_VALUE_BYTES <= MAX_REQUEST_BYTES);
    assert!(MAX_ENTRY_BYTES < MAX_FRAME_BYTES);
    assert!(MAX_ENTRY_BATCH_BYTES < MAX_APPEND_BYTES as usize);
    assert!((MAX_APPEND_BYTES as usize) + MAX_ENTRY_BYTES < MAX_FRAME_BYTES);
    assert!(MAX_FRAME_BYTES < MAX_PEER_OUTBOX_BYTES);
    assert!((MAX_ENTRY_BYTES as u64) < LOG_SEGMENT_BYTES && LOG_SEGMENT_BYTES < u32::MAX as u64);
    // A nested transaction is a list and an operation: two levels, and a few round the whole.
    assert!(2 * MAX_TXN_DEPTH + 7 <= crate::codec::MAX_DEPTH as usize);
    assert!(HEARTBEAT_TICKS * 5 <= ELECTION_TICKS && ELECTION_TICKS < ELECTION_TICKS_MAX);
    assert!(MAX_WAITING_BYTES > MAX_REQUEST_BYTES);
    assert!(SMALL_ANSWER_BYTES < WATCH_BATCH_BYTES && MAX_RANGE_BYTES < MAX_ANSWERS_BYTES);
    assert!(MAX_SCHEDULE_KEEP as usize <= MAX_POINTS && MAX_DIFF_PAGE_BYTES < MAX_RANGE_BYTES);
    assert!(
        ROLLBACK_STEP_BYTES > MAX_KEY_BYTES + 2 * MAX_VALUE_BYTES && MAX_POINT_NAME_BYTES < MAX_KEY_BYTES
    );
    assert!(MAX_CSR_BYTES < MAX_JOIN_FRAME_BYTES);
    assert!(MAX_JOIN_FRAME_BYTES < UNVERIFIED_WINDOW_BYTES as usize);
    assert!(STREAM_WINDOW_BYTES <= VERIFIED_WINDOW_BYTES);
    assert!(BULK_CHUNK_BYTES < MAX_BULK_FRAME_BYTES);
    assert!(KEEP_ALIVE.as_millis() * 3 < IDLE_TIMEOUT.as_millis());
};
