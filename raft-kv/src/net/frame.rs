//! Frames on streams: a length of four bytes, little-endian, then as many bytes.
//!
//! A length is checked against its bound before anything is kept, and memory grows with what
//! arrives, never with what was announced.

use bytes::{Bytes, BytesMut};
use quinn::{ReadError, RecvStream, SendStream, WriteError};

/// Why no frame could be read.
#[derive(Debug)]
pub(super) enum FrameError {
    /// It is longer than allowed; none of it was read.
    TooLarge { len: u64, max: u64 },
    /// The stream ended within it.
    Cut,
    /// The stream or connection broke.
    Lost(ReadError),
}

/// Reads frames off one stream.
pub(super) struct FrameReader {
    stream: RecvStream,
    held: BytesMut,
    max: usize,
}

impl FrameReader {
    /// Reads frames of up to `max` bytes.
    pub(super) fn new(stream: RecvStream, max: usize) -> Self {
        Self { stream, held: BytesMut::new(), max }
    }

    /// The next frame; `None` where the stream ends between two. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, FrameError> {
        loop {
            if let Some(head) = self.held.first_chunk::<4>() {
                let len = u32::from_le_bytes(*head) as usize;
                if len > self.max {
                    return Err(FrameError::TooLarge { len: len as u64, max: self.max as u64 });
                }
                if self.held.len() >= 4 + len {
                    let mut frame = self.held.split_to(4 + len);
                    let _ = frame.split_to(4);
                    return Ok(Some(frame.freeze()));
                }
            }
            let mut chunks: [Bytes; 32] = std::array::from_fn(|_| Bytes::new());
            match self.stream.read_chunks(&mut chunks).await {
                Ok(Some(count)) => {
                    chunks[..count].iter().for_each(|chunk| self.held.extend_from_slice(chunk));
                }
                Ok(None) if self.held.is_empty() => return Ok(None),
                Ok(None) => return Err(FrameError::Cut),
                Err(error) => return Err(FrameError::Lost(error)),
            }
        }
    }

    /// Tells the other side to send no more.
    pub(super) fn stop(&mut self) {
        let _ = self.stream.stop(0u32.into());
    }
}

/// Writes all `frames` in one go.
pub(super) async fn write_frames(
    stream: &mut SendStream,
    frames: impl IntoIterator<Item = Bytes>,
) -> Result<(), WriteError> {
    let mut chunks = Vec::new();
    for frame in frames {
        let len = u32::try_from(frame.len()).expect("frames are bounded far below 4 GiB");
        chunks.push(Bytes::copy_from_slice(&len.to_le_bytes()));
        chunks.push(frame);
    }
    stream.write_all_chunks(&mut chunks).await
}
