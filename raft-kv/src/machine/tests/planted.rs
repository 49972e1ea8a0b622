//! Bugs planted on purpose: the comparison with the model must find each.

use super::random;
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
    ];
    for bug in bugs {
        let found = with(Some(bug), || random::run(random::CASES, 0));
        assert!(found.is_err(), "{bug:?} was not found");
    }
}
