//! `clients`: real etcd clients against real raft-kv members, one after the other. Ends with a count
//! that the test command reads.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use raft_kv_conformance::clients::{Setting, bugs, etcdctl, rust, scripts};

const ALL: [&str; 6] = ["etcdctl", "rust", "python", "node", "patroni", "bugs"];

/// Real etcd clients against real members.
#[derive(Debug, Parser)]
struct Arguments {
    /// The raft-kv binary; without it the clients are tried on Debian's etcd.
    #[arg(long)]
    bin: Option<PathBuf>,
    /// Where the clients' packages are kept between runs.
    #[arg(long)]
    tools: PathBuf,
    /// Which clients: etcdctl, rust, python, node, patroni, bugs [default: all].
    names: Vec<String>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let setting = Setting { binary: arguments.bin, tools: arguments.tools };
    let names = if arguments.names.is_empty() { ALL.map(str::to_owned).to_vec() } else { arguments.names };
    let (mut passed, mut failed) = (0, 0);
    for name in &names {
        let began = Instant::now();
        let outcome = match name.as_str() {
            "etcdctl" => etcdctl::run(&setting).await,
            "rust" => rust::run(&setting).await.map(|()| 1),
            "python" => scripts::python(&setting).await.map(|()| 1),
            "node" => scripts::node(&setting).await.map(|()| 1),
            "patroni" => scripts::patroni(&setting).await.map(|()| 1),
            "bugs" => bugs::run(&setting).await,
            other => Err(format!("no client {other:?}")),
        };
        let seconds = began.elapsed().as_secs_f64();
        match outcome {
            Ok(count) => {
                passed += count;
                println!("ok      {name} ({count}, {seconds:.1} s)");
            }
            Err(why) => {
                failed += 1;
                println!("FAILED  {name} ({seconds:.1} s): {why}");
            }
        }
    }
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("test result: {word}. {passed} passed; {failed} failed; 0 ignored");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
