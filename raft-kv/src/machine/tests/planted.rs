//! Bugs planted on purpose: the comparison with the model must find each.

use super::{alarms, epoch, nodes, points, quota, random, restore, rotation, sealing, tokens, trust, users};
use crate::planted::{Bug, with};

#[test]
fn each_planted_bug_is_found() {
    let bugs = [
        Bug::CompareAfterWrites,
        Bug::IgnoreVersionEnd,
        Bug::CompactNewestVersion,
        Bug::AcceptStaleExpiry,
        Bug::KeepLeaseOnPut,
        Bug::RaiseUncompacted,
        Bug::CollectLiveValue,
    ];
    for bug in bugs {
        let found = with(Some(bug), || random::run(random::CASES, 0));
        assert!(found.is_err(), "{bug:?} was not found");
    }
}

#[test]
fn each_bug_planted_in_permissions_and_alarms_is_found() {
    for bug in [Bug::SkipNestedAuth, Bug::SkipApplyAuth, Bug::SkipLeaseAuth] {
        let found = with(Some(bug), || std::panic::catch_unwind(|| (0..users::SEEDS).for_each(users::run)));
        assert!(found.is_err(), "{bug:?} was not found");
    }
    let found = with(Some(Bug::RollbackByReader), || std::panic::catch_unwind(users::rollback_of_some_keys));
    assert!(found.is_err(), "RollbackByReader was not found");
    let found = with(Some(Bug::IgnoreNoSpace), || std::panic::catch_unwind(alarms::no_space));
    assert!(found.is_err(), "IgnoreNoSpace was not found");
    let found = with(Some(Bug::IgnoreDiskShort), || std::panic::catch_unwind(alarms::disk_short));
    assert!(found.is_err(), "IgnoreDiskShort was not found");
}

#[test]
fn each_bug_planted_in_the_quota_is_found() {
    for bug in [Bug::QuotaCountsDeletes, Bug::QuotaOnlyAtDoor] {
        let found = with(Some(bug), || quota::run(quota::CASES, 0));
        assert!(found.is_err(), "{bug:?} was not found");
    }
    let found = with(Some(Bug::QuotaForgetsSteps), || {
        std::panic::catch_unwind(|| points::run(points::CASES, 0).unwrap())
    });
    assert!(found.is_err(), "QuotaForgetsSteps was not found");
}

#[test]
fn each_bug_planted_in_sealing_is_found() {
    for bug in [Bug::SealWithUnsavedKey, Bug::DropUsedKey] {
        let found =
            with(Some(bug), || std::panic::catch_unwind(|| (0..sealing::SEEDS).for_each(sealing::run)));
        assert!(found.is_err(), "{bug:?} was not found");
    }
    let clear = || users::a_password_is_a_hash_and_a_user_without_one_stays_so();
    let found = with(Some(Bug::LogClearSecret), || std::panic::catch_unwind(clear));
    assert!(found.is_err(), "LogClearSecret was not found");
}

#[test]
fn each_bug_planted_in_rotations_is_found() {
    for bug in [Bug::SettleEarly, Bug::KeepOldRoot, Bug::ForgetDistrust, Bug::KeepVerified] {
        let found = with(Some(bug), || std::panic::catch_unwind(|| (0..300).for_each(rotation::run)));
        assert!(found.is_err(), "{bug:?} was not found");
    }
}

#[test]
fn each_bug_planted_in_removals_is_found() {
    for (bug, run) in [
        (Bug::ForgetRevocation, nodes::removal as fn()),
        (Bug::SkipApplyNode, nodes::late_commands),
        (Bug::RevokeInMemory, nodes::removal_and_crash),
    ] {
        assert!(with(Some(bug), || std::panic::catch_unwind(run)).is_err(), "{bug:?} was not found");
    }
}

#[test]
fn each_bug_planted_in_tokens_is_found() {
    for (bug, run) in [
        (Bug::KeepOldSecret, tokens::rotation as fn()),
        (Bug::ForgetUse, tokens::uses),
        (Bug::SkipReadmission, tokens::shut_out),
    ] {
        assert!(with(Some(bug), || std::panic::catch_unwind(run)).is_err(), "{bug:?} was not found");
    }
}

#[test]
fn each_bug_planted_in_trust_is_found() {
    for (bug, run) in [
        (Bug::SettleEarly, trust::sequences as fn()),
        (Bug::KeepOldRoot, trust::sequences),
        (Bug::ForgetDistrust, trust::sequences),
        (Bug::RotateOvertaken, trust::sequences),
        (Bug::KeepVerified, trust::led_back),
    ] {
        assert!(with(Some(bug), || std::panic::catch_unwind(run)).is_err(), "{bug:?} was not found");
    }
}

#[test]
fn each_bug_planted_in_points_is_found() {
    let bugs = [
        Bug::CompactIgnoresPoints,
        Bug::PinOffByOne,
        Bug::KeepCreatedSince,
        Bug::ReviveLease,
        Bug::LoseDelete,
        Bug::ReadHalfRollback,
        Bug::RecountRollback,
        Bug::DropSegment,
    ];
    for bug in bugs {
        let found = with(Some(bug), || points::run(points::CASES, 0));
        assert!(found.is_err(), "{bug:?} was not found");
    }
}

#[test]
fn each_bug_planted_in_epochs_is_found() {
    for (bug, run) in [
        (Bug::RecoverKeepsOldMembers, epoch::members as fn()),
        (Bug::RecoverReusesRevisions, epoch::revisions),
    ] {
        assert!(with(Some(bug), || std::panic::catch_unwind(run)).is_err(), "{bug:?} was not found");
    }
}

#[test]
fn each_bug_planted_in_restores_is_found() {
    for (bug, run) in [
        (Bug::RestoreForgetsRevocations, restore::who_is_let_in as fn()),
        (Bug::RestoreKeepsRevision, restore::what_is_readable),
    ] {
        let found = with(Some(bug), || std::panic::catch_unwind(run));
        assert!(found.is_err(), "{bug:?} was not found");
    }
}
