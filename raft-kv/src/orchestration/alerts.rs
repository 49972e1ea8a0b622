//! What somebody should look at: a bounded ring of events in the store, which outlives whoever saw them.
//!
//! One of a kind and subject is there once: said again it is counted, over it is marked and stays to be
//! read. It must never grow over its bound, and never lose one that goes on while one that is over is kept.

use bytes::Bytes;

use super::Fence;
use super::store::{Clock, Store};
use super::words::Time;
use crate::codec::{Wire, wire_enum, wire_struct};
use crate::error::{Error, NotDone, Refusal};
use crate::types::{
    Compare, CompareOp, CompareTarget, DeleteRequest, KeyRange, KeyValue, PutRequest, RangeRequest, TxnOp,
    TxnOpResponse, TxnRequest,
};

/// Alerts that are kept.
pub const MAX_ALERTS: usize = 256;

/// Bytes of an alert's subject.
pub const MAX_SUBJECT_BYTES: usize = 256;

/// Bytes of an alert's text.
pub const MAX_ALERT_TEXT_BYTES: usize = 1_024;

/// Attempts at a write that others come in between of.
const ATTEMPTS: usize = 8;

const PREFIX: &str = "_rk/e/";

/// What there is to look at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum AlertKind {
    /// No node has room for a task; said by the orchestrator.
    NoRoom,
    /// A worker's heartbeats have stopped.
    NodeDown,
    /// A member is far behind the leader.
    MemberLagging,
    /// A certificate ends soon.
    CertificateEnds,
}
wire_enum!(AlertKind { 0 => NoRoom, 1 => NodeDown, 2 => MemberLagging, 3 => CertificateEnds });

impl AlertKind {
    /// The word on command lines.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoRoom => "no-room",
            Self::NodeDown => "node-down",
            Self::MemberLagging => "member-lagging",
            Self::CertificateEnds => "certificate-ends",
        }
    }
}

/// Something to look at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Alert {
    /// What it is.
    pub kind: AlertKind,
    /// Whom it is about: a service, a node, a member.
    pub subject: String,
    /// For people, as it was said last.
    pub text: String,
    /// When it was first said since it was last over.
    pub first: Time,
    /// When it was last said.
    pub last: Time,
    /// How often it was said since `first`.
    pub count: u64,
    /// When it was over; `None` while it goes on.
    pub ended: Option<Time>,
}
wire_struct!(Alert { kind, subject, text, first, last, count, ended });

/// The ring of a cluster's alerts.
#[derive(Clone, Debug)]
pub struct Alerts<S, C> {
    store: S,
    clock: C,
    fence: Option<Fence>,
}

impl<S: Store, C: Clock> Alerts<S, C> {
    /// The ring in `store`.
    pub fn new(store: S, clock: C) -> Self {
        Self { store, clock, fence: None }
    }

    /// Writes under `fence`: a stale leader's are refused.
    #[must_use]
    pub fn fenced(self, fence: Fence) -> Self {
        Self { fence: Some(fence), ..self }
    }

    /// Says that `kind` is so of `subject`. Where it was said before and is not over, it is counted.
    /// Over [`MAX_ALERTS`] the oldest go, those that are over first.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] for a subject or text over its bound, [`Refusal::StaleLeader`] for a stale
    /// fence, and the store's.
    pub async fn raise(&self, kind: AlertKind, subject: &str, text: &str) -> Result<(), Error> {
        bounded("subject", subject, MAX_SUBJECT_BYTES)?;
        bounded("text", text, MAX_ALERT_TEXT_BYTES)?;
        let now = self.clock.now();
        let (subject, text) = (subject.to_owned(), text.to_owned());
        self.change(kind, &subject.clone(), move |old| {
            let goes_on = old.filter(|alert| alert.ended.is_none());
            Some(Alert {
                kind,
                subject: subject.clone(),
                text: text.clone(),
                first: goes_on.map_or(now, |alert| alert.first),
                last: now,
                count: goes_on.map_or(0, |alert| alert.count).saturating_add(1),
                ended: None,
            })
        })
        .await
    }

    /// Says that it is over. Nothing is written where it was not said or is over already.
    ///
    /// # Errors
    /// As [`raise`](Self::raise).
    pub async fn end(&self, kind: AlertKind, subject: &str) -> Result<(), Error> {
        let now = self.clock.now();
        self.change(kind, subject, |old| {
            let alert = old.filter(|alert| alert.ended.is_none())?;
            Some(Alert { ended: Some(now), ..alert.clone() })
        })
        .await
    }

    /// All that are kept, what was said last at the end.
    ///
    /// # Errors
    /// The store's.
    pub async fn all(&self) -> Result<Vec<Alert>, Error> {
        let mut all: Vec<Alert> = self.stored().await?.into_iter().map(|(_, alert)| alert).collect();
        all.sort_by(|a, b| (a.last, a.kind, &a.subject).cmp(&(b.last, b.kind, &b.subject)));
        Ok(all)
    }

    /// What is stored; what cannot be read is none of ours and is left out.
    async fn stored(&self) -> Result<Vec<(KeyValue, Alert)>, Error> {
        let request = RangeRequest { range: KeyRange::prefix(PREFIX), ..Default::default() };
        let (_, found) = self.store.range(request).await?;
        let read = |kv: KeyValue| Alert::from_bytes(kv.value.clone()).ok().map(|alert| (kv, alert));
        Ok(found.kvs.into_iter().filter_map(read).collect())
    }

    async fn change(
        &self,
        kind: AlertKind,
        subject: &str,
        change: impl Fn(Option<&Alert>) -> Option<Alert>,
    ) -> Result<(), Error> {
        let key = key_of(kind, subject);
        for _ in 0..ATTEMPTS {
            let stored = self.stored().await?;
            let old = stored.iter().find(|(kv, _)| kv.key == key);
            let Some(new) = change(old.map(|(_, alert)| alert)) else { return Ok(()) };
            let compare = Compare {
                range: KeyRange::key(key.clone()),
                op: CompareOp::Equal,
                target: CompareTarget::Mod(old.map_or(0, |(kv, _)| kv.mod_revision)),
            };
            let put = PutRequest { key: key.clone(), value: new.to_bytes(), ..Default::default() };
            let mut success = vec![TxnOp::Put(put)];
            success.extend(too_many(&stored, &key).map(|kv| {
                TxnOp::Delete(DeleteRequest { range: KeyRange::key(kv.key.clone()), prev_kv: false })
            }));
            // Tells a stale fence from a change that came in between.
            let fence: Vec<Compare> = self.fence.iter().map(Fence::compare).collect();
            let inner = TxnRequest { compares: vec![compare], success, ..Default::default() };
            let request =
                TxnRequest { compares: fence, success: vec![TxnOp::Txn(inner)], ..Default::default() };
            let (_, done) = self.store.txn(request).await?;
            if !done.succeeded {
                let decided = self.fence.map_or(0, |fence| fence.term);
                return Err(Refusal::StaleLeader { decided, applied: decided }.into());
            }
            let [TxnOpResponse::Txn(inner)] = &done.responses[..] else { continue };
            if inner.succeeded {
                return Ok(());
            }
        }
        Err(Error::NotDone(NotDone::Busy))
    }
}

/// What goes so that `key` fits: those that are over first, the oldest first. A burst is trimmed by the
/// next alert, some at a time.
fn too_many<'a>(stored: &'a [(KeyValue, Alert)], key: &Bytes) -> impl Iterator<Item = &'a KeyValue> {
    let mut others: Vec<&(KeyValue, Alert)> = stored.iter().filter(|(kv, _)| kv.key != *key).collect();
    others.sort_by_key(|(kv, alert)| (alert.ended.is_none(), alert.last, kv.mod_revision));
    let over = (others.len() + 1).saturating_sub(MAX_ALERTS).min(16);
    others.into_iter().take(over).map(|(kv, _)| kv)
}

fn bounded(field: &str, given: &str, max: usize) -> Result<(), Error> {
    if given.len() <= max {
        return Ok(());
    }
    let why = format!("it has {} bytes, {max} are allowed; say it shorter", given.len());
    Err(Refusal::Invalid { field: field.into(), why }.into())
}

fn key_of(kind: AlertKind, subject: &str) -> Bytes {
    let subject = subject.replace('%', "%25").replace('/', "%2F");
    format!("{PREFIX}{}/{subject}", kind.as_str()).into()
}

#[cfg(test)]
mod tests {
    use super::super::session::tests::world::{TestClock, World};
    use super::*;

    fn in_test_time<R>(run: impl Future<Output = R>) -> R {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(true).build().unwrap().block_on(run)
    }

    fn ring() -> (World, Alerts<World, TestClock>) {
        let world = World::new();
        (world.clone(), Alerts::new(world, TestClock::new()))
    }

    #[test]
    fn what_is_said_again_is_counted_and_what_is_over_is_marked() {
        in_test_time(async {
            let (_, alerts) = ring();
            for text in ["first", "second"] {
                alerts.raise(AlertKind::NodeDown, "a/b", text).await.unwrap();
            }
            let all = alerts.all().await.unwrap();
            assert_eq!((all.len(), all[0].count, all[0].text.as_str()), (1, 2, "second"));
            alerts.end(AlertKind::NodeDown, "a/b").await.unwrap();
            assert!(alerts.all().await.unwrap()[0].ended.is_some());
            alerts.raise(AlertKind::NodeDown, "a/b", "anew").await.unwrap();
            let again = alerts.all().await.unwrap();
            assert_eq!((again[0].count, again[0].ended), (1, None));
        });
    }

    #[test]
    fn the_ring_is_bounded_and_keeps_what_goes_on() {
        in_test_time(async {
            let (_, alerts) = ring();
            alerts.raise(AlertKind::NoRoom, "goes on", "").await.unwrap();
            for number in 0..MAX_ALERTS + 20 {
                let subject = number.to_string();
                alerts.raise(AlertKind::NodeDown, &subject, "").await.unwrap();
                alerts.end(AlertKind::NodeDown, &subject).await.unwrap();
            }
            let all = alerts.all().await.unwrap();
            assert_eq!(all.len(), MAX_ALERTS);
            assert!(all.iter().any(|alert| alert.subject == "goes on"));
        });
    }

    #[test]
    fn too_long_a_subject_or_text_and_a_stale_leader_change_nothing() {
        in_test_time(async {
            let (world, alerts) = ring();
            let long = "x".repeat(MAX_ALERT_TEXT_BYTES + 1);
            assert!(alerts.raise(AlertKind::NoRoom, &long, "").await.is_err());
            assert!(alerts.raise(AlertKind::NoRoom, "a", &long).await.is_err());
            let stale = alerts.clone().fenced(Fence::take(&world, 1).await.unwrap());
            Fence::take(&world, 2).await.unwrap();
            let refused = stale.raise(AlertKind::NoRoom, "a", "").await;
            assert!(matches!(refused, Err(Error::Refused(Refusal::StaleLeader { .. }))), "{refused:?}");
            assert!(alerts.all().await.unwrap().is_empty());
        });
    }
}
