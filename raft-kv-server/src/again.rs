//! A member that has stopped for damage on its disk starts anew, in the same process: the program is run
//! again in its place, with nothing of it in memory, and repairs itself as at any start. It must never do so
//! without end: then the exit code tells whoever watches it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::args::SignerArgs;
use crate::failure::{Failure, Kind};

/// How often this process has done it.
const COUNT: &str = "RAFT_KV_STARTED_AGAIN";
const MOST: u32 = 8;

/// The words of the command line that starts the member again.
pub struct Again(Vec<OsString>);

impl Again {
    /// Those that started it.
    pub fn same() -> Self {
        Self(std::env::args_os().skip(1).collect())
    }

    /// `run` for a member that was just made.
    pub fn run(data_dir: &Path, json: bool, signer: &SignerArgs) -> Self {
        let mut words: Vec<OsString> = vec!["run".into(), "--data-dir".into(), data_dir.into()];
        words.extend(json.then(|| "--json".into()));
        if let Some(program) = &signer.external_signer {
            words.push(format!("--external-signer={program}").into());
        }
        words.extend(
            signer.external_signer_arg.iter().map(|word| format!("--external-signer-arg={word}").into()),
        );
        Self(words)
    }

    /// Starts it. Comes back only if it can't.
    pub fn start(&self, why: &str) -> Failure {
        let failed = |more: &str| Failure::new(Kind::Stopped, format!("{why}{more}"));
        let count = std::env::var(COUNT).ok().and_then(|count| count.parse().ok()).unwrap_or(0_u32);
        if count >= MOST {
            return failed("; it was started anew several times already");
        }
        let program = match std::env::current_exe() {
            Ok(program) => program,
            Err(error) => return failed(&format!("; it can't be started anew: {error}")),
        };
        tracing::warn!("this member starts anew to get its data from the others");
        let error = Command::new(program).args(&self.0).env(COUNT, (count + 1).to_string()).exec();
        failed(&format!("; it can't be started anew: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_that_was_just_made_is_run_again() {
        let signer = SignerArgs {
            external_signer: Some("sign".into()),
            external_signer_arg: vec!["-k".into(), "one two".into()],
        };
        let Again(words) = Again::run(Path::new("/d"), true, &signer);
        let expect = [
            "run",
            "--data-dir",
            "/d",
            "--json",
            "--external-signer=sign",
            "--external-signer-arg=-k",
            "--external-signer-arg=one two",
        ];
        assert_eq!(words, expect);
        assert_eq!(Again::run(Path::new("/d"), false, &SignerArgs::default()).0.len(), 3);
    }
}
