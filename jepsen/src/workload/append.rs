//! Transactions that read lists and append to them, on few keys at a time. Every element is appended
//! once, so that a list tells in which order it was written; a full list is left for a new one.

use std::collections::BTreeSet;

use raft_kv::client::Handle;
use raft_kv::error::Error;
use raft_kv::types::{
    Compare, CompareOp, CompareTarget, Header, KeyRange, PutRequest, RangeRequest, TxnOp, TxnOpResponse,
    TxnRequest,
};
use rand::Rng;

use super::Client;
use crate::history::{Event, Function, Kind, Step};

/// Before each list's name.
pub const PREFIX: &str = "l/";
/// Lists that all clients fight for at a time.
const LISTS: u32 = 3;
/// Elements after which a client goes on to the next lists.
const FULL: usize = 40;
/// Steps of a transaction, at most.
const STEPS: u32 = 4;

/// Works until the run is over.
pub async fn run(mut client: Client) {
    let (mut count, mut generation) = (0, 0);
    while !client.is_over() {
        let steps: Vec<Step> = (0..client.chance().random_range(1..=STEPS))
            .map(|_| {
                let k = format!("{PREFIX}{generation}/{}", client.chance().random_range(0..LISTS));
                count += 1;
                let v = format!("{}-{count}", client.process());
                if client.chance().random_bool(0.5) { Step::Append { k, v } } else { Step::R { k, v: None } }
            })
            .collect();
        let invoke = Event { f: Function::Txn, txn: steps.clone(), ..Event::default() };
        let done = client.operate(
            invoke,
            async |handle| carry_out(handle, steps).await,
            |end, steps| {
                match steps {
                    Some(steps) => end.txn = steps,
                    // Somebody else was faster: nothing was changed.
                    None => end.kind = Kind::Fail,
                }
            },
        );
        let end = done.await;
        let full = |step: &Step| matches!(step, Step::R { v: Some(list), .. } if list.len() >= FULL);
        if end.is_some_and(|end| end.txn.iter().any(full)) {
            generation += 1;
        }
        client.think().await;
    }
}

/// The steps with what was read; `None` where a list changed between the look and the write.
async fn carry_out(handle: Handle, mut steps: Vec<Step>) -> Result<(Header, Option<Vec<Step>>), Error> {
    let keys: Vec<String> = steps.iter().map(key).collect::<BTreeSet<_>>().into_iter().cloned().collect();
    let look = keys.iter().map(|key| {
        TxnOp::Range(RangeRequest { range: KeyRange::key(key.clone()), ..RangeRequest::default() })
    });
    let look = TxnRequest { success: look.collect(), ..TxnRequest::default() };
    let (seen, response) = handle.txn(look).await?;
    let mut compares = Vec::new();
    let mut lists: Vec<Vec<String>> = Vec::new();
    for (key, response) in keys.iter().zip(response.responses) {
        let TxnOpResponse::Range(range) = response else { unreachable!("a range is answered by a range") };
        let kv = range.kvs.into_iter().next();
        let target = CompareTarget::Mod(kv.as_ref().map_or(0, |kv| kv.mod_revision));
        compares.push(Compare { range: KeyRange::key(key.clone()), op: CompareOp::Equal, target });
        let text = kv.map(|kv| String::from_utf8_lossy(&kv.value).into_owned()).unwrap_or_default();
        lists.push(text.split_whitespace().map(str::to_owned).collect());
    }
    let mut changed = BTreeSet::new();
    for step in &mut steps {
        let at = keys.iter().position(|known| known == key(step)).expect("each step's key was read");
        match step {
            Step::R { v, .. } => *v = Some(lists[at].clone()),
            Step::Append { v, .. } => {
                lists[at].push(v.clone());
                changed.insert(at);
            }
        }
    }
    if changed.is_empty() {
        return Ok((seen, Some(steps)));
    }
    let puts = changed.into_iter().map(|at| {
        let (key, value) = (keys[at].clone().into(), lists[at].join(" ").into());
        TxnOp::Put(PutRequest { key, value, ..PutRequest::default() })
    });
    let request = TxnRequest { compares, success: puts.collect(), failure: Vec::new() };
    let (header, response) = handle.txn(request).await?;
    Ok((header, response.succeeded.then_some(steps)))
}

fn key(step: &Step) -> &String {
    match step {
        Step::R { k, .. } | Step::Append { k, .. } => k,
    }
}
