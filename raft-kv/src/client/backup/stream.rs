//! The content of a backup on its way from a member to who asked for it: over QUIC as one request with many
//! answers, in this process over a channel. Bounded: a few blocks are on their way, whoever is slow.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::container::Blocks;
use crate::client::api::{Answered, BackupInfo, BackupPart, Call, Reply};
use crate::client::auth::Asker;
use crate::client::handle::{Door, Handle, unexpected};
use crate::client::local::Local;
use crate::client::node::OWN_PATIENCE;
use crate::client::remote::{Opened, read_answer};
use crate::client::serve::{answer, asker};
use crate::client::snapshot::Copied;
use crate::codec::Wire;
use crate::error::{Error, NotDone, Unknown};
use crate::net::RequestStream;

/// Bytes of an answer.
const BLOCK: usize = 256 * 1024;
/// Blocks that are read ahead of who asked.
const AHEAD: usize = 4;
/// Making the files takes a flush of the member's state.
const PATIENCE: Duration = Duration::from_secs(120);
/// Who does not read, or does not send, for so long has gone.
const STALL: Duration = Duration::from_secs(60);

type Sent = mpsc::Receiver<Result<Bytes, Error>>;

impl Local {
    /// Starts a backup for who asks, if it may: all of the state, for who may manage the cluster; with the
    /// data keys only for who may give out certificates.
    async fn backup(&self, asker: &Asker, keys: bool) -> Result<Answering, Error> {
        let caller = self.settle_caller(&asker.caller, OWN_PATIENCE).await?;
        let asker = Asker { caller, node: asker.node };
        self.admit(&asker, &Call::Backup { keys }, OWN_PATIENCE).await?;
        self.barrier(OWN_PATIENCE).await?;
        let copied = self.copied(keys).await?;
        let (info, (blocks, sent)) = (copied.info.clone(), mpsc::channel(AHEAD));
        tokio::task::spawn_blocking(move || send(&copied, &blocks));
        Ok((info, sent))
    }
}

type Answering = (BackupInfo, Sent);

fn send(copied: &Copied, blocks: &mpsc::Sender<Result<Bytes, Error>>) {
    let gone = || std::io::Error::new(std::io::ErrorKind::BrokenPipe, "nobody reads it any more");
    let hand_on = |block| blocks.blocking_send(Ok(block)).map_err(|_| gone());
    let mut out = Blocks { block: BytesMut::with_capacity(BLOCK), size: BLOCK, hand_on };
    if let Err(error) = copied.write(&mut out).and_then(|()| out.flush()) {
        let why = format!("the copy could not be read to its end: {error}; ask for another");
        // The reader may have gone, which ends the copy as well.
        let _ = blocks.blocking_send(Err(Error::NotDone(NotDone::Unreachable(why))));
    }
}

/// Answers one request for a backup.
pub(in crate::client) async fn serve(local: &Arc<Local>, mut stream: RequestStream, keys: bool) {
    let begun = async {
        let asker = asker(local, &stream)?;
        if keys {
            local.asks_with_newest(&stream).await?;
        }
        local.backup(&asker, keys).await
    };
    let (info, mut blocks) = match begun.await {
        Ok(begun) => begun,
        Err(error) => return answer(&mut stream, &Err(error)).await,
    };
    let mut next = Ok(BackupPart::Begin(info));
    loop {
        let answered: Answered = next.and_then(|part| Ok((local.now()?, Reply::Backup(part))));
        if answered.is_err() {
            return answer(&mut stream, &answered).await;
        }
        let sent = timeout(STALL, stream.send(answered.to_bytes())).await;
        if !matches!(sent, Ok(Ok(()))) {
            return;
        }
        next = match blocks.recv().await {
            Some(block) => block.map(BackupPart::Data),
            None => return answer(&mut stream, &local.now().map(|header| (header, Reply::Done))).await,
        };
    }
}

enum Source {
    Local(Sent),
    Remote(Box<Opened>),
}

/// A backup's content as it comes.
pub(super) struct Arriving {
    pub(super) info: BackupInfo,
    source: Source,
    left: u64,
}

impl Arriving {
    /// The next of it; `None` at its end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let lost = Error::NotDone(NotDone::Unreachable(
            "the connection broke before all of the backup had come; make another".into(),
        ));
        let block = match &mut self.source {
            Source::Local(sent) => sent.recv().await.transpose()?,
            Source::Remote(opened) => {
                let frame = match timeout(STALL, opened.stream.next()).await {
                    Ok(Ok(Some(frame))) => frame,
                    _ => return Err(lost),
                };
                match read_answer(frame) {
                    Ok((_, Reply::Backup(BackupPart::Data(block)))) => Some(block),
                    Ok((_, Reply::Done)) => None,
                    Ok((_, other)) => return Err(unexpected(&other)),
                    Err(Error::Unknown(Unknown::ConnectionLost)) => return Err(lost),
                    Err(error) => return Err(error),
                }
            }
        };
        let len = block.as_ref().map_or(0, |block| block.len() as u64);
        match self.left.checked_sub(len) {
            Some(left) if block.is_some() || left == 0 => self.left = left,
            _ => return Err(lost),
        }
        Ok(block)
    }
}

impl Handle {
    /// Asks a member for the content of a backup. What comes with `keys` must be written encrypted.
    pub(super) async fn backup_stream(&self, keys: bool) -> Result<Arriving, Error> {
        match self.door() {
            Door::Local(local) => {
                let asker = Asker { caller: self.acts_for().clone(), node: self.node() };
                let (info, sent) = local.backup(&asker, keys).await?;
                Ok(Arriving { left: info.bytes, info, source: Source::Local(sent) })
            }
            Door::Remote(remote) => {
                let mut opened = remote.open(&Call::Backup { keys }, Instant::now() + PATIENCE).await?;
                match std::mem::replace(&mut opened.first, Reply::Done) {
                    Reply::Backup(BackupPart::Begin(info)) => {
                        let source = Source::Remote(Box::new(opened));
                        Ok(Arriving { left: info.bytes, info, source })
                    }
                    other => Err(unexpected(&other)),
                }
            }
        }
    }
}
