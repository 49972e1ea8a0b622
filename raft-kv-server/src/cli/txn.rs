//! `txn`: reads a transaction as text or JSON, and prints what each operation answered.

use std::fs::File;
use std::io::Read;

use raft_kv::limits::MAX_REQUEST_BYTES;
use raft_kv::types::{TxnOpResponse, TxnRequest, TxnResponse};
use serde_json::{Value, json};

use crate::args::TxnCommand;
use crate::bytes_arg::escape;
use crate::connect::connect;
use crate::failure::Failure;
use crate::output::{Output, kv_json, kvs_json, kvs_text};
use crate::{txn_json, txn_text};

/// The longest text of a transaction: a largest request with every byte escaped, and options.
const MAX_TEXT: usize = 8 * MAX_REQUEST_BYTES;

/// `raft-kv txn`.
pub async fn run(args: &TxnCommand, output: &mut Output) -> Result<(), Failure> {
    let text = match &args.file {
        Some(path) => {
            let name = path.display().to_string();
            let file = File::open(path)
                .map_err(|error| Failure::usage(format!("{name}: can't be opened: {error}")))?;
            read(&name, file)?
        }
        None => read("standard input", std::io::stdin().lock())?,
    };
    let request = parse(&text)?;
    let (header, response) = connect(&args.connect).await?.txn(request).await?;
    output.answer(
        || {
            let mut answer = response_json(&response);
            answer["revision"] = header.revision.into();
            answer
        },
        || response_text(&response),
    )
}

fn read(name: &str, source: impl Read) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    source
        .take(MAX_TEXT as u64 + 1)
        .read_to_end(&mut text)
        .map_err(|error| Failure::usage(format!("{name}: can't be read: {error}")))?;
    if text.len() > MAX_TEXT {
        return Err(Failure::usage(format!("{name}: longer than {MAX_TEXT} bytes; split the transaction")));
    }
    Ok(text)
}

/// JSON if it begins with a brace, else lines.
fn parse(text: &[u8]) -> Result<TxnRequest, Failure> {
    let is_json = text.trim_ascii_start().starts_with(b"{");
    let parsed = if is_json { txn_json::parse(text) } else { txn_text::parse(text) };
    parsed.map_err(|why| Failure::usage(format!("the transaction can't be read: {why}")))
}

fn response_json(response: &TxnResponse) -> Value {
    let list: Value = response
        .responses
        .iter()
        .map(|response| match response {
            TxnOpResponse::Range(range) => json!({ "get": {
                "count": range.count, "more": range.more, "kvs": kvs_json(&range.kvs, true),
            }}),
            TxnOpResponse::Put(put) => {
                json!({ "put": { "prev": put.prev.as_ref().map(|prev| kv_json(prev, true)) } })
            }
            TxnOpResponse::Delete(delete) => {
                json!({ "delete": { "deleted": delete.deleted, "prevs": kvs_json(&delete.prevs, true) } })
            }
            TxnOpResponse::Txn(inner) => json!({ "txn": response_json(inner) }),
        })
        .collect();
    json!({ "succeeded": response.succeeded, "responses": list })
}

fn response_text(response: &TxnResponse) -> String {
    let mut text = String::from(if response.succeeded { "then\n" } else { "else\n" });
    for response in &response.responses {
        let part = match response {
            TxnOpResponse::Range(range) => format!("get {}\n{}", range.count, kvs_text(&range.kvs, true)),
            TxnOpResponse::Put(put) => match &put.prev {
                Some(prev) => format!("put (was {})\n", escape(&prev.value)),
                None => "put\n".to_owned(),
            },
            TxnOpResponse::Delete(delete) => {
                format!("del {}\n{}", delete.deleted, kvs_text(&delete.prevs, true))
            }
            TxnOpResponse::Txn(inner) => response_text(inner),
        };
        for line in part.lines() {
            text.push_str("  ");
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use raft_kv::types::{DeleteResponse, KeyValue, PutResponse, RangeResponse};

    use super::*;

    #[test]
    fn each_operation_is_answered_in_both_forms() {
        let kv = KeyValue {
            key: Bytes::from_static(b"k"),
            value: Bytes::from_static(b"v"),
            ..KeyValue::default()
        };
        let kvs = vec![kv.clone()];
        let inner = TxnResponse {
            succeeded: false,
            responses: vec![TxnOpResponse::Delete(DeleteResponse { deleted: 1, prevs: vec![] })],
        };
        let response = TxnResponse {
            succeeded: true,
            responses: vec![
                TxnOpResponse::Put(PutResponse { prev: Some(kv) }),
                TxnOpResponse::Put(PutResponse { prev: None }),
                TxnOpResponse::Range(RangeResponse { kvs, more: false, count: 1 }),
                TxnOpResponse::Txn(inner),
            ],
        };
        assert_eq!(
            response_text(&response),
            "then\n  put (was v)\n  put\n  get 1\n  k\tv\n  else\n    del 1\n"
        );
        let kv = r#"{"key":"k","value":"v","create_revision":0,"mod_revision":0,"version":0,"lease":null}"#;
        let expect = format!(
            r#"{{"succeeded":true,"responses":[{{"put":{{"prev":{kv}}}}},{{"put":{{"prev":null}}}},
               {{"get":{{"count":1,"more":false,"kvs":[{kv}]}}}},
               {{"txn":{{"succeeded":false,"responses":[{{"delete":{{"deleted":1,"prevs":[]}}}}]}}}}]}}"#
        );
        assert_eq!(response_json(&response), serde_json::from_str::<Value>(&expect).unwrap());
    }

    #[test]
    fn the_examples_of_the_manual_and_of_the_help_are_read() {
        let manual = include_str!("../../../docs/cli.md");
        let (_, section) = manual.split_once("## Transactions").unwrap();
        let blocks: Vec<&str> = section.split("```").skip(1).step_by(2).collect();
        let [text, json] = blocks[..] else { panic!("{} examples", blocks.len()) };
        let text = parse(text.as_bytes()).unwrap();
        assert_eq!((text.compares.len(), text.success.len(), text.failure.len()), (3, 2, 2));
        let json = parse(json.trim_start_matches("json").as_bytes()).unwrap();
        assert_eq!((json.compares.len(), json.success.len(), json.failure.len()), (2, 2, 2));

        let example = crate::args::TXN_HELP.split("\n\n").nth(1).unwrap();
        let help = parse(example.as_bytes()).unwrap();
        assert_eq!((help.compares.len(), help.success.len(), help.failure.len()), (2, 2, 1));
    }

    #[test]
    fn both_forms_are_told_apart_and_bounded() {
        assert!(parse(b" \n{\"success\":[]}").is_ok());
        assert!(parse(b"then").is_ok());
        assert!(parse(b"{").unwrap_err().message.contains("EOF"));
        assert!(parse(b"what").unwrap_err().message.contains("line 1"));
        let failure = read("f", std::io::repeat(b' ')).unwrap_err();
        assert!(failure.message.contains("longer than"), "{failure}");
    }
}
