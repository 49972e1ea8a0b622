//! placeholder
mod compose;
mod process;
mod schedule;
fn main() {}
