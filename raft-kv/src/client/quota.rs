//! The quota at this node's door: what is used, what may be, and who is turned away before anything is
//! proposed. The quota itself is `machine/quota`; it has the last word where a command is applied.

use std::time::{Duration, Instant};

use super::api::{Answered, Call, Reply};
use super::auth::{Asker, on_behalf};
use super::handle::Handle;
use super::local::{Local, RANGES};
use crate::error::{Error, Refusal};
use crate::machine;
use crate::machine::command::Command;
use crate::node::ask::What;
use crate::types::{Header, QuotaCall, Room, Usage};

impl Local {
    /// Refuses a command that there is no room for, so that it costs no log entry; says how much of the
    /// caller's patience is left. Looks at numbers alone as long as there is plenty. Otherwise it asks a
    /// state that holds all that was answered before: nobody is refused for keys that are gone already.
    pub(super) async fn has_room(&self, command: &Command, patience: Duration) -> Result<Duration, Error> {
        let Room { usage, short } = self.shell.room();
        let size = command.size() as u64;
        let close = usage.quota.is_some_and(|quota| usage.bytes.saturating_add(size) > quota);
        if !(short || close) || !machine::read::needs_space(command) {
            return Ok(patience);
        }
        // What is wrong with a request by itself is said first, as where it is applied.
        machine::validate(command)?;
        let since = Instant::now();
        self.barrier(patience).await?;
        let (shell, command) = (self.shell.clone(), command.clone());
        let read = move || shell.read(|view| machine::read::room_for(view, &command));
        RANGES.run(patience.saturating_sub(since.elapsed()), read).await???;
        Ok(patience.saturating_sub(since.elapsed()))
    }

    /// Shows the quota, or sets it; answers what holds after it.
    pub(super) async fn quota(&self, asker: &Asker, call: QuotaCall, patience: Duration) -> Answered {
        match call {
            QuotaCall::Show => self.barrier(patience).await?,
            QuotaCall::Set(bytes) => {
                let command = on_behalf(asker, Command::Quota { bytes });
                self.apply(What::Command { command, once: None }, patience).await?;
            }
        }
        let read = |view: &dyn machine::Read| {
            Ok((machine::read::current_revision(view)?, machine::read::usage(view)?))
        };
        let (revision, usage) = self.read(read)?;
        Ok((self.header(revision), Reply::Usage(usage)))
    }
}

impl Handle {
    /// What the live keys and values take, and the quota.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn quota(&self) -> Result<(Header, Usage), Error> {
        self.quota_call(QuotaCall::Show).await
    }

    /// Sets the quota, in bytes of live keys and values; none for `None`. One below what there is
    /// removes nothing: until enough is deleted only what takes no more than it gives back is done.
    ///
    /// ```no_run
    /// # async fn example(handle: raft_kv::client::Handle) -> Result<(), raft_kv::error::Error> {
    /// let (_, usage) = handle.quota_set(Some(16 << 30)).await?;
    /// println!("{} of {:?} bytes", usage.bytes, usage.quota);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Refusal::Invalid`] for 0, and see [`Error`].
    pub async fn quota_set(&self, bytes: Option<u64>) -> Result<(Header, Usage), Error> {
        self.quota_call(QuotaCall::Set(bytes)).await
    }

    async fn quota_call(&self, call: QuotaCall) -> Result<(Header, Usage), Error> {
        match self.call(Call::Quota(call)).await? {
            (header, Reply::Usage(usage)) => Ok((header, usage)),
            (_, other) => {
                Err(Refusal::Malformed { what: format!("{other:?} for a question about the quota") }.into())
            }
        }
    }
}
