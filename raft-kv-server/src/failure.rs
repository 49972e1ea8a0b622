//! How a command ends when not well: what is said, and the exit code that says what to do next.
//! The table is in `docs/cli.md`; scripts rely on it.

use std::fmt;

use raft_kv::client::StartError;
use raft_kv::error::{Error, Refusal, StorageFailed};

/// What a failure means to the caller. The exit code and the word in JSON come from it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The request is at fault; nothing was changed.
    Refused,
    /// The command line is at fault; nothing was sent.
    Usage,
    /// Certainly not done; safe to repeat after a pause.
    NotDone,
    /// May have been done: look before you repeat.
    Unknown,
    /// The node stopped, or its disk is at fault.
    Stopped,
    /// What was asked for is not there; nothing was changed.
    NotFound,
}

impl Kind {
    /// The process's exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Refused => 1,
            Self::Usage => 2,
            Self::NotDone => 3,
            Self::Unknown => 4,
            Self::Stopped => 5,
            Self::NotFound => 6,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Usage => "usage",
            Self::NotDone => "not_done",
            Self::Unknown => "unknown",
            Self::Stopped => "stopped",
            Self::NotFound => "not_found",
        }
    }
}

/// Why a command ended without doing what it was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// What it means to the caller.
    pub kind: Kind,
    /// What, why, and what to do.
    pub message: String,
}

impl Failure {
    /// A failure of `kind`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// The command line is at fault.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// The one line for standard error.
    pub fn render(&self, json: bool) -> String {
        if !json {
            return format!("raft-kv: {}", self.message);
        }
        serde_json::json!({ "error": {
            "kind": self.kind.word(),
            "message": self.message,
            "retry": self.kind == Kind::NotDone,
        }})
        .to_string()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Refused(refusal) => return refusal.clone().into(),
            Error::NotDone(_) => Kind::NotDone,
            Error::Unknown(_) => Kind::Unknown,
            Error::Stopped(_) => Kind::Stopped,
        };
        Self::new(kind, error.to_string())
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let kind = match refusal {
            Refusal::KeyNotFound | Refusal::LeaseNotFound { .. } | Refusal::MemberNotFound { .. } => {
                Kind::NotFound
            }
            _ => Kind::Refused,
        };
        Self::new(kind, format!("refused: {refusal}"))
    }
}

impl From<StorageFailed> for Failure {
    fn from(failed: StorageFailed) -> Self {
        Self::new(Kind::Stopped, format!("stopped: {failed}"))
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Refused(refusal) => refusal.into(),
            StartError::Storage(failed) => failed.into(),
            StartError::Cluster(error) => error.into(),
            // Nothing was changed: another directory or another command is the way out.
            wrong @ (StartError::DataDir { .. } | StartError::Locked { .. }) => {
                Self::new(Kind::Refused, format!("refused: {wrong}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use raft_kv::error::{NotDone, Unknown};

    use super::*;

    fn check(failure: Failure, code: u8, human: &str, json: &str) {
        assert_eq!(failure.kind.exit_code(), code);
        assert_eq!(failure.render(false), human);
        assert_eq!(failure.render(true), json);
    }

    #[test]
    fn each_error_has_its_code_its_words_and_its_json() {
        check(
            Error::Refused(Refusal::NegativeLimit { limit: -1 }).into(),
            1,
            "raft-kv: refused: the limit is -1; give 0 for no limit, or a positive number",
            r#"{"error":{"kind":"refused","message":"refused: the limit is -1; give 0 for no limit, or a positive number","retry":false}}"#,
        );
        check(
            Failure::usage("no"),
            2,
            "raft-kv: no",
            r#"{"error":{"kind":"usage","message":"no","retry":false}}"#,
        );
        check(
            Error::NotDone(NotDone::Unreachable("no one answers".into())).into(),
            3,
            "raft-kv: not done: no one answers",
            r#"{"error":{"kind":"not_done","message":"not done: no one answers","retry":true}}"#,
        );
        check(
            Error::Unknown(Unknown::ConnectionLost).into(),
            4,
            "raft-kv: outcome unknown: the connection broke after the request was sent",
            r#"{"error":{"kind":"unknown","message":"outcome unknown: the connection broke after the request was sent","retry":false}}"#,
        );
        check(
            StorageFailed { file: "f".into(), why: "w".into(), next: "n".into() }.into(),
            5,
            "raft-kv: stopped: f: w; n",
            r#"{"error":{"kind":"stopped","message":"stopped: f: w; n","retry":false}}"#,
        );
        check(
            Refusal::LeaseNotFound { id: 26 }.into(),
            6,
            "raft-kv: refused: lease 1a does not exist or has ended; grant a new one",
            r#"{"error":{"kind":"not_found","message":"refused: lease 1a does not exist or has ended; grant a new one","retry":false}}"#,
        );
    }

    #[test]
    fn what_keeps_a_member_from_starting_is_told_apart() {
        let storage = StorageFailed { file: "f".into(), why: "w".into(), next: "n".into() };
        check(
            StartError::DataDir { dir: "d".into(), why: "another process uses it".into() }.into(),
            1,
            "raft-kv: refused: data directory d: another process uses it",
            r#"{"error":{"kind":"refused","message":"refused: data directory d: another process uses it","retry":false}}"#,
        );
        for (error, code) in [
            (StartError::Refused(Refusal::BadToken { why: "w".into() }), 1),
            (StartError::Storage(storage), 5),
            (StartError::Cluster(Error::NotDone(NotDone::NoLeader)), 3),
        ] {
            assert_eq!(Failure::from(error).kind.exit_code(), code);
        }
    }
}
