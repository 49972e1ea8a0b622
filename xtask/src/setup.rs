//! The system packages that a build needs: looks for the things themselves, installs what is missing
//! when it may, and otherwise says the exact command and stops.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::workspace::Workspace;

/// One thing the build needs from the system.
struct Need {
    what: &'static str,
    why: &'static str,
    found: fn() -> bool,
    /// Debian's packages; `{llvm}` stands for the version of LLVM.
    packages: &'static [&'static str],
}

const NEEDS: &[Need] = &[
    Need {
        what: "a C and C++ compiler with make",
        why: "RocksDB, aws-lc and jemalloc are compiled here",
        found: || ["gcc", "g++", "make"].iter().all(|name| on_path(name)),
        packages: &["build-essential"],
    },
    Need {
        what: "libclang",
        why: "RocksDB's bindings are made from its headers",
        found: || env::var_os("LIBCLANG_PATH").is_some() || found_below(LIBRARY_DIRS, "libclang", ".so"),
        packages: &["libclang1-{llvm}"],
    },
    Need {
        what: "clang's own headers",
        why: "libclang cannot read C without them",
        found: || env::var_os("BINDGEN_EXTRA_CLANG_ARGS").is_some() || clang_headers(),
        packages: &["libclang-common-{llvm}-dev"],
    },
    Need {
        what: "ccache",
        why: "RocksDB takes 13 minutes; with ccache it is compiled once",
        found: || on_path("ccache"),
        packages: &["ccache"],
    },
    Need {
        what: "protoc",
        why: "the crate etcd-client, against which the server is tested, makes its stubs with it",
        found: || on_path("protoc"),
        packages: &["protobuf-compiler"],
    },
    Need {
        what: "mkfs.ext4, mount and perl",
        why: "members are tested on disks of their own, whose power is cut",
        found: || {
            ["mount", "perl"].iter().all(|name| on_path(name)) && Path::new("/usr/sbin/mkfs.ext4").exists()
        },
        packages: &["e2fsprogs", "mount", "perl-base", "util-linux", "iproute2"],
    },
    Need {
        what: "etcd",
        why: "its answers are compared with ours",
        found: || on_path("etcd"),
        packages: &["etcd-server"],
    },
    Need {
        what: "etcdctl",
        why: "it is tested against the server",
        found: || on_path("etcdctl"),
        packages: &["etcd-client"],
    },
    Need {
        what: "openssl",
        why: "the examples of external roots are run with it",
        found: || on_path("openssl"),
        packages: &["openssl"],
    },
    Need {
        what: "Python with venv",
        why: "its etcd clients and Patroni are tested against the server",
        found: || on_path("python3") && venv(),
        packages: &["python3", "python3-venv"],
    },
    Need {
        what: "Node with npm",
        why: "its etcd client is tested against the server",
        found: || on_path("node") && on_path("npm"),
        packages: &["nodejs", "npm"],
    },
];

const LIBRARY_DIRS: &[&str] = &[
    "/usr/lib/llvm-*/lib",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
];
const HEADER_DIRS: &[&str] = &["/usr/lib/llvm-*/lib/clang/*/include", "/usr/lib/clang/*/include"];
/// Versions of LLVM that the bindings have been made with, or are expected to work with, oldest first.
const LLVM: std::ops::RangeInclusive<u32> = 14..=21;

/// Makes sure that the machine can build the project.
pub fn ensure(_: &Workspace) -> Result<(), String> {
    let missing: Vec<&Need> = NEEDS.iter().filter(|need| !(need.found)()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for need in &missing {
        eprintln!("setup: {} is missing ({})", need.what, need.why);
    }
    if !on_path("apt-get") {
        let names = missing.iter().map(|need| need.what).collect::<Vec<_>>().join(", ");
        return Err(format!(
            "this machine has no apt-get. Install with its own package manager: {names}. Then run the command again"
        ));
    }
    let Some(prefix) = privilege() else {
        return Err(format!(
            "installing packages needs root here. Run this, then the command again:\n\n    {}\n",
            by_hand(&packages(&missing, llvm_version()))
        ));
    };
    apt(&prefix, &["update", "-q"])?;
    let packages = packages(&missing, llvm_version());
    eprintln!("setup: installing {}", packages.join(" "));
    let mut arguments = vec!["install", "-y", "-q", "--no-install-recommends"];
    arguments.extend(packages.iter().map(String::as_str));
    apt(&prefix, &arguments)?;
    match NEEDS.iter().find(|need| !(need.found)()) {
        None => Ok(()),
        Some(need) => Err(format!(
            "{} is still missing after {}. Install it by hand and run the command again",
            need.what,
            by_hand(&packages)
        )),
    }
}

/// What stands before a command that needs root: nothing for root, sudo where it asks for no password.
fn privilege() -> Option<Vec<&'static str>> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    if effective_user(&status) == Some(0) {
        return Some(vec![]);
    }
    let sudo = Command::new("sudo").args(["-n", "true"]).stdin(Stdio::null()).stderr(Stdio::null()).status();
    sudo.is_ok_and(|status| status.success()).then(|| vec!["sudo", "-n"])
}

fn effective_user(status: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

fn apt(prefix: &[&str], arguments: &[&str]) -> Result<(), String> {
    let line: Vec<&str> =
        prefix.iter().copied().chain(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]).collect();
    let shown = format!("apt-get {}", arguments.join(" "));
    let started = Instant::now();
    eprintln!("setup: {shown}");
    let output = Command::new(line[0])
        .args(&line[1..])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{shown}: {error}"))?;
    if !output.status.success() {
        eprintln!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        return Err(format!("{shown} failed; its own words are above"));
    }
    eprintln!("setup: done in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn packages(missing: &[&Need], llvm: u32) -> Vec<String> {
    let names = missing.iter().flat_map(|need| need.packages);
    names.map(|name| name.replace("{llvm}", &llvm.to_string())).collect()
}

fn by_hand(packages: &[String]) -> String {
    format!("sudo apt-get update && sudo apt-get install -y {}", packages.join(" "))
}

/// The oldest LLVM that this system's package lists offer; Debian 12's where they say nothing.
fn llvm_version() -> u32 {
    let offered = |version: &u32| {
        let name = format!("libclang-common-{version}-dev");
        let answer = Command::new("apt-cache").args(["policy", &name]).output();
        answer.is_ok_and(|output| {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            text.contains("Candidate:") && !text.contains("Candidate: (none)")
        })
    };
    LLVM.into_iter().find(offered).unwrap_or(*LLVM.start())
}

fn on_path(name: &str) -> bool {
    env::var_os("PATH").is_some_and(|path| env::split_paths(&path).any(|dir| dir.join(name).is_file()))
}

fn venv() -> bool {
    let asked = Command::new("python3").args(["-c", "import venv, ensurepip"]).output();
    asked.is_ok_and(|output| output.status.success())
}

fn found_below(dirs: &[&str], start: &str, part: &str) -> bool {
    dirs.iter().flat_map(|pattern| expand(Path::new("/"), pattern)).any(|dir| {
        names_in(&dir).iter().any(|name| {
            name.strip_prefix(start).is_some_and(|rest| {
                rest.contains(part) && rest.starts_with(['.', '-']) && !rest.contains("cpp")
            })
        })
    })
}

fn clang_headers() -> bool {
    HEADER_DIRS
        .iter()
        .flat_map(|pattern| expand(Path::new("/"), pattern))
        .any(|dir| dir.join("stdbool.h").is_file())
}

/// The directories that `pattern` names; a part may end in `*`.
fn expand(top: &Path, pattern: &str) -> Vec<PathBuf> {
    let mut dirs = vec![top.to_owned()];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        dirs = dirs
            .into_iter()
            .flat_map(|dir| match part.strip_suffix('*') {
                None => vec![dir.join(part)],
                Some(start) => {
                    let mut found = names_in(&dir);
                    found.retain(|name| name.starts_with(start));
                    found.into_iter().map(|name| dir.join(name)).collect()
                }
            })
            .filter(|dir| dir.is_dir())
            .collect();
    }
    dirs
}

fn names_in(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return vec![] };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_by_hand_names_every_package_once() {
        let all: Vec<&Need> = NEEDS.iter().collect();
        assert_eq!(
            by_hand(&packages(&all, 14)),
            "sudo apt-get update && sudo apt-get install -y \
             build-essential libclang1-14 libclang-common-14-dev ccache protobuf-compiler e2fsprogs mount \
             perl-base util-linux iproute2 etcd-server etcd-client openssl python3 python3-venv nodejs npm"
        );
    }

    #[test]
    fn patterns_name_directories() {
        let top = tempfile::tempdir().unwrap();
        for dir in ["usr/lib/llvm-14/lib/clang/14.0.6/include", "usr/lib/llvm-19/lib", "usr/lib/other"] {
            fs::create_dir_all(top.path().join(dir)).unwrap();
        }
        assert_eq!(expand(top.path(), "/usr/lib/llvm-*/lib").len(), 2);
        assert_eq!(expand(top.path(), "/usr/lib/llvm-*/lib/clang/*/include").len(), 1);
        assert!(expand(top.path(), "/usr/lib64").is_empty());
    }

    #[test]
    fn root_is_the_effective_user_zero() {
        assert_eq!(effective_user("Name:\tx\nUid:\t1000\t0\t0\t0\n"), Some(0));
        assert_eq!(effective_user("Uid:\t1000\t1000\t1000\t1000\n"), Some(1000));
        assert_eq!(effective_user(""), None);
    }
}
