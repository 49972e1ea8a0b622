//! Names and words: what no file may be called, and what no file may hold.

use super::Finding;
use super::source::tokens;

/// Names of modules that say nothing about what is inside.
const EMPTY_NAMES: &[&str] =
    &["util", "utils", "common", "helper", "helpers", "manager", "handler", "handlers", "misc"];
/// Macros that stand for code not written.
const UNWRITTEN: &[&str] = &["todo", "unimplemented"];
/// Folders whose code, tests included, takes time as an argument.
const TIMELESS: &[&str] = &[
    "raft-kv/src/raft/",
    "raft-kv/src/machine/",
    "raft-kv/src/pki/",
    "raft-kv/src/watch/",
    "raft-kv/src/types/",
    "raft-kv/src/sim/",
];
/// Beginnings of paths that exist on one machine only.
const MACHINE_PATHS: &[&str] = &[
    concat!("/ro", "ot/"),
    concat!("/ho", "me/"),
    concat!("/wo", "rk/"),
    concat!("/Us", "ers/"),
    concat!("/tmp/", "wt"),
];
/// Hosts that files may point to: a short list, so that no download creeps in.
const HOSTS: &[&str] = &[
    "github.com",
    "raft.github.io",
    "etcd.io",
    "jepsen.io",
    "keepachangelog.com",
    "semver.org",
    "www.apache.org",
    "rustsec.org",
    "www.rfc-editor.org",
];
/// Endings of names that are kept free for examples and tests.
const EXAMPLE_HOSTS: &[&str] =
    &["example.com", "example.org", "example.net", ".test", ".invalid", ".example", ".local"];
/// Packages that must not be linked, and why.
const BANNED: &[(&str, &str)] = &[
    ("ring", "a second crypto provider: rustls panics when it cannot choose"),
    ("openssl-sys", "all cryptography is aws-lc's"),
    ("native-tls", "all TLS is rustls"),
];

/// Rules for the text of any file.
pub fn text(path: &str, text: &str) -> Vec<Finding> {
    // The lock file names where packages come from; cargo writes it.
    if path.ends_with("Cargo.lock") {
        return vec![];
    }
    let mut findings = vec![];
    for (number, line) in text.lines().enumerate() {
        if let Some(start) = MACHINE_PATHS.iter().find(|start| holds_path(line, start)) {
            findings.push(Finding::new(path, number + 1, format!("{start}… is the path of one machine")));
        }
        for host in hosts(line).filter(|host| !may_name(host)) {
            findings.push(Finding::new(
                path,
                number + 1,
                format!("{host} is not among the hosts that files may name"),
            ));
        }
    }
    findings
}

/// Whether `line` holds an absolute path that begins with `start`, and not merely has it inside another.
fn holds_path(line: &str, start: &str) -> bool {
    line.match_indices(start).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '/' | '_' | '-' | '.' | '}' | '~' | '*'))
    })
}

fn hosts(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("://").map(|(at, mark)| {
        let rest = &line[at + mark.len()..];
        let end =
            rest.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '-'))).unwrap_or(rest.len());
        rest[..end].trim_end_matches('.')
    })
}

fn may_name(host: &str) -> bool {
    let is_number = host.chars().all(|c| c.is_ascii_digit() || c == '.');
    !host.contains('.')
        || is_number
        || HOSTS.contains(&host)
        || EXAMPLE_HOSTS.iter().any(|ending| host.ends_with(ending))
}

/// Rules for Rust source, given as it is and stripped.
pub fn rust(path: &str, text: &str, code: &str) -> Vec<Finding> {
    let mut findings = vec![];
    for name in path.trim_end_matches(".rs").split('/').filter(|name| EMPTY_NAMES.contains(name)) {
        findings.push(Finding::new(
            path,
            0,
            format!("{name} says nothing about what is inside; name the duty"),
        ));
    }
    if !text.starts_with("//!") {
        findings.push(Finding::new(path, 1, "a file begins with //! and what it is for"));
    }
    let tokens = tokens(code);
    let timeless = TIMELESS.iter().any(|folder| path.starts_with(folder));
    for window in tokens.windows(3) {
        let [first, second, third] = [window[0].text, window[1].text, window[2].text];
        let line = window[0].line;
        if UNWRITTEN.contains(&first) && second == "!" {
            findings.push(Finding::new(path, line, format!("{first}! stands for code that is not written")));
        }
        if first == "#" && second == "[" && third == "ignore" {
            findings.push(Finding::new(path, line, "an ignored test: run it or remove it"));
        }
        if timeless && first == "thread" && second == "::" && third == "sleep" {
            findings.push(Finding::new(path, line, "thread::sleep where time is an argument"));
        }
        if first == "mod" && matches!(third, ";" | "{") && EMPTY_NAMES.contains(&second) {
            findings.push(Finding::new(path, line, format!("module {second}: name the duty")));
        }
    }
    findings
}

/// Rules for what is linked: `tree` is the list that `cargo tree` prints for this machine. The lock file
/// would not do: it also names what only other systems link.
pub fn linked(tree: &str) -> Vec<Finding> {
    let mut findings = vec![];
    for (name, why) in BANNED {
        if tree.lines().any(|line| line.split(' ').next() == Some(name)) {
            findings.push(Finding::new(
                "Cargo.toml",
                0,
                format!("{name} is linked: {why}; `cargo tree -i {name}`"),
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_named_only_from_the_list() {
        for line in
            ["https://github.com/a", "https://{addr}/", "https://127.0.0.1:1", "https://a.example.com."]
        {
            assert!(hosts(line).all(may_name), "{line}");
        }
        assert!(hosts(concat!("see https:/", "/a.registry.net/x")).any(|host| !may_name(host)));
    }

    #[test]
    fn a_second_crypto_provider_is_found() {
        assert_eq!(linked("aws-lc-rs v1.19.0\nstring v1.0.0\n"), []);
        assert_eq!(linked("aws-lc-rs v1.19.0\nring v0.17.14\n").len(), 1);
    }

    #[test]
    fn a_path_inside_another_is_none() {
        let start = concat!("/ho", "me/");
        assert!(holds_path(&format!("cd {start}me"), start));
        assert!(!holds_path(&format!("$XDG{start}me"), start));
        assert!(!holds_path(&format!("docs{start}page"), start));
    }
}
