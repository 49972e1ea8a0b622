//! Named places where a process kills itself if its environment asks for it: what `kill -9` leaves just there is
//! then put right by the next start, and a test shows it. Compiled in with the feature `sim` alone; without it
//! `crash_point!(…)` is nothing. It must never be asked for anything that users do.

#[cfg(feature = "sim")]
use std::sync::OnceLock;
#[cfg(feature = "sim")]
use std::sync::atomic::{AtomicU32, Ordering};

/// The variable that names one of [`Point::ALL`], and after a colon how many passes are let through before:
/// `rollback-step:2`.
pub const VARIABLE: &str = "RAFT_KV_CRASH_AT";

macro_rules! points {
    ($($(#[$doc:meta])* $point:ident = $name:literal,)*) => {
        /// A place to be killed at.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Point {
            $($(#[$doc])* $point,)*
        }

        impl Point {
            /// Every one of them, by its name.
            pub const ALL: &'static [(&'static str, Point)] = &[$(($name, Point::$point),)*];
        }
    };
}

points! {
    /// A rollback is in the log and nothing of it is done.
    RollbackBegins = "rollback-begins",
    /// A step of a rollback is drafted and not written.
    RollbackStepDrafted = "rollback-step-drafted",
    /// A step of a rollback that is not the last is written.
    RollbackStepWritten = "rollback-step-written",
    /// A step of a rollback is not only written but flushed.
    RollbackStepFlushed = "rollback-step-flushed",
    /// The last step is drafted and not written.
    RollbackLastDrafted = "rollback-last-drafted",
    /// The last step is written, and nobody knows of it yet.
    RollbackDone = "rollback-done",
    /// A rollback is done and its watchers have their events; who asked has no answer.
    RollbackPublished = "rollback-published",
    /// A full backup of an archive is whole and has no name.
    ArchiveFullWritten = "archive-full-written",
    /// A full backup of an archive has its name, and nothing follows it.
    ArchiveFullNamed = "archive-full-named",
    /// A file of changes is begun.
    ArchiveChangesBegun = "archive-changes-begun",
    /// A file of changes is whole and has no name.
    ArchiveChangesWritten = "archive-changes-written",
    /// A file of changes has its name.
    ArchiveChangesNamed = "archive-changes-named",
    /// The first of the files that are no longer kept is gone.
    ArchivePruning = "archive-pruning",
}

/// What the environment asks for: the place, and how many passes are let through.
#[cfg(feature = "sim")]
fn asked() -> Option<&'static (Point, AtomicU32)> {
    static ASKED: OnceLock<Option<(Point, AtomicU32)>> = OnceLock::new();
    let read = || {
        let asked = std::env::var(VARIABLE).ok()?;
        let (name, passes) = asked.split_once(':').unwrap_or((&asked, "0"));
        let known = Point::ALL.iter().find(|(known, _)| *known == name);
        let (_, point) = known.unwrap_or_else(|| panic!("{VARIABLE} names no crash point: {name:?}"));
        let passes = passes.parse().unwrap_or_else(|_| panic!("{VARIABLE} counts no passes: {passes:?}"));
        Some((*point, AtomicU32::new(passes)))
    };
    ASKED.get_or_init(read).as_ref()
}

/// Whether the next pass of `point` is the last.
#[cfg(feature = "sim")]
pub fn is_due(point: Point) -> bool {
    asked().is_some_and(|(asked, passes)| *asked == point && passes.load(Ordering::Acquire) == 0)
}

/// Dies if this is the place, and the pass, that the environment names.
#[cfg(feature = "sim")]
pub fn reach(point: Point) {
    let Some((_, passes)) = asked().filter(|(asked, _)| *asked == point) else { return };
    if passes.fetch_update(Ordering::AcqRel, Ordering::Acquire, |left| left.checked_sub(1)).is_err() {
        die();
    }
}

/// Never, in this build.
#[cfg(not(feature = "sim"))]
#[inline(always)]
pub const fn is_due(_: Point) -> bool {
    false
}

/// As `kill -9` does: nothing is flushed, nobody is told.
#[cfg(all(feature = "sim", feature = "node"))]
fn die() -> ! {
    use rustix::process::{Signal, getpid, kill_process};
    let _ = kill_process(getpid(), Signal::KILL);
    std::process::abort()
}

#[cfg(all(feature = "sim", not(feature = "node")))]
fn die() -> ! {
    std::process::abort()
}

/// Does nothing, in this build.
#[cfg(not(feature = "sim"))]
#[inline(always)]
pub const fn reach(_: Point) {}

/// Dies at the named place if the process was started for that.
#[macro_export]
#[doc(hidden)]
macro_rules! crash_point {
    ($point:ident) => {
        $crate::planted::crash::reach($crate::planted::crash::Point::$point)
    };
}
