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
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::{Extensions, Request, Status};

use super::json::{self, Bounds, Refused, Splitter};

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
        let timeout = timeout(&parts.headers)?;
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

/// `Grpc-Timeout`: a number of at most 8 digits and its unit.
#[allow(clippy::result_large_err)]
fn timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(None) };
    let text = String::from_utf8_lossy(value.as_bytes());
    let parsed = text.char_indices().last().and_then(|(end, unit)| {
        let digits = &text[..end];
        let amount = (digits.len() <= 8).then(|| digits.parse::<u32>().ok()).flatten()?;
        let amount = u64::from(amount);
        Some(match unit {
            'H' => Duration::from_secs(amount * 3600),
            'M' => Duration::from_secs(amount * 60),
            'S' => Duration::from_secs(amount),
            'm' => Duration::from_millis(amount),
            'u' => Duration::from_micros(amount),
            'n' => Duration::from_nanos(amount),
            _ => return None,
        })
    });
    parsed.map(Some).ok_or_else(|| Status::invalid_argument(format!("invalid grpc-timeout: {text}")))
}

/// The one message of a request's whole body.
pub async fn message<T: FromJson>(body: Body) -> Result<T, Status> {
    let whole = Limited::new(body, BOUNDS.bytes).collect().await.map_err(|error| {
        if error.is::<http_body_util::LengthLimitError>() {
            refused(Refused::TooLarge)
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

/// The messages that follow each other in a request's body, read as they are asked for.
pub struct Messages {
    body: Body,
    splitter: Splitter,
    over: bool,
}

impl Messages {
    /// Of a body that nothing was read of.
    pub fn of(body: Body) -> Self {
        Self { body, splitter: Splitter::new(BOUNDS), over: false }
    }

    /// The next one, or that there are no more.
    pub async fn next<T: FromJson>(&mut self) -> Option<Result<T, Refused>> {
        let object = self.next_object().await?;
        let message = object.and_then(|object| json::decode(&object, BOUNDS));
        self.over = message.is_err();
        Some(message)
    }

    async fn next_object(&mut self) -> Option<Result<Bytes, Refused>> {
        while !self.over {
            if let Some(object) = self.splitter.next_object().transpose() {
                return Some(object);
            }
            match self.body.frame().await {
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
