//! An orchestrator of processes on raft-kv, small enough to be read in one go: what a program that links the
//! crate looks like. It reads Compose files; managers keep what should be in the replicated store and decide
//! while they lead; workers run real processes. Only an example: no images, no networks, no secrets.

mod args;
mod compose;
mod control;
mod lead;
mod process;
mod schedule;
mod state;
mod worker;

use std::fs;
use std::io;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use control::{Command, ask};
use serde_json::Value;

use args::{Args, Words};

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(io::stderr).with_env_filter(filter()).init();
    match run(Args::parse().words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("orchestrator: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: Words) -> Result<(), String> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| error.to_string();
    match words {
        Words::Manager(words) => runtime(true)?.block_on(lead::run(words.place())).map_err(failed),
        // One thread, which lives as long as the worker: the kernel ends its processes with the thread.
        Words::Worker(words) => runtime(false)?.block_on(worker::run(words.place())).map_err(failed),
        Words::Deploy { file, at } => {
            let compose =
                fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
            tell(&at.data_dir, &Command::Deploy { compose })
        }
        Words::Ps { at } => tell(&at.data_dir, &Command::Ps),
        Words::Scale { service, at } => {
            let wrong = || format!("{service:?}: write SERVICE=N");
            let (name, replicas) = service.split_once('=').ok_or_else(wrong)?;
            let replicas = replicas.parse().map_err(|_| wrong())?;
            tell(&at.data_dir, &Command::Scale { service: name.to_owned(), replicas })
        }
        Words::Rollback { point, at } => tell(&at.data_dir, &Command::Rollback { point }),
        Words::Nodes { at } => tell(&at.data_dir, &Command::Nodes),
        Words::Node { node, label, availability, at } => {
            let pair = |text: &String| match text.split_once('=') {
                Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
                None => Err(format!("{text:?}: write NAME=VALUE")),
            };
            let labels = label.iter().map(pair).collect::<Result<_, _>>()?;
            let availability = availability.map(|word| word.as_str().to_owned());
            tell(&at.data_dir, &Command::Node { node, labels, availability })
        }
        Words::Token { role, at } => {
            tell(&at.data_dir, &Command::Token { worker: role == args::TokenRole::Worker })
        }
    }
}

fn runtime(many: bool) -> Result<tokio::runtime::Runtime, String> {
    use tokio::runtime::Builder;
    let mut builder = if many { Builder::new_multi_thread() } else { Builder::new_current_thread() };
    builder.enable_all().build().map_err(|error| error.to_string())
}

/// Asks a manager and prints its answer: one JSON value a line, a list as its rows.
fn tell(data_dir: &Path, command: &Command) -> Result<(), String> {
    match ask(data_dir, command)? {
        Value::Array(rows) => rows.iter().for_each(|row| println!("{row}")),
        value => println!("{value}"),
    }
    Ok(())
}

/// What is logged: warnings, or what RUST_LOG says.
fn filter() -> tracing_subscriber::EnvFilter {
    tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into())
}
