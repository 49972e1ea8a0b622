//! The keys of tasks and state are the typed layer's alone: raw writes of callers from the network are refused there,
//! so that its rules hold whoever asks. Reading and following them stays open to whom permissions allow it.
//!
//! A delete that covers all of the prefix is let through: it breaks no rule, it ends everything. It must not look at
//! the state: which keys exist says nothing about what a request may write.

use crate::error::Refusal;
use crate::limits::ORCHESTRATION_PREFIX;
use crate::machine::command::Command;
use crate::planted;
use crate::types::{KeyRange, TxnOp, TxnRequest};

/// Refuses a command that would write some of the reserved keys.
pub fn check(command: &Command) -> Result<(), Refusal> {
    let writes = match command {
        Command::Put(put) => is_reserved(&put.key),
        Command::Delete(delete) => cuts(&delete.range),
        Command::Txn(txn) => txn_writes(txn),
        Command::As { command, .. } | Command::From { command, .. } => return check(command),
        _ => false,
    };
    if writes && !planted!(OpenReservedPrefix) { Err(Refusal::ReservedPrefix) } else { Ok(()) }
}

fn is_reserved(key: &[u8]) -> bool {
    key.starts_with(ORCHESTRATION_PREFIX.as_bytes())
}

/// Either path counts: which one is taken depends on the state. The depth is bounded, it was checked before.
fn txn_writes(txn: &TxnRequest) -> bool {
    txn.success.iter().chain(&txn.failure).any(|op| match op {
        TxnOp::Range(_) => false,
        TxnOp::Put(put) => is_reserved(&put.key),
        TxnOp::Delete(delete) => cuts(&delete.range),
        TxnOp::Txn(nested) => txn_writes(nested),
    })
}

/// Whether a range has some of the reserved keys and not all.
fn cuts(range: &KeyRange) -> bool {
    if range.is_single() {
        return is_reserved(&range.key);
    }
    let whole = KeyRange::prefix(ORCHESTRATION_PREFIX);
    let (start, end) = (whole.key, whole.end);
    let upper = range.upper();
    let is_empty = upper.as_ref().is_some_and(|upper| *upper <= range.key);
    let meets = range.key < end && upper.as_ref().is_none_or(|upper| *upper > start) && !is_empty;
    let covers = range.key <= start && upper.as_ref().is_none_or(|upper| *upper >= end);
    meets && !covers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{DeleteRequest, PutRequest};

    fn put(key: &'static str) -> TxnOp {
        TxnOp::Put(PutRequest { key: key.into(), ..Default::default() })
    }

    fn delete(key: &'static str, end: &'static str) -> TxnOp {
        TxnOp::Delete(DeleteRequest { range: KeyRange::span(key, end), prev_kv: false })
    }

    fn command(op: TxnOp) -> Command {
        match op {
            TxnOp::Put(put) => Command::Put(put),
            TxnOp::Delete(delete) => Command::Delete(delete),
            TxnOp::Txn(txn) => Command::Txn(txn),
            TxnOp::Range(_) => unreachable!("no write"),
        }
    }

    /// Each alone, in a transaction's paths, and nested.
    fn all_ways(op: &TxnOp) -> Vec<Command> {
        let success = TxnRequest { success: vec![op.clone()], ..Default::default() };
        let failure = TxnRequest { failure: vec![op.clone()], ..Default::default() };
        let nested = TxnRequest { failure: vec![TxnOp::Txn(success.clone())], ..Default::default() };
        let deeper = TxnRequest { success: vec![TxnOp::Txn(nested.clone())], ..Default::default() };
        let mut all: Vec<Command> = [success, failure, nested, deeper].map(Command::Txn).into();
        all.push(command(op.clone()));
        all
    }

    fn run() {
        let refused = [
            put("_rk/"),
            put("_rk/t/1"),
            put("_rk/f"),
            delete("_rk/o/service/1", ""),
            delete("_rk/", ""),
            delete("_rk/o/", "_rk/o0"),
            delete("_rk/t/1", "\0"),
            delete("a", "_rk0x"),
            delete("_rj", "_rk/t"),
            delete("_rk/\0", "_rk0"),
        ];
        // `a` is behind the prefix: that range is empty.
        let (refused, empty): (Vec<_>, Vec<_>) =
            refused.into_iter().partition(|op| *op != delete("a", "_rk0x"));
        let open = [
            put("_rk"),
            put("_rk0"),
            put("a"),
            delete("_rk0", ""),
            delete("_rk", "_rk/"),
            delete("_rk0", "\0"),
            delete("_rk/", "_rk0"),
            delete("\0", "\0"),
            delete("A", "z"),
            delete("_rk/t", "_rk/a"),
        ];
        for op in refused {
            for command in all_ways(&op) {
                assert_eq!(check(&command), Err(Refusal::ReservedPrefix), "{command:?}");
            }
        }
        for op in open.into_iter().chain(empty) {
            for command in all_ways(&op) {
                assert_eq!(check(&command), Ok(()), "{command:?}");
            }
        }
    }

    #[test]
    fn raw_writes_below_the_prefix_are_refused_however_they_are_wrapped() {
        run();
    }

    /// What is asked elsewhere pays nothing for the prefix: the check has the command and nothing else (no state, no
    /// log, no wait), each key of it is looked at once, and reads and watches are no commands.
    #[test]
    fn requests_elsewhere_cost_a_look_at_their_keys() {
        let _has_nothing_else: fn(&Command) -> Result<(), Refusal> = check;
        let elsewhere = |number: usize| match number % 3 {
            0 => TxnOp::Range(crate::types::RangeRequest {
                range: KeyRange::prefix("_rk/"),
                ..Default::default()
            }),
            1 => put("app/key"),
            _ => delete("app/", "app0"),
        };
        let ops: Vec<TxnOp> = (0..crate::limits::MAX_TXN_OPS).map(elsewhere).collect();
        let txn = TxnRequest { success: ops.clone(), failure: ops, ..Default::default() };
        assert_eq!(check(&Command::Txn(txn)), Ok(()));
        // A transaction that only reads may read there.
        let reads = TxnRequest { success: vec![elsewhere(0)], ..Default::default() };
        assert_eq!(check(&Command::Txn(reads)), Ok(()));
    }

    #[cfg(feature = "sim")]
    #[test]
    fn an_open_prefix_is_found() {
        let found = planted::with(Some(planted::Bug::OpenReservedPrefix), || std::panic::catch_unwind(run));
        assert!(found.is_err());
    }
}
