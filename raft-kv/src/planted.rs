//! Bugs planted on purpose, one at a time, to show that the checks bite. Compiled in with the
//! feature `sim` alone; without it `planted!(…)` is the constant `false`.

#[cfg(feature = "sim")]
use std::sync::atomic::{AtomicU8, Ordering};

/// A bug that can be switched on. Each must be found by a test or by the simulator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Bug {
    /// The log answers "durable" without a sync.
    SkipFsync = 1,
    /// The leader answers a write before a quorum has it.
    AnswerBeforeQuorum = 2,
    /// A retried linearizable read uses its old context again.
    ReuseReadContext = 3,
    /// A watcher misses an event.
    DropEvent = 4,
    /// A log that ends before its marker is opened all the same.
    IgnoreMarker = 5,
    /// A watcher whose next event has left the ring goes on with what is still there.
    ForgetEvicted = 30,
    /// A progress note is sent to a watcher that is still owed events.
    ProgressOvertakes = 31,
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
