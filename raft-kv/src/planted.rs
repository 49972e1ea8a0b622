//! Bugs planted on purpose, one at a time, to show that the checks bite. Compiled in with the
//! feature `sim` alone; without it `planted!(…)` is the constant `false`.

pub mod crash;

#[cfg(feature = "sim")]
use std::sync::atomic::{AtomicU8, Ordering};

/// A bug that can be switched on. Each must be found by a test or by the simulator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Bug {
    /// The log answers "durable" without a sync.
    SkipFsync = 1,
    /// The leader answers a write before a quorum has it.
    AnswerBeforeQuorum,
    /// A retried linearizable read uses its old context again.
    ReuseReadContext,
    /// A watcher misses an event.
    DropEvent,
    /// A log that ends before its marker is opened all the same.
    IgnoreMarker,
    /// A nested transaction's compares see what the outer one wrote.
    CompareAfterWrites,
    /// A read of an old revision finds versions that had ended by then.
    IgnoreVersionEnd,
    /// Compaction removes versions that are still readable at its mark.
    CompactNewestVersion,
    /// A deposed leader's decision that a lease has expired is carried out.
    AcceptStaleExpiry,
    /// A put without a lease keeps the key on the lease it had.
    KeepLeaseOnPut,
    /// A repeated request is done again.
    RepeatOnce,
    /// The log's marker is written before the log itself is synced.
    MarkerBeforeLog,
    /// A record of the log is taken without a look at the record before it.
    SkipChainCheck,
    /// A file of the log is used again under a new name with its old header.
    RecycleUnstamped,
    /// The name of a new file of the log is not synced.
    SkipFolderSync,
    /// Files of the log are emptied before the cut that frees them is on disk.
    RecycleEarly,
    /// A sync of the log that failed is tried again.
    RetrySync,
    /// Consensus lets promises out before the disk has what they rest on.
    SendBeforeDurable,
    /// Consensus steps peers' messages without looking at them.
    SkipVetting,
    /// Consensus writes its term without its vote.
    ForgetVote,
    /// A joiner believes whatever root it is shown.
    AcceptAnyRoot,
    /// A listener serves every role on every protocol.
    SkipRoleCheck,
    /// A dialler takes whichever member answers for the one it meant.
    SkipNodeCheck,
    /// A frame's first eight bytes say whom it is from.
    TrustFrameSender,
    /// A bulk receiver does not look at checksums.
    SkipChunkChecksum,
    /// Frames of an older connection are delivered after those of a newer one.
    DeliverStaleFrames,
    /// A watcher whose next event has left the ring goes on with what is still there.
    ForgetEvicted,
    /// A progress note is sent to a watcher that is still owed events.
    ProgressOvertakes,
    /// A linearizable read is served before its index is applied.
    ReadBeforeApplied,
    /// A leader serves linearizable reads without asking whether it still leads.
    ReadUnconfirmed,
    /// A leader renews leases without asking whether it still leads.
    RenewUnconfirmed,
    /// A request is tried again as soon as the leader changes, though it may still be done.
    RetryTooEarly,
    /// A request under way whose time is up is said to be not done.
    UnknownAsNotDone,
    /// The log forgets what a received snapshot covers before the snapshot is the state.
    CutBeforeInstall,
    /// The log is cut up to what is applied, flushed or not.
    CutUnflushed,
    /// A new leader ends every lease at once.
    ExpireAtOnce,
    /// A raised revision leaves what is below it readable.
    RaiseUncompacted,
    /// The HTTPS door lets in whoever has a certificate from one of our roots.
    SkipDoorCheck,
    /// Permissions are not asked for within nested transactions.
    SkipNestedAuth,
    /// Permissions are asked for at the door alone, not where a command is applied.
    SkipApplyAuth,
    /// Who puts a key on a lease is not asked for the lease's other keys.
    SkipLeaseAuth,
    /// Puts are taken while the alarm of short space is raised.
    IgnoreNoSpace,
    /// A stream of several watchers hears of one at a time only.
    ForgetWaking,
    /// Collection removes values of versions that are still readable.
    CollectLiveValue,
    /// A remembered count takes every put for a new key.
    CountOverwrites,
    /// A member's checksum counts versions that others have removed already.
    HashCollected,
    /// A rotation settles although somebody must be waited for.
    SettleEarly,
    /// The old root stays believed after a rotation.
    KeepOldRoot,
    /// Who is not known is let in, as long as nothing is known against it.
    AdmitUnknown,
    /// A removed node's certificate is taken.
    AdmitRemoved,
    /// A client goes on with the certificate that it had.
    KeepOldCredentials,
    /// A watch that goes on elsewhere begins with what it handed out last.
    ResumeWithLast,
    /// Any certificate in a node's name may be renewed, whoever has its key.
    RenewAnyKey,
    /// New files take the place of old ones one by one.
    ReplaceInPlace,
    /// A data key seals before a quorum has it on disk.
    SealWithUnsavedKey,
    /// A data key is given up while something is still sealed with it.
    DropUsedKey,
    /// A password's hash comes into the log as it is.
    LogClearSecret,
    /// A removal takes a node's record away and does not say that it is refused.
    ForgetRevocation,
    /// A removal is on disk no sooner than anything else.
    RevokeInMemory,
    /// A worker is answered like anybody else.
    TellWorkers,
    /// Whether a node is still let in is asked at the door alone, not where its command is applied.
    SkipApplyNode,
    /// A token that was rotated keeps its secret.
    KeepOldSecret,
    /// A use of a token is not counted.
    ForgetUse,
    /// A node that was shut out comes back with any token.
    SkipReadmission,
    /// Whoever has a node's old certificate comes back as it, without its key.
    SkipProof,
    /// What an external signer answers is not looked at.
    TrustSignerBlindly,
    /// A root that is brought may be signed with SHA-1.
    TakeWeakRoot,
    /// A root's certificate by another may be valid for longer than the root is remembered as given up.
    CrossOutlives,
    /// What a node was seen with before its newest certificate counts for that one.
    KeepVerified,
    /// An introduced root's key may still lead to the root in force after it was given up.
    ForgetDistrust,
    /// An introduced root is not certified by the one in force.
    ForgetCross,
    /// A rotation that was asked for before another one settled is begun after that.
    RotateOvertaken,
    /// Seeing any certificate of a node that rests on its newest one's root counts for the newest.
    VerifyByRoot,
    /// Compaction removes what only a rollback point can see.
    CompactIgnoresPoints,
    /// A rollback point does not keep versions that were made at its very revision.
    PinOffByOne,
    /// A rollback leaves keys that were created since.
    KeepCreatedSince,
    /// A rollback puts keys back on leases that have ended.
    ReviveLease,
    /// A revision's record lacks a delete.
    LoseDelete,
    /// Reads see what a rollback has done so far.
    ReadHalfRollback,
    /// A rollback of some keys may be asked for by who may only read them.
    RollbackByReader,
    /// A rollback that was interrupted begins anew with its numbers.
    RecountRollback,
    /// The keys of a removed point's segment go nowhere.
    DropSegment,
    /// A watcher that was handed a part of a revision is not handed the rest.
    DropParts,
    /// What gives trust away is given to any certificate of a node.
    GiveToAnyKey,
    /// What was deleted goes on counting against the quota.
    QuotaCountsDeletes,
    /// The quota is looked at where a request comes in alone, not where it is applied.
    QuotaOnlyAtDoor,
    /// A rollback that was interrupted forgets what it had done to the live bytes.
    QuotaForgetsSteps,
    /// The alarm of a member whose disk is short stops nothing.
    IgnoreDiskShort,
    /// Other members' word for one that this member has not heard of counts for nothing.
    IgnoreWord,
    /// A removed member is asked, where it is at the address of another.
    AskRemoved,
    /// A new epoch keeps the members of the one before.
    RecoverKeepsOldMembers,
    /// A new epoch goes on with the next revision, which the one before may have handed out.
    RecoverReusesRevisions,
    /// Blocks of the state are read without a look at their checksums.
    SkipBlockChecksums,
    /// A state that is known to be damaged is still read.
    ServeDamaged,
    /// What a receiver says that it has of a snapshot's file is not compared with the sender's.
    ResumeWithoutCheck,
    /// A received file is taken for the sender's without its checksum.
    InstallUnverified,
    /// A restored cluster lets in whom the backup refuses.
    RestoreForgetsRevocations,
    /// A restored cluster goes on with the backup's revision.
    RestoreKeepsRevision,
    /// A restored cluster lets in members of the one that was backed up.
    AdmitPredecessorManager,
    /// A task's observed state goes back.
    StatusGoesBack,
    /// A task that has a node is given to another.
    TaskMoves,
    /// An update leaves what the object was found by before.
    IndexForgotten,
    /// An update or delete does not look at the version given.
    IgnoreVersion,
    /// A stale leader's changes are carried out.
    IgnoreFence,
    /// A change of tasks and state is committed whatever was changed since it was decided.
    CommitBlind,
    /// A raw write from outside reaches tasks and state.
    OpenReservedPrefix,
    /// A worker is not told of the last of several changes.
    SessionSkipsChange,
    /// A worker is told of the tasks of nodes with a similar id.
    SessionLeaksOthers,
    /// A worker's token is good for any node.
    ResumeTrustsAnyToken,
    /// Sessions whose reports share a transaction get each other's answers.
    GatherMixesAnswers,
    /// A manager's loops go on after their member has heard that it does not lead.
    DutyOutlivesTerm,
    /// A key that changes while it is looked at is not looked at again.
    QueueDropsChange,
    /// A member whose directory is of an older run than it was seen with goes on.
    IgnoreRun,
    /// A member that lacks what the others saw it promise goes on.
    IgnorePromised,
    /// An archiver goes on one revision behind the next.
    ArchiveSkipsRevision,
    /// A file of an archive has its name before it is whole.
    ArchiveRenamesEarly,
    /// What an archive no longer needs is counted from its newest full backup.
    ArchiveForgetsChain,
    /// What was received takes the place of the state though it is damaged as its sender's files are.
    InstallDamaged,
    /// Times that leases and requests have left follow a clock that somebody sets.
    StepLoopClock,
    /// A leader proposes what its sender has given up.
    ProposeClosed,
}

#[cfg(feature = "sim")]
thread_local! {
    // Per thread: the simulator runs in one thread, and tests in parallel must not meet.
    static ACTIVE: AtomicU8 = const { AtomicU8::new(0) };
}

/// Switches `bug` on for this thread while `run` runs.
#[cfg(feature = "sim")]
pub fn with<R>(bug: Option<Bug>, run: impl FnOnce() -> R) -> R {
    struct Reset(u8);
    impl Drop for Reset {
        fn drop(&mut self) {
            ACTIVE.with(|active| active.store(self.0, Ordering::Relaxed));
        }
    }
    let before = ACTIVE.with(|active| active.swap(bug.map_or(0, |bug| bug as u8), Ordering::Relaxed));
    let _reset = Reset(before);
    run()
}

/// Whether `bug` is on in this thread.
#[cfg(feature = "sim")]
pub fn active(bug: Bug) -> bool {
    ACTIVE.with(|active| active.load(Ordering::Relaxed) == bug as u8)
}

/// Whether `bug` is on: never, in this build.
#[cfg(not(feature = "sim"))]
#[inline(always)]
pub const fn active(_: Bug) -> bool {
    false
}

/// Whether the named bug is planted in this run.
#[macro_export]
#[doc(hidden)]
macro_rules! planted {
    ($bug:ident) => {
        $crate::planted::active($crate::planted::Bug::$bug)
    };
}
