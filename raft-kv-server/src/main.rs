//! The binary `raft-kv`: a member of a cluster (`init`, `join`, `run`) and the command line to
//! one. A thin shell: what it can do is in the crate `raft-kv`; here is only what people and
//! scripts type and read. It must never decide anything about the store itself.

mod again;
mod args;
mod bytes_arg;
mod cli;
mod connect;
mod failure;
mod moving;
mod output;
mod serve;
mod txn_json;
mod txn_text;

use std::process::ExitCode;

/// Long-lived members with many small values fragment the system's allocator; this one stays flat.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cli::main()
}
