//! `cargo xtask bench compare`: release builds of the server and of the program that measures it
//! beside Debian's etcd, and one run of it. The data lies in the cache, on a real disk.

use std::process::Command;

use crate::arguments::Arguments;
use crate::setup;
use crate::workspace::Workspace;

/// Runs what was asked for.
pub fn bench(place: &Workspace, words: &[String]) -> Result<(), String> {
    let Some((what, rest)) = words.split_first() else {
        return Err("say what: `cargo xtask bench compare`".to_owned());
    };
    if what != "compare" {
        return Err(format!("no bench {what:?}; there is `cargo xtask bench compare`"));
    }
    let arguments = Arguments::parse(rest, &["--quick", "--noise"], &["--only", "--dir"])?;
    setup::ensure(place)?;
    let build = |words: &[&str]| {
        let status = place.cargo().args(["build", "--release", "-p"]).args(words).status();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(_) => Err(String::new()),
            Err(error) => Err(format!("cargo: {error}")),
        }
    };
    build(&["raft-kv-server", "--bin", "raft-kv"])?;
    build(&["raft-kv-benches", "--bin", "compare"])?;
    let folder = arguments.value("--dir").map_or_else(|| place.cache.join("bench"), Into::into);
    let mut command = Command::new(place.target.join("release").join("compare"));
    command.arg("--dir").arg(&folder);
    command.arg("--json").arg(folder.join("compare.json"));
    command.arg("--markdown").arg(folder.join("compare.md"));
    if !arguments.flag("--noise") {
        command.arg("--bin").arg(place.server_binary());
    }
    if let Some(only) = arguments.value("--only") {
        command.args(["--only", only]);
    }
    if arguments.flag("--quick") {
        command.args(["--seconds", "3", "--leases", "10000", "--watchers", "2000"]);
    } else {
        command.args(["--seconds", "10", "--leases", "100000", "--watchers", "10000"]);
    }
    let status = command.status().map_err(|error| format!("compare: {error}"))?;
    if !status.success() {
        return Err(String::new());
    }
    println!("kept in {0}/compare.md and {0}/compare.json", folder.display());
    Ok(())
}
