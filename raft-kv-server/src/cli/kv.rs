//! `put`, `get`, `del`, and what they share with `watch` and `txn`: options as requests.

use std::io::Read;

use bytes::Bytes;
use raft_kv::error::Refusal;
use raft_kv::limits::MAX_VALUE_BYTES;
use raft_kv::types::{DeleteRequest, KeyRange, PutRequest, RangeRequest, RangeResponse, SortOrder};
use serde_json::json;

use crate::args::{DeleteArgs, DeleteCommand, GetArgs, GetCommand, PutArgs, PutCommand, RangeArgs};
use crate::bytes_arg::{Form, escape};
use crate::cli::rollback;
use crate::connect::connect;
use crate::failure::{Failure, Kind};
use crate::output::{Output, kv_json, kvs_json, kvs_text};

/// The longest text that a largest value can have: four characters for each byte, as `\x00`.
const MAX_VALUE_TEXT: usize = 4 * MAX_VALUE_BYTES + 64;

/// The keys that `args` name.
pub fn key_range(args: &RangeArgs, form: Form) -> Result<KeyRange, Failure> {
    let key = form.parse("KEY", &args.key).map_err(Failure::usage)?;
    if args.prefix {
        return Ok(KeyRange::prefix(key));
    }
    if args.from_key {
        return Ok(from_key(key));
    }
    match &args.end {
        Some(end) => {
            let end = form.parse("END", end).map_err(Failure::usage)?;
            if end.is_empty() {
                return Err(Failure::usage("END is empty; leave it out for one key, or use --from-key"));
            }
            Ok(KeyRange::span(key, end))
        }
        None => Ok(KeyRange::key(key)),
    }
}

/// Every key from `key` on; all of them for an empty one, which is no key.
pub fn from_key(key: Bytes) -> KeyRange {
    let key = if key.is_empty() { Bytes::from_static(b"\0") } else { key };
    KeyRange::span(key, &b"\0"[..])
}

/// The request of a `get`.
pub fn range_request(args: &GetArgs, form: Form) -> Result<RangeRequest, Failure> {
    Ok(RangeRequest {
        range: key_range(&args.range, form)?,
        limit: args.limit,
        revision: args.rev,
        // A target alone means smallest first: it would be strange if `--sort-by` sorted nothing.
        sort_order: match (args.order, args.sort_by) {
            (Some(order), _) => order.into(),
            (None, Some(_)) => SortOrder::Ascend,
            (None, None) => SortOrder::None,
        },
        sort_target: args.sort_by.map(Into::into).unwrap_or_default(),
        serializable: args.serializable,
        keys_only: args.keys_only,
        count_only: args.count_only,
        ..RangeRequest::default()
    })
}

/// The request of a `del`.
pub fn delete_request(args: &DeleteArgs, form: Form) -> Result<DeleteRequest, Failure> {
    Ok(DeleteRequest { range: key_range(&args.range, form)?, prev_kv: args.prev_kv })
}

/// The request of a `put` of `value`.
pub fn put_request(args: &PutArgs, form: Form, value: Bytes) -> Result<PutRequest, Failure> {
    Ok(PutRequest {
        key: form.parse("KEY", &args.key).map_err(Failure::usage)?,
        value,
        lease: args.lease,
        prev_kv: args.prev_kv,
        ignore_value: args.ignore_value,
        ignore_lease: args.ignore_lease,
    })
}

/// `raft-kv put`.
pub async fn put(args: &PutCommand, output: &mut Output) -> Result<(), Failure> {
    let value = match &args.put.value {
        None => Bytes::new(),
        Some(word) if word == "-" => read_value(std::io::stdin().lock(), args.form)?,
        Some(word) => args.form.parse("VALUE", word).map_err(Failure::usage)?,
    };
    let request = put_request(&args.put, args.form, value)?;
    let (header, response) = connect(&args.connect).await?.put(request).await?;
    output.answer(
        || {
            let mut answer = json!({ "revision": header.revision });
            if args.put.prev_kv {
                answer["prev"] = response.prev.as_ref().map_or(json!(null), |prev| kv_json(prev, true));
            }
            answer
        },
        || {
            let prev = response
                .prev
                .as_ref()
                .map_or(String::new(), |prev| format!(" (was {})", escape(&prev.value)));
            format!("revision {}{prev}", header.revision)
        },
    )
}

/// A value from `source`, of a bounded length.
fn read_value(mut source: impl Read, form: Form) -> Result<Bytes, Failure> {
    let broken = |error| Failure::usage(format!("the value can't be read from standard input: {error}"));
    let mut text = Vec::new();
    source.by_ref().take(MAX_VALUE_TEXT as u64 + 1).read_to_end(&mut text).map_err(broken)?;
    if text.len() > MAX_VALUE_TEXT {
        let rest = std::io::copy(&mut source, &mut std::io::sink()).map_err(broken)?;
        let len = text.len() as u64 + rest;
        return Err(Refusal::ValueTooLarge { len, max: MAX_VALUE_BYTES as u64 }.into());
    }
    form.parse_bytes(&text).map_err(|why| Failure::usage(format!("VALUE: {why}")))
}

/// `raft-kv get`. A single key that does not exist ends with "not found", after the (empty)
/// answer is printed.
pub async fn get(args: &GetCommand, output: &mut Output) -> Result<(), Failure> {
    let mut request = range_request(&args.get, args.form)?;
    let handle = connect(&args.connect).await?;
    if let Some(point) = &args.point {
        request.revision = rollback::find(&handle, point).await?.revision;
    }
    let is_missing_key = |response: &RangeResponse| request.range.is_single() && response.count == 0;
    let (header, response) = handle.range(request.clone()).await?;
    if args.raw {
        for kv in &response.kvs {
            output.bytes(&kv.value)?;
        }
    } else {
        output.answer(
            || {
                json!({
                    "revision": header.revision,
                    "count": response.count,
                    "more": response.more,
                    "kvs": kvs_json(&response.kvs, !request.keys_only),
                })
            },
            || get_text(&request, &response),
        )?;
    }
    if is_missing_key(&response) && !request.count_only {
        let key = escape(&request.range.key);
        return Err(Failure::new(Kind::NotFound, format!("the key {key} does not exist")));
    }
    Ok(())
}

fn get_text(request: &RangeRequest, response: &RangeResponse) -> String {
    if request.count_only {
        return response.count.to_string();
    }
    let mut text = kvs_text(&response.kvs, !request.keys_only);
    if response.more {
        text.push_str(&format!(
            "# {} of {} keys; --limit cut off the rest\n",
            response.kvs.len(),
            response.count
        ));
    }
    text
}

/// `raft-kv del`. Removing nothing is no failure.
pub async fn delete(args: &DeleteCommand, output: &mut Output) -> Result<(), Failure> {
    let request = delete_request(&args.delete, args.form)?;
    let (header, response) = connect(&args.connect).await?.delete(request).await?;
    output.answer(
        || {
            let mut answer = json!({ "revision": header.revision, "deleted": response.deleted });
            if args.delete.prev_kv {
                answer["prevs"] = kvs_json(&response.prevs, true);
            }
            answer
        },
        || format!("deleted {}\n{}", response.deleted, kvs_text(&response.prevs, true)),
    )
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use raft_kv::types::{KeyValue, SortTarget};

    use super::*;
    use crate::args::{Cli, Command};

    fn check_get(line: &[&str], expect: Result<RangeRequest, &str>) {
        let words = ["raft-kv", "get"].iter().chain(line);
        let got = match Cli::try_parse_from(words).map(|cli| cli.command) {
            Ok(Command::Get(args)) => range_request(&args.get, args.form).map_err(|failure| failure.message),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        };
        match (got, expect) {
            (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{line:?}"),
            (Err(message), Err(part)) => assert!(message.contains(part), "{message:?} lacks {part:?}"),
            (got, expected) => panic!("{line:?}: got {got:?}, expected {expected:?}"),
        }
    }

    fn range(range: KeyRange) -> RangeRequest {
        RangeRequest { range, ..RangeRequest::default() }
    }

    #[test]
    fn every_way_to_name_keys() {
        check_get(&["a"], Ok(range(KeyRange::key(&b"a"[..]))));
        check_get(&["a", "c"], Ok(range(KeyRange::span(&b"a"[..], &b"c"[..]))));
        check_get(&["a", "--prefix"], Ok(range(KeyRange::span(&b"a"[..], &b"b"[..]))));
        check_get(&["", "--prefix"], Ok(range(KeyRange::all())));
        check_get(&["a", "--from-key"], Ok(range(KeyRange::span(&b"a"[..], &b"\0"[..]))));
        check_get(&["", "--from-key"], Ok(range(KeyRange::all())));
        check_get(&["6162", "ff", "--hex"], Ok(range(KeyRange::span(&b"ab"[..], &b"\xff"[..]))));
        check_get(&["YWI=", "--base64"], Ok(range(KeyRange::key(&b"ab"[..]))));
        check_get(&["a\\x00", "--escaped"], Ok(range(KeyRange::key(&b"a\0"[..]))));
        check_get(&["--", "--prefix"], Ok(range(KeyRange::key(&b"--prefix"[..]))));
        check_get(&["a", ""], Err("END is empty"));
        check_get(&["a", "b", "--prefix"], Err("cannot be used with"));
        check_get(&["a", "--prefix", "--from-key"], Err("cannot be used with"));
        check_get(&["zz", "--hex"], Err("KEY: not hexadecimal"));
        check_get(&["a", "--hex", "--base64"], Err("cannot be used with"));
        check_get(&["a", "--raw", "--json"], Err("cannot be used with"));
        check_get(&[], Err("required"));
    }

    #[test]
    fn every_option_of_a_read() {
        let line = ["a", "--limit", "-1", "--rev=-2", "--keys-only", "--count-only", "--serializable"];
        check_get(
            &line,
            Ok(RangeRequest {
                limit: -1,
                revision: -2,
                keys_only: true,
                count_only: true,
                serializable: true,
                ..range(KeyRange::key(&b"a"[..]))
            }),
        );
        let sorted = |sort_target, sort_order| {
            Ok(RangeRequest { sort_target, sort_order, ..range(KeyRange::key(&b"a"[..])) })
        };
        check_get(&["a", "--sort-by", "mod"], sorted(SortTarget::Mod, SortOrder::Ascend));
        check_get(
            &["a", "--sort-by", "value", "--order", "desc"],
            sorted(SortTarget::Value, SortOrder::Descend),
        );
        check_get(&["a", "--order", "descend"], sorted(SortTarget::Key, SortOrder::Descend));
        check_get(&["a", "--limit", "x"], Err("invalid value 'x'"));
        check_get(&["a", "--sort-by", "size"], Err("invalid value 'size'"));
    }

    #[test]
    fn a_put_has_a_value_or_keeps_the_one_there_is() {
        let parse = |line: &[&str]| match Cli::try_parse_from(["raft-kv", "put"].iter().chain(line)) {
            Ok(Cli { command: Command::Put(args), .. }) => {
                Ok((args.put.value.as_deref().map(|word| word.as_encoded_bytes().to_vec()), args.put.lease))
            }
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        };
        assert_eq!(parse(&["k", "v", "--lease", "1F"]), Ok((Some(b"v".to_vec()), 31)));
        assert_eq!(parse(&["k", "-"]), Ok((Some(b"-".to_vec()), 0)));
        assert_eq!(parse(&["k", "-5"]), Ok((Some(b"-5".to_vec()), 0)));
        assert_eq!(parse(&["k", ""]), Ok((Some(b"".to_vec()), 0)));
        assert_eq!(parse(&["k", "--ignore-value"]), Ok((None, 0)));
        assert!(parse(&["k"]).unwrap_err().contains("required"));
        assert!(parse(&["k", "v", "--ignore-value"]).unwrap_err().contains("cannot be used with"));
        assert!(parse(&["k", "v", "--lease", "-1"]).is_err());
        assert!(parse(&["k", "v", "--lease", "1ffffffffffffffff"]).unwrap_err().contains("hexadecimal"));
    }

    #[test]
    fn a_value_from_standard_input_is_bounded() {
        let form = Form::default();
        assert_eq!(read_value(&b"a\n"[..], form).unwrap().as_ref(), b"a\n");
        let hex = Form { hex: true, ..form };
        assert_eq!(read_value(&b"00ff\n"[..], hex).unwrap().as_ref(), b"\x00\xff");
        let failure = read_value(std::io::repeat(b'a').take(8 << 20), form).unwrap_err();
        assert_eq!(failure.kind, Kind::Refused);
        assert!(failure.message.contains("the value has 8388608 bytes, the limit is"), "{failure}");
    }

    #[test]
    fn people_are_told_when_a_limit_cut_something_off() {
        let kvs = vec![KeyValue {
            key: Bytes::from_static(b"a"),
            value: Bytes::from_static(b"1"),
            ..KeyValue::default()
        }];
        let response = RangeResponse { kvs, more: true, count: 3 };
        let request = RangeRequest::default();
        assert_eq!(get_text(&request, &response), "a\t1\n# 1 of 3 keys; --limit cut off the rest\n");
        assert_eq!(get_text(&RangeRequest { count_only: true, ..request }, &response), "3");
    }
}
