//! `cert issue`: makes a key pair on this machine, has the cluster sign its public half, and writes
//! three PEM files. The private key never leaves the machine and is readable by its owner alone.

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use raft_kv::net::write_credentials;
use raft_kv::pki::{Credentials, NodeKey};
use raft_kv::types::Role;
use serde_json::json;

use crate::args::{CertArgs, CertCommand, CertRole};
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
    // Before anything is signed: a certificate that can't be stored is of no use.
    let folder = prepare(out)?;
    let key = NodeKey::generate();
    let (chain, roots) = handle.issue_certificate(name, role, key.request().into()).await?;
    let der = |list: &[Bytes]| list.iter().map(|one| one.to_vec()).collect();
    let credentials =
        Credentials { chain: der(&chain), key: key.der().to_vec(), roots: der(&roots), ..Default::default() };
    credentials.check()?;
    write_credentials(&folder, &credentials)?;
    let files = ["cacert", "cert", "key"].map(|name| (name, folder.join(format!("{name}.pem"))));
    output.answer(|| files_json(&files), || files_text(&files))
}

/// The folder, made if need be: absolute, so that what is printed holds anywhere.
fn prepare(out: &Path) -> Result<PathBuf, Failure> {
    let unusable = |error| {
        let out = out.display();
        Failure::new(
            Kind::Refused,
            format!("{out}: can't be used: {error}; give another directory with --out"),
        )
    };
    fs::create_dir_all(out).map_err(unusable)?;
    fs::canonicalize(out).map_err(unusable)
}

fn files_json(files: &[(&str, PathBuf)]) -> serde_json::Value {
    let [cacert, cert, key] = [0, 1, 2].map(|index| &files[index].1);
    json!({ "cacert": cacert, "cert": cert, "key": key })
}

/// Lines that a shell can read, so that the next commands find the files.
fn files_text(files: &[(&str, PathBuf)]) -> String {
    let line = |(name, path): &(&str, PathBuf)| {
        format!("export RAFT_KV_{}={}\n", name.to_uppercase(), shell_word(&path.to_string_lossy()))
    };
    files.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_are_named_in_both_forms() {
        let files = ["cacert", "cert", "key"].map(|name| (name, PathBuf::from(format!("/a b/{name}.pem"))));
        assert_eq!(
            files_json(&files).to_string(),
            r#"{"cacert":"/a b/cacert.pem","cert":"/a b/cert.pem","key":"/a b/key.pem"}"#
        );
        assert_eq!(
            files_text(&files),
            "export RAFT_KV_CACERT='/a b/cacert.pem'\nexport RAFT_KV_CERT='/a b/cert.pem'\n\
             export RAFT_KV_KEY='/a b/key.pem'\n"
        );
    }

    #[test]
    fn a_file_where_the_directory_should_be_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let failure = prepare(&file).unwrap_err();
        assert_eq!(failure.kind, Kind::Refused);
        assert!(failure.message.contains("can't be used") && failure.message.contains("--out"), "{failure}");
        assert!(prepare(&folder.path().join("a/b")).unwrap().ends_with("a/b"));
    }
}
