//! Parts of the tests of what is on the wire.

pub mod capture;
pub mod framing;
pub mod knocks;
pub mod scan;
