//! Transactions as programs write them: the JSON form of `raft-kv txn` (`docs/cli.md` has it).
//! Unknown fields are refused, so that a misspelt one is never passed over.

use bytes::Bytes;
use raft_kv::types::{
    Compare, CompareTarget, DeleteRequest, KeyRange, PutRequest, RangeRequest, TxnOp, TxnRequest,
};
use serde::Deserialize;

use crate::args::parse_lease;
use crate::bytes_arg::Form;
use crate::txn_text::compare_op;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Transaction {
    compares: Vec<Condition>,
    success: Vec<Operation>,
    failure: Vec<Operation>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Operation {
    Put(Put),
    Get(Get),
    Delete(Delete),
    Txn(Transaction),
}

// serde can't refuse unknown fields of a flattened struct, so each one names its keys itself.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Put {
    key: Option<String>,
    key_base64: Option<String>,
    value: Option<String>,
    value_base64: Option<String>,
    lease: Option<String>,
    prev_kv: bool,
    ignore_value: bool,
    ignore_lease: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Get {
    key: Option<String>,
    key_base64: Option<String>,
    end: Option<String>,
    end_base64: Option<String>,
    prefix: bool,
    from_key: bool,
    limit: i64,
    revision: i64,
    keys_only: bool,
    count_only: bool,
    serializable: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Delete {
    key: Option<String>,
    key_base64: Option<String>,
    end: Option<String>,
    end_base64: Option<String>,
    prefix: bool,
    from_key: bool,
    prev_kv: bool,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Condition {
    key: Option<String>,
    key_base64: Option<String>,
    end: Option<String>,
    end_base64: Option<String>,
    prefix: bool,
    from_key: bool,
    op: Option<String>,
    version: Option<i64>,
    create: Option<i64>,
    r#mod: Option<i64>,
    value: Option<String>,
    value_base64: Option<String>,
    lease: Option<String>,
}

/// The transaction that `text` describes, or what is wrong in it.
pub fn parse(text: &[u8]) -> Result<TxnRequest, String> {
    let transaction: Transaction = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    request(transaction)
}

fn request(transaction: Transaction) -> Result<TxnRequest, String> {
    let operations = |list: Vec<Operation>| list.into_iter().map(operation).collect::<Result<Vec<_>, _>>();
    Ok(TxnRequest {
        compares: transaction.compares.into_iter().map(condition).collect::<Result<_, _>>()?,
        success: operations(transaction.success)?,
        failure: operations(transaction.failure)?,
    })
}

fn operation(operation: Operation) -> Result<TxnOp, String> {
    Ok(match operation {
        Operation::Put(put) => TxnOp::Put(PutRequest {
            key: bytes("key", put.key, put.key_base64)?.ok_or("a put has no key")?,
            value: bytes("value", put.value, put.value_base64)?.unwrap_or_default(),
            lease: put.lease.map_or(Ok(0), |id| parse_lease(&id))?,
            prev_kv: put.prev_kv,
            ignore_value: put.ignore_value,
            ignore_lease: put.ignore_lease,
        }),
        Operation::Get(get) => TxnOp::Range(RangeRequest {
            range: range(
                bytes("key", get.key, get.key_base64)?,
                bytes("end", get.end, get.end_base64)?,
                get.prefix,
                get.from_key,
            )?,
            limit: get.limit,
            revision: get.revision,
            keys_only: get.keys_only,
            count_only: get.count_only,
            serializable: get.serializable,
            ..RangeRequest::default()
        }),
        Operation::Delete(delete) => TxnOp::Delete(DeleteRequest {
            range: range(
                bytes("key", delete.key, delete.key_base64)?,
                bytes("end", delete.end, delete.end_base64)?,
                delete.prefix,
                delete.from_key,
            )?,
            prev_kv: delete.prev_kv,
        }),
        Operation::Txn(inner) => TxnOp::Txn(request(inner)?),
    })
}

fn condition(condition: Condition) -> Result<Compare, String> {
    let range = range(
        bytes("key", condition.key, condition.key_base64)?,
        bytes("end", condition.end, condition.end_base64)?,
        condition.prefix,
        condition.from_key,
    )?;
    let op = compare_op(condition.op.as_deref().unwrap_or("=").as_bytes())?;
    let value = bytes("value", condition.value, condition.value_base64)?;
    let lease = condition.lease.map(|id| parse_lease(&id)).transpose()?;
    let mut targets = [
        condition.version.map(CompareTarget::Version),
        condition.create.map(CompareTarget::Create),
        condition.r#mod.map(CompareTarget::Mod),
        value.map(CompareTarget::Value),
        lease.map(CompareTarget::Lease),
    ]
    .into_iter()
    .flatten();
    match (targets.next(), targets.next()) {
        (Some(target), None) => Ok(Compare { range, op, target }),
        _ => Err("a condition needs exactly one of version, create, mod, value, lease".into()),
    }
}

/// The bytes given as text or as base64.
fn bytes(name: &str, text: Option<String>, base64: Option<String>) -> Result<Option<Bytes>, String> {
    match (text, base64) {
        (Some(_), Some(_)) => Err(format!("{name} and {name}_base64 are both given; give one of the two")),
        (Some(text), None) => Ok(Some(text.into())),
        (None, Some(base64)) => {
            let form = Form { base64: true, ..Form::default() };
            form.parse_bytes(base64.as_bytes()).map(Some).map_err(|why| format!("{name}_base64: {why}"))
        }
        (None, None) => Ok(None),
    }
}

fn range(key: Option<Bytes>, end: Option<Bytes>, prefix: bool, from_key: bool) -> Result<KeyRange, String> {
    let key = key.ok_or("a key is missing; give key or key_base64")?;
    match (end, prefix, from_key) {
        (None, false, false) => Ok(KeyRange::key(key)),
        (None, true, false) => Ok(KeyRange::prefix(key)),
        (None, false, true) => Ok(crate::cli::kv::from_key(key)),
        (Some(end), false, false) => Ok(KeyRange::span(key, end)),
        _ => Err("end, prefix and from_key exclude each other".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `text` means what the readable form `same` means, or is refused with a message that has `same` in it.
    fn check(text: &str, same: Result<&str, &str>) {
        match (parse(text.as_bytes()), same) {
            (Ok(got), Ok(readable)) => assert_eq!(got, crate::txn_text::parse(readable.as_bytes()).unwrap()),
            (Err(message), Err(part)) => assert!(message.contains(part), "{message:?} lacks {part:?}"),
            (got, expected) => panic!("{text}\ngot {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn it_means_what_the_readable_form_means() {
        check(
            r#"{"compares":[{"key":"a","version":0},{"key":"a","end":"z","op":"!=","mod":2},
                 {"key_base64":"/w==","op":">","create":1},{"key":"a","prefix":true,"value_base64":"AA=="},
                 {"key":"a","lease":"1f","op":"<"}],
                "success":[{"put":{"key":"k","value":"v","lease":"1f","prev_kv":true}},
                 {"put":{"key":"k2","ignore_value":true}},{"delete":{"key":"t/","prefix":true}}],
                "failure":[{"get":{"key":"k","limit":3}},{"txn":{"success":[{"get":{"key":"b","from_key":true}}]}}]}"#,
            Ok(
                "if\nversion a = 0\nmod a z != 2\ncreate \"\\xff\" > 1\nvalue a --prefix = \"\\0\"\nlease a < 1f\nthen\n\
                put k v --lease 1f --prev-kv\nput k2 --ignore-value\ndel t/ --prefix\nelse\nget k --limit 3\ntxn\nthen\n\
                get b --from-key\nend",
            ),
        );
        check("{}", Ok("then"));
    }

    #[test]
    fn every_mistake_is_named() {
        for (text, part) in [
            ("{", "EOF"),
            (r#"{"compare":[]}"#, "unknown field `compare`"),
            (r#"{"success":[{"put":{"key":"k","valeu":"v"}}]}"#, "unknown field `valeu`"),
            (r#"{"success":[{"put":{"value":"v"}}]}"#, "a put has no key"),
            (r#"{"success":[{"get":{}}]}"#, "a key is missing"),
            (r#"{"success":[{"get":{"key":"a","end":"b","prefix":true}}]}"#, "exclude each other"),
            (r#"{"success":[{"put":{"key":"a","key_base64":"YQ=="}}]}"#, "both given"),
            (r#"{"success":[{"put":{"key_base64":"Y"}}]}"#, "key_base64: not base64"),
            (r#"{"compares":[{"key":"a"}]}"#, "exactly one of"),
            (r#"{"compares":[{"key":"a","version":1,"mod":1}]}"#, "exactly one of"),
            (r#"{"compares":[{"key":"a","version":1,"op":"~"}]}"#, "unknown relation ~"),
            (r#"{"success":[{"frob":{}}]}"#, "unknown variant `frob`"),
        ] {
            check(text, Err(part));
        }
        check(&r#"{"success":[{"txn":"#.repeat(2000), Err("recursion limit"));
    }
}
