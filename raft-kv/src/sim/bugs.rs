//! Which planted bugs a simulated cluster can show. The others live where it does not go: in
//! certificates, in sockets, in messages that no member of this version sends, or where the
//! rest of the code makes up for them (`SkipChainCheck` needs a left-over record exactly where the
//! chain ends); unit tests find those.

use crate::planted::Bug;

/// Bugs that must be found within 2,000 seeds.
pub const FOUND_BY_SIMULATION: &[Bug] = &[
    Bug::SkipFsync,
    Bug::AnswerBeforeQuorum,
    Bug::ReuseReadContext,
    Bug::DropEvent,
    Bug::IgnoreMarker,
    Bug::CompareAfterWrites,
    Bug::IgnoreVersionEnd,
    Bug::CompactNewestVersion,
    Bug::KeepLeaseOnPut,
    Bug::RepeatOnce,
    Bug::MarkerBeforeLog,
    Bug::RecycleUnstamped,
    Bug::SkipFolderSync,
    Bug::RecycleEarly,
    Bug::RetrySync,
    Bug::SendBeforeDurable,
    Bug::ForgetVote,
    Bug::ForgetEvicted,
    Bug::ProgressOvertakes,
    Bug::ReadBeforeApplied,
    Bug::ReadUnconfirmed,
    Bug::RenewUnconfirmed,
    Bug::RetryTooEarly,
    Bug::UnknownAsNotDone,
    Bug::CutBeforeInstall,
    Bug::CutUnflushed,
    Bug::ExpireAtOnce,
    Bug::SettleEarly,
    Bug::KeepOldRoot,
    Bug::KeepVerified,
    Bug::ForgetDistrust,
    Bug::ForgetCross,
    Bug::RotateOvertaken,
    Bug::VerifyByRoot,
    Bug::CompactIgnoresPoints,
    Bug::PinOffByOne,
    Bug::KeepCreatedSince,
    Bug::ReviveLease,
    Bug::LoseDelete,
    Bug::ReadHalfRollback,
    Bug::RecountRollback,
    Bug::DropSegment,
    Bug::DropParts,
    Bug::IgnorePromised,
    Bug::QuotaCountsDeletes,
    Bug::QuotaOnlyAtDoor,
    Bug::QuotaForgetsSteps,
    Bug::IgnoreDiskShort,
    Bug::SkipBlockChecksums,
    Bug::ServeDamaged,
    Bug::RestoreForgetsRevocations,
    Bug::RestoreKeepsRevision,
    Bug::RecoverKeepsOldMembers,
    Bug::RecoverReusesRevisions,
    Bug::StepLoopClock,
];

/// Whether the bug is one of replacing the root: runs that are about that find it sooner.
pub fn is_about_roots(bug: Bug) -> bool {
    matches!(
        bug,
        Bug::SettleEarly
            | Bug::KeepOldRoot
            | Bug::KeepVerified
            | Bug::ForgetDistrust
            | Bug::ForgetCross
            | Bug::RotateOvertaken
            | Bug::VerifyByRoot
    )
}

/// The bug of that name, among those above.
pub fn bug_named(name: &str) -> Option<Bug> {
    FOUND_BY_SIMULATION.iter().copied().find(|bug| format!("{bug:?}") == name)
}
