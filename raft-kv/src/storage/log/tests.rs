//! Tests of the log on the modelled disk, against a naive model: a list of entries, a boundary and
//! a hard state. The properties:
//!
//! - what a [`Durable`](super::Durable) vouched for is there after any crash, and what is there is
//!   what was staged up to some record, never a mixture;
//! - a mere crash is never answered with `Behind` or an error;
//! - a flipped bit, an old file, a missing file is refused or changes nothing;
//! - each planted bug breaks one of these.

mod crash;
mod damage;
mod model;
mod real;
mod rules;
