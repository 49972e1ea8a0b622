//! The project's own commands, run as `cargo xtask COMMAND`. Compiles in seconds and needs no system
//! package itself, because it is what installs them.

mod arguments;
mod bench;
mod check;
mod setup;
mod steps;
mod tally;
mod up;
mod workspace;

use std::process::ExitCode;

use arguments::Arguments;
use workspace::Workspace;

const HELP: &str = "\
cargo xtask COMMAND

  up                       three managers and workers on this machine, a tour, then they stay up until Ctrl-C
     --check               the same, ends with a verdict and stops the members
     --dir D               where the data goes (an existing cluster there is started again)
     --detach --dir D [--nodes N]
                           start N members (3), print one JSON object, return
     --bin PATH            use this raft-kv instead of building one
  down --dir D [--wipe]    end what `up --detach` started there; --wipe removes the data too
  test [--fast]            every test of the project; ends with `N passed, N failed`
  check                    layers, names and words of the source; writes nothing
  fix                      write what `cargo fmt` and `check` can put right
  sim --seeds N [--start S] [--bug NAME]
                           clusters in one thread, one from each seed
     --seed X [--trace]    one seed again; --planted: every planted bug must be found
  bench compare [--quick]  Debian's etcd and ours under the same load: rates, CPU and memory side by side
     [--only WORK] [--dir DIR]; --noise: etcd against itself
  ci                       test, then up --check
  setup                    only install the system packages that are missing

Environment: RAFT_KV_CACHE is where builds go (default: raft-kv in the user's cache directory).
";

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            if !why.is_empty() {
                eprintln!("xtask: {why}");
            }
            ExitCode::FAILURE
        }
    }
}

/// Carries out one command. An empty error means that all has been said already.
fn run(words: Vec<String>) -> Result<(), String> {
    let Some((command, rest)) = words.split_first() else {
        print!("{HELP}");
        return Ok(());
    };
    let place = Workspace::find()?;
    match command.as_str() {
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(())
        }
        "up" => up::up(&place, rest),
        "down" => up::down(rest),
        "test" => {
            let arguments = Arguments::parse(rest, &["--fast"], &[])?;
            steps::test(&place, arguments.flag("--fast"))
        }
        "check" => {
            Arguments::parse(rest, &[], &[])?;
            check::run(&place)
        }
        "fix" | "fmt" => {
            Arguments::parse(rest, &[], &[])?;
            check::fix(&place)
        }
        "sim" => {
            setup::ensure(&place)?;
            steps::sim(&place, rest)
        }
        "bench" => bench::bench(&place, rest),
        "ci" => {
            Arguments::parse(rest, &[], &[])?;
            steps::test(&place, false)?;
            up::up(&place, &["--check".to_owned()])
        }
        "setup" => {
            Arguments::parse(rest, &[], &[])?;
            setup::ensure(&place)
        }
        other => Err(format!("no command {other:?}; `cargo xtask help` lists them")),
    }
}
