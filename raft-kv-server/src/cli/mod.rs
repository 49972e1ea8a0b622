//! From the words of the command line to an exit code: one file for each family of commands, all
//! called from here. A command asks the cluster, prints the answer, and returns how it ended.

mod archive;
mod backup;
mod ca;
mod cert;
mod check;
mod cluster;
mod import;
pub mod kv;
mod lease;
pub mod lock;
mod member;
mod mirror;
mod node;
mod quota;
mod recover;
mod rollback;
mod token;
mod txn;
mod watch;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;
use tracing_subscriber::EnvFilter;

use crate::args::{Cli, Command};
use crate::failure::{Failure, Kind};
use crate::output::Output;
use crate::serve;

/// Runs the command that the process was given.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_understood(&error),
    };
    let (json, serves) = (cli.json, serves(&cli.command));
    let code = match start(cli) {
        Ok(()) => 0,
        Err(failure) => fail(&failure, json),
    };
    if serves {
        serve::leave(code.into());
    }
    ExitCode::from(code)
}

/// Whether this process is a member of a cluster, not a client.
fn serves(command: &Command) -> bool {
    matches!(command, Command::Init(_) | Command::Join(_) | Command::Run(_))
}

/// Help and version go to standard output; anything else is an error in the caller's form.
fn not_understood(error: &clap::Error) -> ExitCode {
    let wants_json = std::env::args_os().take_while(|word| word != "--").any(|word| word == "--json");
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        _ if wants_json => {
            let text = error.to_string();
            let text = text.trim_start_matches("error: ").split_whitespace().collect::<Vec<_>>().join(" ");
            ExitCode::from(fail(&Failure::usage(text), true))
        }
        _ => {
            let _ = error.print();
            ExitCode::from(Kind::Usage.exit_code())
        }
    }
}

/// Says what went wrong as the last line on standard error.
fn fail(failure: &Failure, json: bool) -> u8 {
    // Standard error may be closed; the exit code still tells.
    let _ = writeln!(std::io::stderr(), "{}", failure.render(json));
    failure.kind.exit_code()
}

fn start(cli: Cli) -> Result<(), Failure> {
    let serves = serves(&cli.command);
    log_to_stderr(if serves { "info" } else { "warn" }, cli.json);
    // A member uses every core; a client asks once.
    let mut builder = if serves {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    let runtime = builder.enable_all().build().map_err(|error| {
        Failure::new(Kind::Stopped, format!("can't start: {error}; free some threads or memory"))
    })?;
    let mut output = Output::new(cli.json);
    runtime.block_on(dispatch(cli.command, &mut output))
}

fn log_to_stderr(level: &str, json: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json { log.json().init() } else { log.with_ansi(false).init() }
}

async fn dispatch(command: Command, output: &mut Output) -> Result<(), Failure> {
    match command {
        Command::Init(args) => serve::init(args, output).await,
        Command::Join(args) => serve::join(args, output).await,
        Command::Run(args) => serve::run(args, output).await,
        Command::Recover(args) => recover::run(args, output).await,
        Command::Check(args) => check::run(&args, output),
        Command::Info(args) => cluster::info(&args, output).await,
        Command::Token(args) => token::run(&args, output).await,
        Command::JoinToken(args) => token::join_token(&args, output).await,
        Command::Enrol(args) => token::enrol(&args, output).await,
        Command::Transfer(args) => cluster::transfer(&args, output).await,
        Command::Compact(args) => cluster::compact(&args, output).await,
        Command::Member(args) => member::run(&args, output).await,
        Command::Node(args) => node::run(&args, output).await,
        Command::RollbackPoint(args) => rollback::points(&args, output).await,
        Command::Rollback(args) => rollback::run(&args, output).await,
        Command::Quota(args) => quota::run(&args, output).await,
        Command::Put(args) => kv::put(&args, output).await,
        Command::Get(args) => kv::get(&args, output).await,
        Command::Del(args) => kv::delete(&args, output).await,
        Command::Watch(args) => watch::run(&args, output).await,
        Command::Txn(args) => txn::run(&args, output).await,
        Command::Lease(args) => lease::run(&args, output).await,
        Command::Autolock(args) => lock::autolock(&args, output).await,
        Command::Unlock(args) => lock::unlock(&args, output).await,
        Command::UnlockKey(args) => lock::unlock_key(&args, output).await,
        Command::Import(args) => import::run(&args, output).await,
        Command::Mirror(args) => mirror::run(&args, output).await,
        Command::Backup(args) => backup::run(args, output).await,
        Command::Cert(args) => cert::run(&args, output).await,
        Command::Ca(args) => ca::run(&args, output).await,
    }
}
