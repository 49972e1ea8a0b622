//! raft's own log lines, forwarded to `tracing`.

use std::fmt::{Arguments, Write};

use slog::{Drain, KV, Key, Level, Logger, Never, OwnedKVList, Record, Serializer};

/// A logger whose lines arrive in `tracing` under the target `raft`, one level lower than raft
/// has them: its "info" is one line for every vote.
pub(super) fn logger() -> Logger {
    Logger::root(Forward, slog::o!())
}

struct Forward;

impl Drain for Forward {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        match record.level() {
            Level::Critical | Level::Error if tracing::enabled!(target: "raft", tracing::Level::ERROR) => {
                tracing::error!(target: "raft", "{}", line(record, values));
            }
            Level::Warning if tracing::enabled!(target: "raft", tracing::Level::WARN) => {
                tracing::warn!(target: "raft", "{}", line(record, values));
            }
            Level::Info if tracing::enabled!(target: "raft", tracing::Level::DEBUG) => {
                tracing::debug!(target: "raft", "{}", line(record, values));
            }
            Level::Debug | Level::Trace if tracing::enabled!(target: "raft", tracing::Level::TRACE) => {
                tracing::trace!(target: "raft", "{}", line(record, values));
            }
            _ => {}
        }
        Ok(())
    }
}

fn line(record: &Record<'_>, values: &OwnedKVList) -> String {
    let mut text = Text(record.msg().to_string());
    // A text never fails to grow.
    let _ = record.kv().serialize(record, &mut text);
    let _ = values.serialize(record, &mut text);
    text.0
}

struct Text(String);

impl Serializer for Text {
    fn emit_arguments(&mut self, key: Key, value: &Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}").map_err(|_| slog::Error::Other)
    }
}
