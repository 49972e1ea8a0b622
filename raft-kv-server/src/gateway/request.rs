//! One HTTP request as a gRPC one: the caller's headers as metadata, its deadline, its body in
//! bounds. It must never read more of a body than the service has room for.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::request::Parts;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, Limited};
use prost::Message;
use raft_kv::limits::{MAX_JSON_REQUEST_BYTES, MAX_JSON_VALUES};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::{Extensions, Request, Status};

use super::json::{self, Bounds, Refused, Splitter};
use crate::etcd::deadline::{self, Arriving};

const BOUNDS: Bounds = Bounds { bytes: MAX_JSON_REQUEST_BYTES, values: MAX_JSON_VALUES };
/// What grpc-gateway takes off a header's name to have the metadata's.
const METADATA_PREFIX: &str = "grpc-metadata-";

/// What can be read from JSON and handed to a service.
pub trait FromJson: DeserializeOwned + Default + Message + 'static {}
impl<T: DeserializeOwned + Default + Message + 'static> FromJson for T {}

/// What a request says besides its body.
pub struct Head {
    metadata: MetadataMap,
    extensions: Extensions,
    /// How long the caller waits.
    pub timeout: Option<Duration>,
}

impl Head {
    /// Of an HTTP request.
    #[allow(clippy::result_large_err)]
    pub fn of(parts: Parts) -> Result<Self, Status> {
        let wrong = |text| Status::invalid_argument(format!("invalid grpc-timeout: {text}"));
        let timeout = deadline::timeout(&parts.headers).map_err(wrong)?;
        Ok(Self { metadata: metadata(&parts.headers), extensions: parts.extensions, timeout })
    }

    /// The gRPC request with `message`.
    pub fn with<T>(self, message: T) -> Request<T> {
        Request::from_parts(self.metadata, self.extensions, message)
    }
}

/// `Authorization`, and everything that is marked as metadata.
fn metadata(headers: &HeaderMap) -> MetadataMap {
    let mut metadata = MetadataMap::new();
    for (name, value) in headers {
        let name = match name.as_str().strip_prefix(METADATA_PREFIX) {
            Some(marked) => marked,
            None if name == header::AUTHORIZATION => name.as_str(),
            None => continue,
        };
        let key = MetadataKey::<Ascii>::from_bytes(name.as_bytes());
        let value = MetadataValue::<Ascii>::try_from(value.as_bytes());
        // Metadata that gRPC can't carry is no request's fault that anybody could act on.
        if let (Ok(key), Ok(value)) = (key, value) {
            metadata.append(key, value);
        }
    }
    metadata
}

/// The one message of a request's whole body, which must have arrived `within` this.
pub async fn message<T: FromJson>(body: Body, within: Duration) -> Result<T, Status> {
    let body = Arriving::new(body, within);
    let whole = Limited::new(body, BOUNDS.bytes).collect().await.map_err(|error| {
        if error.is::<http_body_util::LengthLimitError>() {
            refused(Refused::TooLarge)
        } else if error.is::<Status>() {
            deadline::too_late()
        } else {
            Status::cancelled("the request's body broke off")
        }
    })?;
    json::decode(&whole.to_bytes(), BOUNDS).map_err(refused)
}

/// A refused body as etcd has it.
pub fn refused(why: Refused) -> Status {
    match why {
        Refused::TooLarge => Status::invalid_argument("etcdserver: request is too large"),
        Refused::Wrong(text) => Status::invalid_argument(text),
    }
}

/// The messages that follow each other in a request's body, read as they are asked for. Between
/// two of them any time may pass; one that has begun must arrive in time.
pub struct Messages {
    body: Body,
    splitter: Splitter,
    over: bool,
    within: Duration,
}

impl Messages {
    /// Of a body that nothing was read of; a message that has begun must arrive `within` this.
    pub fn of(body: Body, within: Duration) -> Self {
        Self { body, splitter: Splitter::new(BOUNDS), over: false, within }
    }

    /// The next one, or that there are no more.
    pub async fn next<T: FromJson>(&mut self) -> Option<Result<T, Refused>> {
        let object = self.next_object().await?;
        let message = object.and_then(|object| json::decode(&object, BOUNDS));
        self.over = message.is_err();
        Some(message)
    }

    async fn next_object(&mut self) -> Option<Result<Bytes, Refused>> {
        let mut begun = None;
        while !self.over {
            if let Some(object) = self.splitter.next_object().transpose() {
                return Some(object);
            }
            let frame = if self.splitter.is_between() {
                self.body.frame().await
            } else {
                let end = *begun.get_or_insert_with(|| Instant::now() + self.within);
                match timeout_at(end, self.body.frame()).await {
                    Ok(frame) if Instant::now() < end => frame,
                    _ => {
                        self.over = true;
                        return Some(Err(Refused::Wrong(deadline::too_late().message().to_owned())));
                    }
                }
            };
            match frame {
                Some(Ok(frame)) => {
                    if let Some(piece) = frame.data_ref() {
                        self.splitter.push(piece);
                    }
                }
                Some(Err(_)) | None => {
                    self.over = true;
                    if !self.splitter.is_between() {
                        return Some(Err(Refused::Wrong("unexpected EOF".to_owned())));
                    }
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use etcd_api::etcdserverpb::RangeRequest;
    use futures_util::{StreamExt, stream};
    use tonic::Code;

    use super::*;

    const SOON: Duration = Duration::from_millis(30);

    /// A body that begins with this and never ends.
    fn stalled(begin: &'static str) -> Body {
        let begin = stream::iter([Ok::<_, Infallible>(Bytes::from_static(begin.as_bytes()))]);
        Body::from_stream(begin.chain(stream::pending()))
    }

    async fn in_time<W: Future>(work: W) -> W::Output {
        tokio::time::timeout(Duration::from_secs(20), work).await.expect("it does not wait for ever")
    }

    #[tokio::test]
    async fn a_sender_that_stalls_is_given_up() {
        for begin in ["", "{", r#"{"key":"aw=="}"#] {
            let refused = in_time(message::<RangeRequest>(stalled(begin), SOON)).await.unwrap_err();
            let expect = (Code::DeadlineExceeded, "context deadline exceeded");
            assert_eq!((refused.code(), refused.message()), expect, "{begin}");
        }
        let mut messages = Messages::of(stalled(r#"{"key":"aw=="}{"key":"#), SOON);
        let first = in_time(messages.next::<RangeRequest>()).await.unwrap().unwrap();
        assert_eq!(first.key, "k");
        assert!(in_time(messages.next::<RangeRequest>()).await.unwrap().is_err(), "it had begun");
        assert!(in_time(messages.next::<RangeRequest>()).await.is_none());
    }

    #[tokio::test]
    async fn between_two_messages_any_time_may_pass() {
        let mut messages = Messages::of(stalled(r#"{"key":"aw=="}"#), SOON);
        in_time(messages.next::<RangeRequest>()).await.unwrap().unwrap();
        let waits = tokio::time::timeout(4 * SOON, messages.next::<RangeRequest>()).await;
        assert!(waits.is_err(), "it is waited for on");
    }
}
