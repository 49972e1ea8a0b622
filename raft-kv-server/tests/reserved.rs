//! The keys of tasks and state at the doors of a real member: the command line and Debian's etcdctl read them and write
//! none of them, by whatever request; a delete of everything is let through.

mod process;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use process::{Ended, Member, run};

/// Debian's etcdctl with a client's files of its own.
struct Etcdctl {
    files: PathBuf,
    url: String,
}

impl Etcdctl {
    fn of(member: &Member, folder: &Path) -> Self {
        let files = folder.join("client");
        member.ask(&["cert", "issue", "client", "--out", files.to_str().unwrap()]).done();
        assert!(fs::exists(files.join("cert.pem")).unwrap());
        Self { files, url: member.etcd_url.clone() }
    }

    fn ask(&self, words: &[&str], input: &str) -> Ended {
        let mut command = Command::new("etcdctl");
        command.env_clear().env("ETCDCTL_API", "3").env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.arg("--endpoints").arg(&self.url).args(["--dial-timeout=30s", "--command-timeout=30s"]);
        for (option, name) in [("--cacert", "cacert.pem"), ("--cert", "cert.pem"), ("--key", "key.pem")] {
            command.arg(option).arg(self.files.join(name));
        }
        command.args(words);
        run(command, input.as_bytes())
    }
}

#[test]
fn tasks_and_state_are_not_written_by_raw_requests() {
    let folder = tempfile::tempdir().unwrap();
    let member = Member::first(folder.path());
    let etcdctl = Etcdctl::of(&member, folder.path());
    let said = ["_rk/", "typed layer"];
    member.ask(&["put", "_rk/t/x", "v"]).refused(1, &said);
    member.ask(&["put", "_rk", "v"]).done();
    member.ask(&["del", "_rk/t", "--prefix"]).refused(1, &said);
    member.ask(&["del", "_rk/f"]).refused(1, &said);
    etcdctl.ask(&["put", "_rk/t/x", "v"], "").refused(1, &said);
    etcdctl.ask(&["del", "_rk/t/x", "_rk/u"], "").refused(1, &said);
    // Whichever path is taken.
    etcdctl.ask(&["txn"], "\nput a b\n\nput _rk/t/x v\n\n").refused(1, &said);
    etcdctl.ask(&["lock", "_rk/lock", "true"], "").refused(1, &said);
    etcdctl.ask(&["get", "_rk/", "--prefix"], "").done();
    member.ask(&["get", "_rk/", "--prefix"]).done();
    let left = member.ask(&["get", "", "--prefix"]).json();
    assert_eq!(left["count"], 1, "{left}");
    etcdctl.ask(&["del", "", "--prefix"], "").done();
    member.ask(&["get", "_rk"]).refused(6, &["does not exist"]);
}
