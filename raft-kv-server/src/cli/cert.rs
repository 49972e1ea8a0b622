//! `cert renew` replaces such files, once or for as long as it runs. `cert issue`: makes a key pair on this machine, has the cluster sign its public half, and writes
//! three PEM files. The private key never leaves the machine and is readable by its owner alone.

use std::fs;
use std::path::{Path, PathBuf};

use std::time::SystemTime;

use bytes::Bytes;
use raft_kv::client::{Handle, Renewals, readmit_in, renew_once};
use raft_kv::error::Error;
use raft_kv::net::write_credentials;
use raft_kv::pki::{Credentials, NodeKey};
use raft_kv::types::Role;
use serde_json::json;

use crate::args::{CertArgs, CertCommand, CertRole, ConnectArgs};
use crate::connect::{connect, renewable};
use crate::failure::{Failure, Kind};
use crate::output::{Output, shell_word};

/// So many refusals in a row are no member's that has not heard yet.
const REFUSALS: u32 = 6;

/// `raft-kv cert`.
pub async fn run(args: &CertArgs, output: &mut Output) -> Result<(), Failure> {
    match &args.command {
        CertCommand::Issue { name, role, out } => issue(&args.connect, name, *role, out, output).await,
        CertCommand::Renew { watch, token } => renew(&args.connect, *watch, token.as_deref(), output).await,
    }
}

async fn issue(
    connection: &ConnectArgs,
    name: &str,
    role: CertRole,
    out: &Path,
    output: &mut Output,
) -> Result<(), Failure> {
    let role = match role {
        CertRole::Client => Role::Client,
        CertRole::Worker => Role::Worker,
    };
    let handle = connect(connection).await?;
    // Before anything is signed: a certificate that can't be stored is of no use.
    let folder = prepare(out)?;
    let key = NodeKey::generate();
    let (chain, roots) = handle.issue_certificate(name, role, key.request().into()).await?;
    let der = |list: &[Bytes]| list.iter().map(|one| one.to_vec()).collect();
    let credentials =
        Credentials { chain: der(&chain), key: key.der().to_vec(), roots: der(&roots), ..Default::default() };
    credentials.check()?;
    write_credentials(&folder, &credentials)?;
    let files = files_of(&folder);
    output.answer(|| files_json(&files), || files_text(&files))
}

async fn renew(
    connection: &ConnectArgs,
    watch: bool,
    token: Option<&str>,
    output: &mut Output,
) -> Result<(), Failure> {
    let (endpoints, dir) = renewable(connection)?;
    if let Some(token) = token {
        let back = readmit_in(&dir, token.trim(), &endpoints).await?;
        if !watch {
            return output.answer(|| renewals_json(&back), || renewals_text(&back));
        }
    }
    if !watch {
        let renewed = renew_once(&endpoints, &dir).await?;
        return output.answer(|| renewals_json(&renewed), || renewals_text(&renewed));
    }
    let handle = Handle::connect_renewing(&endpoints, &dir).await?;
    let mut renewals = handle.renewals().expect("it keeps a certificate current");
    loop {
        let now = renewals.borrow_and_update().clone();
        match &now.failed {
            None => output.answer(|| renewals_json(&now), || renewals_text(&now))?,
            // One refusal may be a member's that has not heard yet.
            Some((error @ Error::Refused(_), times)) if *times >= REFUSALS => {
                return Err(error.clone().into());
            }
            Some((error @ Error::Stopped(_), _)) => return Err(error.clone().into()),
            // The library has logged it, and tries again.
            Some(_) => {}
        }
        if renewals.changed().await.is_err() {
            return Err(Failure::new(Kind::Stopped, "nothing looks after the certificate any more"));
        }
    }
}

fn ends(renewals: &Renewals) -> i64 {
    let since = renewals.ends.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

fn renewals_json(renewals: &Renewals) -> serde_json::Value {
    json!({
        "renewed": renewals.renewed, "certificate_ends": ends(renewals), "roots": renewals.roots,
        "root": renewals.root.map(|root| root.to_string()),
    })
}

fn renewals_text(renewals: &Renewals) -> String {
    let root = renewals.root.map_or("unknown".into(), |root| root.to_string());
    let until = super::cluster::date(ends(renewals));
    let believed = if renewals.roots > 1 { format!(", {} believed", renewals.roots) } else { String::new() };
    format!("certificate until {until}, root {root}{believed}\n")
}

/// The folder, made if need be: absolute, so that what is printed holds anywhere.
pub(super) fn prepare(out: &Path) -> Result<PathBuf, Failure> {
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

/// The three files in a folder, by what they are.
pub(super) fn files_of(folder: &Path) -> [(&'static str, PathBuf); 3] {
    ["cacert", "cert", "key"].map(|name| (name, folder.join(format!("{name}.pem"))))
}

pub(super) fn files_json(files: &[(&str, PathBuf)]) -> serde_json::Value {
    let [cacert, cert, key] = [0, 1, 2].map(|index| &files[index].1);
    json!({ "cacert": cacert, "cert": cert, "key": key })
}

/// Lines that a shell can read, so that the next commands find the files.
pub(super) fn files_text(files: &[(&str, PathBuf)]) -> String {
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
