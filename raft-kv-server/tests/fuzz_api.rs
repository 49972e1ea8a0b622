//! Replays what the fuzz targets of the etcd API have met, as a plain test: the seeds, every file in
//! their corpora, and for each of them all its beginnings and every one of its bytes changed.

#[path = "../../fuzz/src/api.rs"]
mod api;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use etcd_api::etcdserverpb as pb;
use prost::Message;
use raft_kv::machine::{Command, validate};
use raft_kv_server::etcd::convert;
use raft_kv_server::gateway::json;
use tonic::{Code, Status};

/// What the server makes of a service's messages: by the target's name, of an input as the target
/// gets it. A conversion must refuse or convert, never panic.
const CONVERSIONS: &[api::Target] = &[("api_kv", kv)];

/// Whatever a message of KV says is refused as etcd refuses it, or is a request that the machine
/// can judge.
fn kv(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    if first & 0x80 != 0 {
        return;
    }
    match usize::from(first & 0x7f) % api::KV.len() {
        0 => drop(pb::RangeRequest::decode(rest).map(convert::range_request)),
        1 => judge(pb::PutRequest::decode(rest), convert::put_request, Command::Put),
        2 => judge(pb::DeleteRangeRequest::decode(rest), convert::delete_request, Command::Delete),
        3 => judge(pb::TxnRequest::decode(rest), convert::txn_request, Command::Txn),
        _ => {}
    }
}

fn judge<M, R>(
    message: Result<M, prost::DecodeError>,
    convert: fn(M) -> Result<R, Status>,
    command: fn(R) -> Command,
) {
    let Ok(message) = message else { return };
    match convert(message) {
        Ok(request) => {
            let command = command(request);
            let _ = (validate(&command), command.size());
        }
        Err(status) => assert!(
            matches!(status.code(), Code::InvalidArgument | Code::NotFound | Code::OutOfRange),
            "{status}"
        ),
    }
}

/// Inputs longer than this are replayed as they are only.
const MUTATED_UP_TO: usize = 1024;

#[test]
fn every_input_met_so_far_keeps_the_properties() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let seeds = api::seeds();
    let mut met: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, target) in api::TARGETS {
        let targets: Vec<_> = CONVERSIONS
            .iter()
            .filter(|(of, _)| of == name)
            .map(|(_, convert)| *convert)
            .chain([*target])
            .collect();
        let feed = |bytes: &[u8]| targets.iter().for_each(|target| target(bytes));
        let own = seeds.iter().filter(|(of, _)| of == name).map(|(_, bytes)| bytes.clone());
        let kept = fs::read_dir(corpus.join(name)).into_iter().flatten().flatten();
        let kept = kept.map(|entry| fs::read(entry.path()).expect("a corpus file can be read"));
        for bytes in own.chain(kept) {
            *met.entry(name).or_default() += 1;
            replay(&feed, &bytes);
        }
    }
    for (name, _) in api::TARGETS {
        assert!(met.get(name).is_some_and(|count| *count > 1), "{name} met nothing");
    }
    for (name, _) in
        seeds.iter().map(|(name, _)| (*name, ())).chain(CONVERSIONS.iter().map(|(name, _)| (*name, ())))
    {
        assert!(met.contains_key(name), "{name} is no target");
    }
}

fn replay(feed: &impl Fn(&[u8]), bytes: &[u8]) {
    feed(bytes);
    if bytes.len() > MUTATED_UP_TO {
        return;
    }
    for end in 0..bytes.len() {
        feed(&bytes[..end]);
    }
    let mut changed = bytes.to_vec();
    for at in 0..changed.len() {
        for byte in [changed[at] ^ 1, changed[at] ^ 0x80, 0, 0xff] {
            let was = std::mem::replace(&mut changed[at], byte);
            feed(&changed);
            changed[at] = was;
        }
    }
}
