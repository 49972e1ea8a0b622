//! The JSON form of etcd's messages, as bytes from outside: what is read, and what is refused.
//! It must never panic, nor let a few bytes become much memory: both bounds are arguments.
//!
//! This file is also compiled into the fuzz targets, so it uses nothing of the server.

use bytes::{Buf, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// What one request may have at most.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes.
    pub bytes: usize,
    /// Values: objects, lists and their members.
    pub values: usize,
}

/// Why bytes are no message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refused {
    /// More than the bounds allow.
    TooLarge,
    /// Not JSON, or not this message's: what and where.
    Wrong(String),
}

/// The message at the beginning of `bytes`; what follows it is left alone, and no bytes at all are
/// the empty message, both as etcd's gateway has it. Fields that are `null` count as absent.
///
/// # Errors
/// [`Refused`], with nothing done.
pub fn decode<T: DeserializeOwned + Default>(bytes: &[u8], bounds: Bounds) -> Result<T, Refused> {
    let values = bytes.iter().filter(|byte| matches!(byte, b'{' | b'[' | b',')).count();
    if bytes.len() > bounds.bytes || values > bounds.values {
        return Err(Refused::TooLarge);
    }
    let wrong = |error: serde_json::Error| Refused::Wrong(error.to_string());
    let error = match first::<T>(bytes) {
        Ok(message) => return Ok(message.unwrap_or_default()),
        Err(error) => error,
    };
    // Rare, so it costs a tree only where the message could not be read without one.
    if !bytes.windows(4).any(|four| four == b"null") {
        return Err(wrong(error));
    }
    let mut value = first::<Value>(bytes).map_err(wrong)?.unwrap_or_default();
    forget_nulls(&mut value);
    match value {
        Value::Null => Ok(T::default()),
        value => serde_json::from_value(value).map_err(wrong),
    }
}

fn first<T: DeserializeOwned>(bytes: &[u8]) -> Result<Option<T>, serde_json::Error> {
    serde_json::Deserializer::from_slice(bytes).into_iter().next().transpose()
}

/// As deep as `serde_json` reads, which is bounded.
fn forget_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(forget_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(forget_nulls),
        _ => {}
    }
}

/// A message as JSON.
///
/// # Errors
/// A message with a number that no name stands for, where only names may stand.
pub fn encode<T: Serialize>(message: &T) -> Result<Bytes, serde_json::Error> {
    serde_json::to_vec(message).map(Bytes::from)
}

/// Cuts a stream of bytes into the JSON objects that follow each other in it, holding no more than
/// one of them and the piece of the stream that it ends in.
#[derive(Debug)]
pub struct Splitter {
    waiting: BytesMut,
    /// How far `waiting` has been looked at.
    seen: usize,
    depth: usize,
    quoted: bool,
    escaped: bool,
    bounds: Bounds,
}

impl Splitter {
    /// At the stream's beginning.
    pub fn new(bounds: Bounds) -> Self {
        let waiting = BytesMut::new();
        Self { waiting, seen: 0, depth: 0, quoted: false, escaped: false, bounds }
    }

    /// Takes the next piece of the stream.
    pub fn push(&mut self, piece: &[u8]) {
        self.waiting.extend_from_slice(piece);
    }

    /// The next whole object of what was pushed.
    ///
    /// # Errors
    /// Something else than an object, or one that is too large. The stream is of no more use then.
    pub fn next_object(&mut self) -> Result<Option<Bytes>, Refused> {
        if self.depth == 0 {
            let blank = self.waiting.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            self.waiting.advance(blank);
            match self.waiting.first() {
                None => return Ok(None),
                Some(b'{') => {}
                Some(other) => {
                    let what = char::from(*other).escape_default();
                    return Err(Refused::Wrong(format!(
                        "invalid character '{what}' looking for beginning of value"
                    )));
                }
            }
        }
        while let Some(byte) = self.waiting.get(self.seen) {
            self.seen += 1;
            if self.closed_by(*byte) {
                let object = self.waiting.split_to(self.seen).freeze();
                self.seen = 0;
                return if object.len() > self.bounds.bytes {
                    Err(Refused::TooLarge)
                } else {
                    Ok(Some(object))
                };
            }
        }
        if self.waiting.len() > self.bounds.bytes { Err(Refused::TooLarge) } else { Ok(None) }
    }

    /// Whether the stream ended between two objects.
    pub fn is_between(&self) -> bool {
        self.depth == 0 && self.waiting.is_empty()
    }

    /// Whether `byte` ends the object. Kinds of brackets are told apart by the parser, later.
    fn closed_by(&mut self, byte: u8) -> bool {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' if self.quoted => self.escaped = true,
            b'"' => self.quoted = !self.quoted,
            _ if self.quoted => {}
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth -= 1;
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}
