//! Ranges at this node's door: pages that do not count what was counted before, and ranges of any
//! size as a stream of parts.
//!
//! Nothing here may hold a view of the state while a caller is slow: every page and every part
//! takes its own, at the revision that the first one had.

use std::sync::Arc;
use std::time::Duration;

use super::api::{Answered, Reply};
use super::auth::serve;
use super::handle::Handle;
use super::local::{Local, RANGES, WHOLE};
use crate::error::{Error, Refusal};
use crate::limits::{MAX_RANGE_CHUNK_KEYS, RANGE_CHUNK_BYTES, RANGE_FIRST_KEYS, REQUEST_DEADLINE};
use crate::machine;
use crate::machine::auth::Asked;
use crate::machine::count::behind;
use crate::machine::read::RangeMeasure;
use crate::types::{Caller, Header, KeyRange, KeyValue, RangeRequest, RangeResponse, Revision, SortOrder};

/// One part of a streamed range.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RangeChunk {
    /// Who answered, and the revision that every part is of. The revision is the request's own
    /// where it names one.
    pub header: Header,
    /// The keys of this part, in order. `more` and `count` mean something in the last part alone:
    /// whether the limit cut some off, and the keys in the range, the limit ignored.
    pub response: RangeResponse,
    /// Whether it is the last part.
    pub last: bool,
}

enum Source {
    /// This member, who reads, and the whole range.
    Local(Arc<Local>, Caller, KeyRange),
    Remote(Handle),
}

/// A range that comes part by part, as of one revision, in the order of the keys.
pub struct RangeStream {
    source: Source,
    /// What is still to be read, at the stream's revision.
    rest: RangeRequest,
    header: Header,
    sent: i64,
    /// Keys that may still be sent.
    left: i64,
    /// Keys of the next part.
    keys: usize,
    ended: bool,
}

/// Refuses what can't be answered in the order of the keys.
fn check(request: &RangeRequest) -> Result<(), Refusal> {
    machine::validate_range(request)?;
    let sorted = request.sort_order != SortOrder::None || !machine::count::in_key_order(request);
    if sorted || machine::count::has_filters(request) {
        let why = "a stream comes in the order of the keys, all of them; ask for a range instead";
        return Err(Refusal::invalid("sort or filter", why));
    }
    Ok(())
}

impl RangeStream {
    fn new(source: Source, request: RangeRequest, revision: Revision, header: Header) -> Self {
        let left = if request.limit > 0 { request.limit } else { i64::MAX };
        // What follows is of a revision that this member has: nothing has to be confirmed again.
        let rest = RangeRequest { revision, serializable: true, limit: 0, ..request };
        let header = Header { revision, ..header };
        Self { source, rest, header, sent: 0, left, keys: RANGE_FIRST_KEYS, ended: false }
    }

    pub(super) async fn remote(handle: Handle, request: RangeRequest) -> Result<Self, Error> {
        check(&request)?;
        // Finds out the revision, and whether it can be read.
        let first = RangeRequest {
            range: KeyRange::key(request.range.key.clone()),
            keys_only: true,
            ..request.clone()
        };
        let (header, _) = handle.range(first).await?;
        let revision = if request.revision > 0 { request.revision } else { header.revision };
        let mut stream = Self::new(Source::Remote(handle), request, revision, header);
        // Another member may be asked for the next part, and lag behind the first.
        stream.rest.serializable = false;
        Ok(stream)
    }

    /// The next part: at most about 1 MiB, or one key. `None` after the last. May be dropped and
    /// called again.
    ///
    /// # Errors
    /// [`Refusal::Compacted`] where the stream's revision was compacted meanwhile: start anew.
    /// [`Refusal::Auth`] where the caller may not read the range any more. And see [`Error`].
    pub async fn next(&mut self) -> Result<Option<RangeChunk>, Error> {
        if self.ended {
            return Ok(None);
        }
        // Parts come for as long as the caller is slow; users and roles may change meanwhile.
        if let Source::Local(local, caller, range) = &self.source {
            local.still_may_read(caller, range)?;
        }
        if self.rest.count_only {
            let count = self.count(self.rest.clone()).await?;
            return Ok(Some(self.part(Vec::new(), false, Some(count))));
        }
        let keys = self.keys.min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let (kvs, more) = self.read(keys).await?;
        let sent = self.sent + kvs.len() as i64;
        if more && (kvs.len() as i64) < self.left {
            return Ok(Some(self.part(kvs, true, None)));
        }
        let behind = match kvs.last() {
            Some(last) if more => {
                let range = behind(&self.rest.range, &last.key);
                self.count(RangeRequest { range, ..self.rest.clone() }).await?
            }
            _ => 0,
        };
        Ok(Some(self.part(kvs, more, Some(sent + behind))))
    }

    /// The part that these keys are, and what comes after it; the last one where there is a count.
    fn part(&mut self, kvs: Vec<KeyValue>, more: bool, count: Option<i64>) -> RangeChunk {
        self.ended = count.is_some();
        self.sent += kvs.len() as i64;
        self.left -= kvs.len() as i64;
        let bytes: usize = kvs.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
        if bytes >= RANGE_CHUNK_BYTES {
            self.keys = (kvs.len() / 2).max(1);
        } else if bytes <= RANGE_CHUNK_BYTES / 2 {
            self.keys = (self.keys * 2).min(MAX_RANGE_CHUNK_KEYS);
        }
        if let Some(last) = kvs.last() {
            self.rest.range = behind(&self.rest.range, &last.key);
        }
        let more = more && count.is_some();
        let response = RangeResponse { kvs, more, count: count.unwrap_or(0) };
        RangeChunk { header: self.header, response, last: self.ended }
    }

    async fn read(&self, keys: usize) -> Result<(Vec<KeyValue>, bool), Error> {
        match &self.source {
            Source::Local(local, ..) => {
                let (shell, request) = (local.shell.clone(), self.rest.clone());
                let read =
                    move || shell.read(|view| machine::read::page(view, &request, keys, RANGE_CHUNK_BYTES));
                let (_, kvs, more) = RANGES.run(REQUEST_DEADLINE, read).await???;
                Ok((kvs, more))
            }
            Source::Remote(handle) => {
                let mut limit = keys as i64;
                loop {
                    let page = RangeRequest { limit, ..self.rest.clone() };
                    match handle.range(page).await {
                        // Its values are far larger than those of the part before.
                        Err(Error::Refused(Refusal::AnswerTooLarge { .. })) if limit > 1 => {
                            limit = (limit / 8).max(1);
                        }
                        answered => return answered.map(|(_, found)| (found.kvs, found.more)),
                    }
                }
            }
        }
    }

    /// How many keys a range has at the stream's revision.
    async fn count(&self, request: RangeRequest) -> Result<i64, Error> {
        let request = RangeRequest { count_only: true, ..request };
        match &self.source {
            Source::Local(local, ..) => {
                Ok(local.counted(&Caller::Full, request, REQUEST_DEADLINE).await?.1.count)
            }
            Source::Remote(handle) => Ok(handle.range(request).await?.1.count),
        }
    }
}

impl Local {
    /// Reads keys for `caller`, if it may.
    pub(super) async fn range(&self, caller: &Caller, request: RangeRequest, patience: Duration) -> Answered {
        machine::validate_range(&request)?;
        if !request.serializable {
            self.barrier(patience).await?;
        }
        let (revision, response) = self.counted(caller, request, patience).await?;
        Ok((self.header(revision), Reply::Range(response)))
    }

    /// Reads keys as they are here, with the help of the counts that are remembered.
    async fn counted(
        &self,
        caller: &Caller,
        request: RangeRequest,
        patience: Duration,
    ) -> Result<(Revision, RangeResponse), Error> {
        let remembered = self.counts.lock().recall(&request.range, request.revision);
        let counted = remembered.is_some_and(|known| known.revision == request.revision);
        let page = (1..=100).contains(&request.limit)
            && machine::count::in_key_order(&request)
            && !machine::count::has_filters(&request);
        let small = request.range.is_single() || (counted && page);
        let (shell, asked, caller) = (self.shell.clone(), request.clone(), caller.clone());
        let read = move || {
            shell.read(|view| {
                let what = Asked::Range(&asked.range);
                serve(view, &caller, &what, !asked.serializable, || {
                    machine::read::range_counted(view, &asked, remembered)
                })
            })
        };
        let (revision, response) = if small { read() } else { RANGES.run(patience, read).await? }??;
        let at = if request.revision > 0 { request.revision } else { revision };
        self.counts.lock().learn(&request, at, &response);
        Ok((revision, response))
    }

    /// Measures the answer to a range for `caller`, if it may read it.
    pub(super) async fn range_measure_as(
        &self,
        caller: &Caller,
        request: RangeRequest,
        weigh: fn(&KeyValue, u64) -> u64,
        patience: Duration,
    ) -> Result<(Header, RangeMeasure), Error> {
        check(&request)?;
        if !request.serializable {
            self.barrier(patience).await?;
        }
        let caller = self.settle_caller(caller, patience).await?;
        let shell = self.shell.clone();
        let read = move || {
            shell.read(|view| {
                let what = Asked::Range(&request.range);
                let measure = || machine::read::measure(view, &request, weigh);
                serve(view, &caller, &what, !request.serializable, measure)
            })
        };
        let (revision, measured) = WHOLE.run(patience, read).await???;
        Ok((self.header(revision), measured))
    }

    /// Starts to read a range of any size for `caller`, if it may.
    pub(super) async fn range_stream_as(
        self: &Arc<Self>,
        caller: &Caller,
        request: RangeRequest,
        patience: Duration,
    ) -> Result<RangeStream, Error> {
        check(&request)?;
        if !request.serializable {
            self.barrier(patience).await?;
        }
        let caller = self.settle_caller(caller, patience).await?;
        let what = Asked::Range(&request.range);
        let pin = |view: &dyn machine::Read| {
            serve(view, &caller, &what, !request.serializable, || machine::read::pin(view, request.revision))
        };
        let revision = self.read(pin)??;
        let header = self.header(revision);
        let source = Source::Local(self.clone(), caller, request.range.clone());
        Ok(RangeStream::new(source, request, revision, header))
    }
}
