//! Transactions as people write them, line by line: `if`, `then` and `else` blocks, and `txn` …
//! `end` for one within (`raft-kv txn --help` shows it, `docs/cli.md` has all of it). A line of a
//! block is a list of words; operations are read by the same parser as the commands `put`, `get`
//! and `del`. It must never guess: every line is understood or named with its number.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use bytes::Bytes;
use clap::Parser;
use raft_kv::types::{Compare, CompareOp, CompareTarget, TxnOp, TxnRequest};

use crate::args::{DeleteArgs, GetArgs, PutArgs, RangeArgs, parse_lease};
use crate::bytes_arg::{Form, unescape};
use crate::cli::kv::{delete_request, key_range, put_request, range_request};

/// Deepest nesting that is read; the cluster's own bound is lower and gives the better message.
const MAX_DEPTH: usize = 64;

#[derive(Parser)]
#[command(multicall = true, disable_help_flag = true, disable_help_subcommand = true)]
enum Operation {
    Put(PutArgs),
    Get(GetArgs),
    Del(DeleteArgs),
}

#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct CompareKeys {
    #[command(flatten)]
    range: RangeArgs,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    If,
    Then,
    Else,
}

struct Open {
    request: TxnRequest,
    block: Option<Block>,
    line: usize,
}

/// The transaction that `text` describes, or what is wrong in which line.
pub fn parse(text: &[u8]) -> Result<TxnRequest, String> {
    let mut within: Vec<Open> = Vec::new();
    let mut open = Open { request: TxnRequest::default(), block: None, line: 0 };
    for (index, line) in text.split(|byte| *byte == b'\n').enumerate() {
        let number = index + 1;
        let words = words(line).map_err(|why| format!("line {number}: {why}"))?;
        let Some(first) = words.first() else { continue };
        match (first.as_ref(), words.len()) {
            (b"if", 1) => open.enter(Block::If, number)?,
            (b"then", 1) => open.enter(Block::Then, number)?,
            (b"else", 1) => open.enter(Block::Else, number)?,
            (b"txn", 1) => {
                open.operations(number)?;
                if within.len() == MAX_DEPTH {
                    return Err(format!("line {number}: transactions nest deeper than {MAX_DEPTH}"));
                }
                let inner = Open { request: TxnRequest::default(), block: None, line: number };
                within.push(std::mem::replace(&mut open, inner));
            }
            (b"end", 1) => {
                let outer = within.pop().ok_or(format!("line {number}: `end` without `txn`"))?;
                let inner = std::mem::replace(&mut open, outer).request;
                open.operations(number)?.push(TxnOp::Txn(inner));
            }
            _ if open.block == Some(Block::If) => {
                let compare = compare(&words).map_err(|why| format!("line {number}: {why}"))?;
                open.request.compares.push(compare);
            }
            _ => {
                let operations = open.operations(number)?;
                operations.push(operation(&words).map_err(|why| format!("line {number}: {why}"))?);
            }
        }
    }
    if !within.is_empty() {
        return Err(format!("line {}: `txn` without `end`", open.line));
    }
    if open.block.is_none() {
        return Err("the transaction is empty; see `raft-kv txn --help`".into());
    }
    Ok(open.request)
}

impl Open {
    /// Begins `block`; each may come once, in the order if, then, else.
    fn enter(&mut self, block: Block, line: usize) -> Result<(), String> {
        if self.block.is_some_and(|now| now as u8 >= block as u8) {
            return Err(format!("line {line}: blocks come once each, in the order `if`, `then`, `else`"));
        }
        self.block = Some(block);
        Ok(())
    }

    /// The operations of the block that is open.
    fn operations(&mut self, line: usize) -> Result<&mut Vec<TxnOp>, String> {
        match self.block {
            Some(Block::Then) => Ok(&mut self.request.success),
            Some(Block::Else) => Ok(&mut self.request.failure),
            Some(Block::If) => Err(format!("line {line}: operations come in `then` or `else`, not in `if`")),
            None => Err(format!("line {line}: begin with a line `if`, `then` or `else`")),
        }
    }
}

/// The words of a line. Blanks part them, `"…"` holds blanks and escapes, `#` begins a comment.
fn words(line: &[u8]) -> Result<Vec<Bytes>, String> {
    let mut words = Vec::new();
    let mut rest = line.trim_ascii();
    while let Some(first) = rest.first() {
        let (word, length) = match first {
            b'#' => break,
            b'"' => quoted(rest)?,
            _ => {
                let length = rest.iter().position(u8::is_ascii_whitespace).unwrap_or(rest.len());
                if rest[..length].contains(&b'"') {
                    let word = rest[..length].escape_ascii();
                    return Err(format!(
                        "a quote inside {word}; put the whole word in quotes, with \\\" in it"
                    ));
                }
                (Bytes::copy_from_slice(&rest[..length]), length)
            }
        };
        words.push(word);
        rest = rest[length..].trim_ascii_start();
    }
    Ok(words)
}

/// The word in quotes that `text` begins with, and its length with the quotes.
fn quoted(text: &[u8]) -> Result<(Bytes, usize), String> {
    let mut at = 1;
    loop {
        match text.get(at) {
            None => return Err("a quote is not closed".into()),
            Some(b'\\') => at += 2,
            Some(b'"') => break,
            Some(_) => at += 1,
        }
    }
    let word = unescape(&text[1..at])?;
    if text.get(at + 1).is_some_and(|next| !next.is_ascii_whitespace()) {
        return Err("a closing quote must end its word".into());
    }
    Ok((word, at + 1))
}

fn os_words(words: &[Bytes]) -> Vec<OsString> {
    words.iter().map(|word| OsString::from_vec(word.to_vec())).collect()
}

/// The first paragraph of a message of the command line's parser: the rest is of no use here.
fn reason(error: &clap::Error) -> String {
    let text = error.to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    first.trim_start_matches("error: ").split_whitespace().collect::<Vec<_>>().join(" ")
}

fn operation(words: &[Bytes]) -> Result<TxnOp, String> {
    let form = Form::default();
    match words[0].as_ref() {
        b"put" | b"get" | b"del" => {}
        other => {
            return Err(format!("unknown operation {}; known are put, get, del, txn", other.escape_ascii()));
        }
    }
    match Operation::try_parse_from(os_words(words)).map_err(|error| reason(&error))? {
        Operation::Put(args) => {
            let value = args.value.as_ref().map(|value| Bytes::copy_from_slice(value.as_bytes()));
            put_request(&args, form, value.unwrap_or_default()).map(TxnOp::Put)
        }
        Operation::Get(args) => range_request(&args, form).map(TxnOp::Range),
        Operation::Del(args) => delete_request(&args, form).map(TxnOp::Delete),
    }
    .map_err(|failure| failure.message)
}

/// `TARGET KEY [END] [--prefix] [--from-key] OPERATOR VALUE`.
fn compare(words: &[Bytes]) -> Result<Compare, String> {
    const SHAPE: &str = "a condition is `version|create|mod|value|lease KEY = VALUE`";
    let [target, keys @ .., op, value] = words else { return Err(SHAPE.into()) };
    if keys.is_empty() {
        return Err(SHAPE.into());
    }
    let text = || std::str::from_utf8(value).map_err(|_| "the number is not text".to_owned());
    let number = || {
        let text = text()?;
        text.parse::<i64>().map_err(|_| format!("{text:?} is not a whole number"))
    };
    let target = match target.as_ref() {
        b"version" => CompareTarget::Version(number()?),
        b"create" => CompareTarget::Create(number()?),
        b"mod" => CompareTarget::Mod(number()?),
        b"value" => CompareTarget::Value(value.clone()),
        b"lease" => CompareTarget::Lease(parse_lease(text()?)?),
        other => return Err(format!("unknown condition {}; {SHAPE}", other.escape_ascii())),
    };
    let keys = CompareKeys::try_parse_from(os_words(keys)).map_err(|error| reason(&error))?;
    let range = key_range(&keys.range, Form::default()).map_err(|failure| failure.message)?;
    Ok(Compare { range, op: compare_op(op)?, target })
}

/// The relation that a sign stands for.
pub fn compare_op(sign: &[u8]) -> Result<CompareOp, String> {
    match sign {
        b"=" | b"==" => Ok(CompareOp::Equal),
        b"!=" => Ok(CompareOp::NotEqual),
        b"<" => Ok(CompareOp::Less),
        b">" => Ok(CompareOp::Greater),
        other => Err(format!("unknown relation {}; known are = != < >", other.escape_ascii())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use raft_kv::types::{DeleteRequest, KeyRange, PutRequest, RangeRequest};

    use super::*;

    /// `expect` is the transaction, or a part of the message.
    fn check(text: &str, expect: Result<TxnRequest, &str>) {
        match (parse(text.as_bytes()), expect) {
            (Ok(got), Ok(expected)) => assert_eq!(got, expected, "{text}"),
            (Err(message), Err(part)) => assert!(message.contains(part), "{message:?} lacks {part:?}"),
            (got, expected) => panic!("{text}\ngot {got:?}, expected {expected:?}"),
        }
    }

    fn put(key: &'static [u8], value: &'static [u8]) -> PutRequest {
        PutRequest { key: Bytes::from_static(key), value: Bytes::from_static(value), ..PutRequest::default() }
    }

    fn get(key: &'static [u8]) -> TxnOp {
        TxnOp::Range(RangeRequest { range: KeyRange::key(key), ..RangeRequest::default() })
    }

    fn when(range: KeyRange, op: CompareOp, target: CompareTarget) -> Compare {
        Compare { range, op, target }
    }

    #[test]
    fn three_blocks_with_every_condition_and_operation() {
        let text = "# take a job\nif\n version jobs/7 = 0\n create a > 1 # one\n mod a z != 2\n value \"a b\" == \"x\\x00\"\n \
                    lease p/ --prefix < 1F\nthen\n put jobs/7 \"mine \\\"now\\\"\" --lease 1f --prev-kv\n del tmp/ --prefix\n\
                    else\n get jobs/7\n";
        check(
            text,
            Ok(TxnRequest {
                compares: vec![
                    when(KeyRange::key(&b"jobs/7"[..]), CompareOp::Equal, CompareTarget::Version(0)),
                    when(KeyRange::key(&b"a"[..]), CompareOp::Greater, CompareTarget::Create(1)),
                    when(KeyRange::span(&b"a"[..], &b"z"[..]), CompareOp::NotEqual, CompareTarget::Mod(2)),
                    when(
                        KeyRange::key(&b"a b"[..]),
                        CompareOp::Equal,
                        CompareTarget::Value(Bytes::from_static(b"x\0")),
                    ),
                    when(KeyRange::prefix(&b"p/"[..]), CompareOp::Less, CompareTarget::Lease(31)),
                ],
                success: vec![
                    TxnOp::Put(PutRequest { lease: 31, prev_kv: true, ..put(b"jobs/7", b"mine \"now\"") }),
                    TxnOp::Delete(DeleteRequest { range: KeyRange::prefix(&b"tmp/"[..]), prev_kv: false }),
                ],
                failure: vec![get(b"jobs/7")],
            }),
        );
    }

    #[test]
    fn blocks_may_be_missing_and_transactions_may_nest() {
        let inner = TxnRequest {
            compares: vec![],
            success: vec![TxnOp::Put(put(b"k", b"v"))],
            failure: vec![get(b"k")],
        };
        check("then\nput k v\nelse\nget k", Ok(inner.clone()));
        check(
            "then\n get a\n txn\n  then\n   put k v\n  else\n   get k\n end\n",
            Ok(TxnRequest { success: vec![get(b"a"), TxnOp::Txn(inner)], ..TxnRequest::default() }),
        );
        check("if\nthen\nelse", Ok(TxnRequest::default()));
        check(
            "then\nput -- --key \"\\xff\"",
            Ok(TxnRequest { success: vec![TxnOp::Put(put(b"--key", b"\xff"))], ..TxnRequest::default() }),
        );
    }

    #[test]
    fn every_mistake_is_named_with_its_line() {
        for (text, part) in [
            ("", "is empty"),
            ("# nothing", "is empty"),
            ("put k v", "line 1: begin with"),
            ("then\nif", "line 2: blocks come once each"),
            ("then\nthen", "line 2: blocks come once each"),
            ("if\nversion k = x", "line 2: \"x\" is not a whole number"),
            ("if\nversion k ~ 1", "line 2: unknown relation ~"),
            ("if\nversion = 1", "line 2: a condition is"),
            ("if\nsize k = 1", "line 2: unknown condition size"),
            ("if\nlease k = -1", "line 2: a lease's id"),
            ("if\nversion a b c = 1", "line 2: unexpected argument 'c'"),
            ("if\nput k v", "line 2: a condition is"),
            ("if\ntxn", "line 2: operations come in"),
            ("then\nput k", "line 2: the following required arguments were not provided"),
            ("then\nput k v --sideways", "line 2: unexpected argument '--sideways'"),
            ("then\nfrobnicate k", "line 2: unknown operation frobnicate"),
            ("then\nput k \"v", "line 2: a quote is not closed"),
            ("then\nput k \"v\\", "line 2: a quote is not closed"),
            ("then\nput k \"v\"w", "line 2: a closing quote must end"),
            ("then\nput k v\"w\"", "line 2: a quote inside"),
            ("then\nput k \"\\q\"", "line 2: unknown escape"),
            ("then\ntxn\nthen\n", "line 2: `txn` without `end`"),
            ("then\nend", "line 2: `end` without `txn`"),
            ("then\nget a --limit x", "line 2: invalid value 'x'"),
        ] {
            check(text, Err(part));
        }
        check(&"then\ntxn\n".repeat(70), Err("nest deeper than 64"));
    }

    /// What a transaction is made of, and what is not.
    const PIECES: [&[u8]; 16] = [
        b"if\n",
        b"then\n",
        b"else\n",
        b"txn\n",
        b"end\n",
        b"put k v\n",
        b"get ",
        b"del ",
        b"value k = ",
        b"\"",
        b"\\",
        b"#",
        b"\xff",
        b"--prefix ",
        b"--help ",
        b"\n",
    ];

    proptest! {
        #[test]
        fn no_input_panics(picks in proptest::collection::vec(0..PIECES.len(), 0..40)) {
            let text: Vec<&[u8]> = picks.into_iter().map(|pick| PIECES[pick]).collect();
            let _ = parse(&text.concat());
        }
    }
}
