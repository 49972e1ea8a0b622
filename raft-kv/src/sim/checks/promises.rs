//! Durability: what a member had promised before it went down, it still has when it is up again.
//! Where it has lost something without a fault of its disk, the log is at fault.

use super::{Verdict, violation};
use crate::sim::{Promise, Stop};
use crate::types::NodeId;

/// A member is up again.
pub fn kept(host: usize, promised: Promise, has: Promise) -> Verdict {
    if has < promised {
        return violation(
            "promises are kept",
            format!("m{host} had {promised:?} on disk when it went down, and starts with {has:?}"),
        );
    }
    Ok(())
}

/// A member that runs on an old copy of its disk has promised something.
pub fn old(id: NodeId) -> Verdict {
    violation(
        "an old copy of a disk promises nothing",
        format!("{id} voted or acknowledged, and the others had seen it promise more"),
    )
}

/// A process ended; `hurt` says whether its disk was damaged on purpose.
pub fn ended(host: usize, why: &Stop, hurt: bool) -> Verdict {
    match why {
        Stop::Storage(failed) if !hurt => {
            violation("healthy disks work", format!("m{host} stopped on a healthy disk: {failed}"))
        }
        Stop::Behind if !hurt => {
            violation("promises are kept", format!("m{host} lost a part of its log on a healthy disk"))
        }
        Stop::Older(older) if !hurt => {
            violation("the roll call turns away only old copies", format!("m{host} was turned away: {older}"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::StorageFailed;

    #[test]
    fn a_member_has_what_it_promised() {
        let at = |term, index| Promise { term, index };
        assert!(kept(0, at(2, 9), at(2, 9)).is_ok());
        assert!(kept(0, at(2, 9), at(3, 5)).is_ok(), "a later leader replaced the tail");
        assert!(kept(0, at(2, 9), at(2, 8)).is_err());
        assert!(kept(0, at(3, 5), at(2, 9)).is_err());
    }

    #[test]
    fn only_a_damaged_disk_excuses() {
        let failed = Stop::Storage(StorageFailed::damaged("log", "odd"));
        assert!(ended(0, &failed, true).is_ok() && ended(0, &Stop::Behind, true).is_ok());
        assert!(ended(0, &failed, false).is_err() && ended(0, &Stop::Behind, false).is_err());
        assert!(ended(0, &Stop::Crashed, false).is_ok() && ended(0, &Stop::Clean, false).is_ok());
    }
}
