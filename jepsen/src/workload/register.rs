//! Reads, writes and compare-and-sets on few keys. No value is written twice, so that a read names
//! the write it saw.

use raft_kv::types::{
    Compare, CompareOp, CompareTarget, KeyRange, KeyValue, PutRequest, RangeRequest, TxnOp, TxnOpResponse,
    TxnRequest,
};
use rand::Rng;

use super::Client;
use crate::history::{Event, Function};

/// Keys that all clients fight for.
const KEYS: u32 = 3;

/// Works until the run is over.
pub async fn run(mut client: Client) {
    let mut count = 0;
    let mut last: [Option<String>; KEYS as usize] = Default::default();
    while !client.is_over() {
        let number = client.chance().random_range(0..KEYS);
        let known = last[number as usize].clone();
        let key = format!("r/{number}");
        count += 1;
        let value = format!("{}-{count}", client.process());
        let end = match (client.chance().random_range(0..4), known) {
            (0, _) => write(&mut client, key, value).await,
            (1, Some(expected)) => compare_and_set(&mut client, key, expected, value).await,
            _ => read(&mut client, key).await,
        };
        if let Some(end) = end {
            last[number as usize] = end.value;
        }
        client.think().await;
    }
}

async fn read(client: &mut Client, key: String) -> Option<Event> {
    let range = KeyRange::key(key.clone());
    let request = RangeRequest { range, ..RangeRequest::default() };
    let invoke = Event { f: Function::Read, key: Some(key), ..Event::default() };
    let operation = async |handle: raft_kv::client::Handle| handle.range(request).await;
    client.operate(invoke, operation, |end, response| found(end, response.kvs.first())).await
}

async fn write(client: &mut Client, key: String, value: String) -> Option<Event> {
    let request =
        PutRequest { key: key.clone().into(), value: value.clone().into(), ..PutRequest::default() };
    let invoke = Event { f: Function::Write, key: Some(key), value: Some(value), ..Event::default() };
    client.operate(invoke, async |handle| handle.put(request).await, |_, _| {}).await
}

async fn compare_and_set(client: &mut Client, key: String, expected: String, value: String) -> Option<Event> {
    let range = KeyRange::key(key.clone());
    let target = CompareTarget::Value(expected.clone().into());
    let put = PutRequest { key: key.clone().into(), value: value.clone().into(), ..PutRequest::default() };
    let request = TxnRequest {
        compares: vec![Compare { range: range.clone(), op: CompareOp::Equal, target }],
        success: vec![TxnOp::Put(put)],
        failure: vec![TxnOp::Range(RangeRequest { range, ..RangeRequest::default() })],
    };
    let (key, value, expected) = (Some(key), Some(value), Some(expected));
    let invoke = Event { f: Function::Cas, key, value, expected, ..Event::default() };
    let operation = async |handle: raft_kv::client::Handle| handle.txn(request).await;
    let answer = |end: &mut Event, response: raft_kv::types::TxnResponse| {
        end.swapped = Some(response.succeeded);
        if let Some(TxnOpResponse::Range(range)) = response.responses.first() {
            found(end, range.kvs.first());
        }
    };
    client.operate(invoke, operation, answer).await
}

fn found(end: &mut Event, kv: Option<&KeyValue>) {
    end.value = kv.map(|kv| String::from_utf8_lossy(&kv.value).into_owned());
    end.found_at = kv.map(|kv| kv.mod_revision);
}
