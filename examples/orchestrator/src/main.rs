//! placeholder
mod compose;
mod schedule;
fn main() {}
