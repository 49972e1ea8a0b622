//! Adds elements, each a key that nobody else writes; once all is healed, every member is asked for
//! all of them.

use std::time::{Duration, Instant};

use raft_kv::client::Handle;
use raft_kv::error::Error;
use raft_kv::types::{Header, KeyRange, PutRequest, RangeRequest};

use super::{Client, Stage};
use crate::history::{Event, Function};

/// Before each element's name.
pub const PREFIX: &str = "s/";
/// Elements read in one go.
const PAGE: i64 = 1000;

/// Works until the run is over.
pub async fn run(mut client: Client) {
    let mut count = 0;
    while !client.is_over() {
        count += 1;
        let element = format!("{PREFIX}{}-{count}", client.process());
        let (key, value) = (Some(element.clone()), Some(element.clone()));
        let request = PutRequest { key: element.clone().into(), value: element.into(), ..Default::default() };
        let invoke = Event { f: Function::Add, key, value, ..Event::default() };
        client.operate(invoke, async |handle| handle.put(request).await, |_, _| {}).await;
        client.think().await;
    }
}

/// Asks each member, and no other, for all elements.
///
/// # Errors
/// A member that does not answer within the limit.
pub async fn read_everywhere(stage: &Stage, limit: Duration) -> Result<(), String> {
    for member in 0..stage.directory.len() {
        let mut client = stage.client(member, true);
        let began = Instant::now();
        loop {
            let invoke = Event { f: Function::FinalRead, ..Event::default() };
            let end = client.operate(invoke, read_all, |end, elements| end.elements = elements).await;
            if end.is_some() {
                break;
            }
            if began.elapsed() > limit {
                let name = stage.directory.name(member);
                return Err(format!(
                    "{name} does not answer a read {} s after the last fault",
                    limit.as_secs()
                ));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}

async fn read_all(handle: Handle) -> Result<(Header, Vec<String>), Error> {
    let whole = KeyRange::prefix(PREFIX);
    let mut request =
        RangeRequest { range: whole.clone(), limit: PAGE, keys_only: true, ..Default::default() };
    let mut elements = Vec::new();
    let mut first = None;
    loop {
        let (header, page) = handle.range(request.clone()).await?;
        // Later pages are read at the revision of the first.
        let at = first.get_or_insert(header).to_owned();
        elements.extend(page.kvs.iter().map(|kv| String::from_utf8_lossy(&kv.key).into_owned()));
        let Some(last) = page.kvs.last().filter(|_| page.more) else {
            return Ok((at, elements));
        };
        let mut next = last.key.to_vec();
        next.push(0);
        request.range = KeyRange::span(next, whole.end.clone());
        request.revision = at.revision;
    }
}
