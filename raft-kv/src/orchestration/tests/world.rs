//! The real machine as a store. Each call waits once before it is carried out, so that who drives several callers
//! decides in which order their reads and transactions come.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;

use super::super::{Clock, Events, Store, Time};
use crate::error::Error;
use crate::machine::command::{Answer, Command};
use crate::machine::read;
use crate::machine::tests::Bench;
use crate::types::{
    ClusterId, Header, LeaseId, NodeId, RangeRequest, RangeResponse, Revision, TxnRequest, TxnResponse,
    WatchBatch, WatchRequest,
};

#[derive(Clone)]
pub struct World {
    pub bench: Arc<Mutex<Bench>>,
    /// Reads and transactions so far.
    pub calls: Arc<Mutex<(usize, usize)>>,
}

impl World {
    pub fn new() -> Self {
        Self { bench: Arc::new(Mutex::new(Bench::new())), calls: Arc::default() }
    }

    pub fn ask(&self, command: Command) -> Answer {
        self.bench.lock().ask(command).unwrap()
    }

    pub fn revision(&self) -> Revision {
        self.bench.lock().view(read::current_revision).unwrap()
    }

    fn header(&self) -> Header {
        Header { cluster: ClusterId(1), member: NodeId(7), revision: self.revision(), term: 1 }
    }
}

/// Ready the second time.
struct Once(bool);

impl Future for Once {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.0, true) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Store for World {
    type Watch = Nothing;

    async fn range(&self, request: RangeRequest) -> Result<(Header, RangeResponse), Error> {
        Once(false).await;
        self.calls.lock().0 += 1;
        let found = self.bench.lock().range(&request)?;
        Ok((self.header(), found))
    }

    async fn txn(&self, request: TxnRequest) -> Result<(Header, TxnResponse), Error> {
        Once(false).await;
        if request.is_read_only() {
            self.calls.lock().0 += 1;
            let (_, found) = self.bench.lock().view(|view| read::txn_read_only(view, &request)).unwrap()?;
            return Ok((self.header(), found));
        }
        self.calls.lock().1 += 1;
        let answer = self.bench.lock().ask(Command::Txn(request))?;
        let Answer::Txn(answer) = answer else { unreachable!("a transaction answered {answer:?}") };
        Ok((self.header(), answer))
    }

    async fn watch(&self, _: WatchRequest) -> Result<Nothing, Error> {
        Ok(Nothing)
    }

    async fn lease_grant(&self, _: i64) -> Result<LeaseId, Error> {
        unreachable!("the typed layer has no leases")
    }

    async fn lease_keep_alive(&self, _: LeaseId) -> Result<(), Error> {
        unreachable!("the typed layer has no leases")
    }

    async fn lease_revoke(&self, _: LeaseId) -> Result<(), Error> {
        unreachable!("the typed layer has no leases")
    }
}

pub struct Nothing;

impl Events for Nothing {
    async fn next(&mut self) -> Result<Option<WatchBatch>, Error> {
        Ok(None)
    }
}

/// A clock that counts how often it is looked at.
#[derive(Clone, Default)]
pub struct Counter(Arc<Mutex<u64>>);

impl Clock for Counter {
    fn now(&self) -> Time {
        self.random()
    }

    async fn sleep(&self, _: Duration) {}

    fn random(&self) -> u64 {
        let mut count = self.0.lock();
        *count += 1;
        *count
    }
}

/// Carries one caller's call out with nobody beside it.
pub fn run<T>(call: impl Future<Output = T>) -> T {
    let mut call = std::pin::pin!(call);
    loop {
        if let Poll::Ready(done) = call.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return done;
        }
    }
}

/// Carries several calls out, a step of one at a time in the order that `turns` says; after each step `look`.
pub fn interleave<T, E>(
    calls: Vec<Pin<Box<dyn Future<Output = T> + '_>>>,
    turns: &[u8],
    mut look: impl FnMut() -> Result<(), E>,
) -> Result<Vec<T>, E> {
    let mut calls: Vec<_> = calls.into_iter().map(Some).collect();
    let mut done: Vec<Option<T>> = calls.iter().map(|_| None).collect();
    let mut turns = turns.iter().map(|turn| usize::from(*turn)).chain(std::iter::repeat(0));
    loop {
        let left: Vec<usize> = (0..calls.len()).filter(|at| calls[*at].is_some()).collect();
        if left.is_empty() {
            return Ok(done.into_iter().flatten().collect());
        }
        let at = left[turns.next().unwrap_or(0) % left.len()];
        let call = calls[at].as_mut().expect("it is left");
        if let Poll::Ready(value) = call.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            (done[at], calls[at]) = (Some(value), None);
        }
        look()?;
    }
}
