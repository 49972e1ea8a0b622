//! Who is owed which events: from a revision, bounded, resumable.
//!
//! Every watcher gets its events ordered, once each, without a gap, a revision whole in one
//! batch, resumable behind any batch, with progress notes that are true bookmarks. Where a gap
//! can't be avoided because history was compacted, the watcher is told so and ends.
//!
//! Pure: no clock, no threads; and nothing is kept for a watcher but its place.

mod hub;
mod matching;
mod ready;
mod ring;

pub use hub::{Compacted, Hub, HubOptions, Poll, WatcherId};
pub use ready::Ready;
