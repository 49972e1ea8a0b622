//! `cargo xtask check`: what a machine can hold of the house rules. Reads, and writes nothing;
//! [`fix`] writes. Only what is checked here stays true, so a rule without a check is advice.

pub mod layers;
pub mod rules;
pub mod source;

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::workspace::Workspace;

/// Something that breaks a rule, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file, from the root of the checkout.
    pub path: String,
    /// The line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// What is wrong and what would be right.
    pub text: String,
}

impl Finding {
    fn new(path: &str, line: usize, text: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, text: text.into() }
    }
}

/// Checks every file of the checkout; prints each finding.
pub fn run(place: &Workspace) -> Result<(), String> {
    let files = files(&place.root)?;
    let mut findings = vec![];
    let mut sources = 0;
    for path in &files {
        // A file that is deleted and not yet committed is still listed.
        let Ok(bytes) = fs::read(place.root.join(path)) else { continue };
        let Ok(text) = String::from_utf8(bytes) else { continue };
        sources += usize::from(path.ends_with(".rs"));
        findings.extend(look_at(path, &text));
    }
    findings.extend(rules::linked(&tree(place)?));
    for finding in &findings {
        eprintln!("{}:{}: {}", finding.path, finding.line, finding.text);
    }
    match findings.len() {
        0 => {
            println!("check: {} files, {sources} of them Rust: nothing to say", files.len());
            Ok(())
        }
        count => Err(format!("check found {count} things, named above")),
    }
}

/// Everything that is said against one file.
fn look_at(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = rules::text(path, text);
    if path.ends_with(".rs") {
        let code = source::strip(text);
        findings.extend(rules::rust(path, text, &code));
        findings.extend(layers::imports(path, &code));
    }
    if path == "ARCHITECTURE.md" {
        findings.extend(layers::map(path, text));
    }
    findings
}

/// Puts right what can be put right: the format, and the table of layers in ARCHITECTURE.md.
pub fn fix(place: &Workspace) -> Result<(), String> {
    let status =
        place.cargo().args(["fmt", "--all"]).status().map_err(|error| format!("cargo fmt: {error}"))?;
    if !status.success() {
        return Err("cargo fmt failed; its own words are above".to_owned());
    }
    let path = place.root.join("ARCHITECTURE.md");
    let text = fs::read_to_string(&path).map_err(|error| format!("ARCHITECTURE.md: {error}"))?;
    let fixed = layers::with_table(&text)?;
    if fixed != text {
        fs::write(&path, fixed).map_err(|error| format!("ARCHITECTURE.md: {error}"))?;
        println!("fix: wrote the table of layers into ARCHITECTURE.md");
    }
    Ok(())
}

/// What the workspace links on this machine, one package a line.
fn tree(place: &Workspace) -> Result<String, String> {
    let output = place
        .cargo()
        .args(["tree", "--workspace", "--edges", "normal,build", "--prefix", "none", "--quiet"])
        .output()
        .map_err(|error| format!("cargo tree: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo tree: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The files that git knows or would take.
fn files(root: &Path) -> Result<Vec<String>, String> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .map_err(|error| format!("git: {error}"))?;
    if !output.status.success() {
        return Err(format!("git ls-files: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    let list = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut files: Vec<String> =
        list.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    files.sort();
    files.dedup();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One file's text against the findings expected, each by its line and a part of its text.
    #[track_caller]
    fn check(path: &str, text: &str, expect: &[(usize, &str)]) {
        let got = look_at(path, text);
        let fits = got.len() == expect.len()
            && got.iter().zip(expect).all(|(got, (line, part))| got.line == *line && got.text.contains(part));
        assert!(fits, "{path}\n{text}\ngot {got:#?}\nexpected {expect:?}");
    }

    #[test]
    fn a_good_file_is_silent() {
        check("raft-kv/src/node/admit.rs", "//! Head.\nuse crate::raft::Core;\nuse super::Shell;\n", &[]);
        check("README.md", "See https://github.com/x/y and https://127.0.0.1:2379.\n", &[]);
    }

    #[test]
    fn planted_violations_are_found() {
        // Sideways, up, and by every way of writing it.
        check("raft-kv/src/raft/a.rs", "//! x\nuse crate::machine::Store;\n", &[(2, "machine")]);
        check("raft-kv/src/raft/a.rs", "//! x\nuse crate::{types::Id, node::Loop};\n", &[(2, "node")]);
        check("raft-kv/src/raft/a.rs", "//! x\nuse {crate::client::Node, std::fmt};\n", &[(2, "client")]);
        check("raft-kv/src/raft/a.rs", "//! x\nfn f() { crate::storage::open() }\n", &[(2, "storage")]);
        check("raft-kv/src/raft/mod.rs", "//! x\nuse super::machine::Store;\n", &[(2, "machine")]);
        check("raft-kv/src/raft/a.rs", "//! x\nuse super::super::net::Endpoint;\n", &[(2, "net")]);
        check("raft-kv/src/storage/a.rs", "//! x\nuse crate::net;\n", &[(2, "net")]);
        check("raft-kv/src/types.rs", "//! x\nuse crate::raft::Core;\n", &[(2, "raft")]);
        check("raft-kv/src/node/a.rs", "//! x\nuse crate::sim::World;\n", &[(2, "sim")]);
        check("raft-kv/src/node/a.rs", "//! x\nuse crate::surprise::X;\n", &[(2, "not in the table")]);
        // Names.
        check("raft-kv/src/node/util.rs", "//! x\n", &[(0, "util")]);
        check("raft-kv/src/helpers/mod.rs", "//! x\n", &[(0, "helpers")]);
        check("raft-kv/src/node/a.rs", "//! x\nmod manager;\n", &[(2, "manager")]);
        // Words.
        check("raft-kv/src/node/a.rs", "use std::fmt;\n", &[(1, "//!")]);
        check("xtask/src/a.rs", "//! x\nfn f() { todo!() }\n", &[(2, "todo!")]);
        check("xtask/src/a.rs", "//! x\n#[ignore = \"slow\"]\nfn f() {}\n", &[(2, "ignore")]);
        check("raft-kv/src/raft/a.rs", "//! x\nfn f() { std::thread::sleep(d) }\n", &[(2, "thread::sleep")]);
        check("docs/a.md", concat!("x\nin /ro", "ot/x\n"), &[(2, "path of one machine")]);
        check(
            "docs/a.md",
            concat!("x\nfrom https:/", "/packages.elsewhere.net/y\n"),
            &[(2, "not among the hosts")],
        );
    }

    #[test]
    fn what_only_looks_like_a_violation_is_let_through() {
        check("raft-kv/src/raft/a.rs", "//! x\n// crate::machine is not used here\n", &[]);
        check("raft-kv/src/raft/a.rs", "//! x\nconst A: &str = \"crate::machine, todo!()\";\n", &[]);
        check("raft-kv/src/raft/a.rs", "//! x\npub(crate) fn f() { crate::planted!(SkipFsync); }\n", &[]);
        check("raft-kv/src/raft/a.rs", "//! x\n#[cfg(test)]\nmod tests { use crate::machine::X; }\n", &[]);
        check("raft-kv/src/raft/tests/a.rs", "//! x\nuse crate::machine::X;\n", &[]);
        check("raft-kv/src/raft/state_tests.rs", "//! x\nuse crate::machine::X;\n", &[]);
        check("raft-kv/src/raft/mod.rs", "//! x\nmod inner { use super::machine::Own; }\n", &[]);
        check("raft-kv/src/sim/a.rs", "//! x\nuse crate::{node, storage, machine};\n", &[]);
        check("raft-kv/src/lib.rs", "//! x\npub use crate::client::Node;\n", &[]);
        check("raft-kv/src/net/a.rs", "//! x\nfn f() { std::thread::sleep(d) }\n", &[]);
        check("raft-kv-server/src/args.rs", "//! x\nuse crate::cli::X;\n", &[]);
    }
}
