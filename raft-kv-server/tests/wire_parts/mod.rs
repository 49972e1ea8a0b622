//! Parts of the tests of what is on the wire.

pub mod capture;
mod doors;
pub mod framing;
pub mod knocks;
mod requests;
pub mod scan;
pub mod story;
