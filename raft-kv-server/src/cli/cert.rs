//! `cert issue`: makes a key pair on this machine, has the cluster sign its public half, and writes
//! three PEM files. The private key never leaves the machine and is readable by its owner alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use raft_kv::types::Role;
use serde_json::json;

use crate::args::{CertArgs, CertCommand, CertRole};
use crate::bytes_arg::to_base64;
use crate::connect::connect;
use crate::failure::{Failure, Kind};
use crate::output::{Output, shell_word};

/// `raft-kv cert`.
pub async fn run(args: &CertArgs, output: &mut Output) -> Result<(), Failure> {
    let CertCommand::Issue { name, role, out } = &args.command;
    let role = match role {
        CertRole::Client => Role::Client,
        CertRole::Worker => Role::Worker,
    };
    let handle = connect(&args.connect).await?;
    let (key, request) = new_key(name)?;
    // Before anything is signed: a certificate that can't be stored is of no use.
    fs::create_dir_all(out).map_err(|error| unwritable(out, &error))?;
    let (chain, roots) = handle.issue_certificate(name, role, request).await?;
    let write = |file: &str, text: &str, mode| write_file(out, file, text.as_bytes(), mode);
    let key = write("key.pem", &key, 0o600)?;
    let cert = write("cert.pem", &pem("CERTIFICATE", &chain), 0o644)?;
    let cacert = write("cacert.pem", &pem("CERTIFICATE", &roots), 0o644)?;
    output.answer(
        || json!({ "cacert": cacert, "cert": cert, "key": key }),
        || {
            let word = |path: &PathBuf| shell_word(&path.to_string_lossy());
            format!(
                "export RAFT_KV_CACERT={}\nexport RAFT_KV_CERT={}\nexport RAFT_KV_KEY={}\n",
                word(&cacert),
                word(&cert),
                word(&key)
            )
        },
    )
}

/// A new private key (PEM) and the request to sign its public half (DER).
fn new_key(name: &str) -> Result<(String, Bytes), Failure> {
    Ok(raft_kv::pki::new_request(name)?)
}

/// DER objects as PEM, one after the other.
fn pem(label: &str, objects: &[Bytes]) -> String {
    let mut text = String::new();
    for object in objects {
        text.push_str(&format!("-----BEGIN {label}-----\n"));
        let mut rest = to_base64(object);
        while !rest.is_empty() {
            let tail = rest.split_off(rest.len().min(64));
            text.push_str(&rest);
            text.push('\n');
            rest = tail;
        }
        text.push_str(&format!("-----END {label}-----\n"));
    }
    text
}

/// Writes a file whole or not at all, on disk when this returns. Its absolute path.
fn write_file(folder: &Path, name: &str, content: &[u8], mode: u32) -> Result<PathBuf, Failure> {
    let path = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned()).join(name);
    let draft = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&draft)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&draft, &path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|error| {
        let _ = fs::remove_file(&draft);
        unwritable(&path, &error)
    })?;
    Ok(path)
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    let path = path.display();
    Failure::new(
        Kind::Refused,
        format!("{path}: can't be written: {error}; choose a directory that can with --out"),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn pem_has_lines_of_64_characters() {
        let long = Bytes::from(vec![0; 49]);
        let text = pem("X", &[long, Bytes::from_static(b"a")]);
        let line = "A".repeat(64);
        assert_eq!(
            text,
            format!(
                "-----BEGIN X-----\n{line}\nAA==\n-----END X-----\n-----BEGIN X-----\nYQ==\n-----END X-----\n"
            )
        );
    }

    #[test]
    fn a_key_file_is_whole_and_its_owners_alone() {
        let folder = tempfile::tempdir().unwrap();
        for content in ["first", "second"] {
            let path = write_file(folder.path(), "key.pem", content.as_bytes(), 0o600).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let failure = write_file(&folder.path().join("key.pem"), "x", b"", 0o600).unwrap_err();
        assert!(failure.message.contains("can't be written"), "{failure}");
    }
}
