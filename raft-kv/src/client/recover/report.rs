//! What a recovery is asked and what it says.

use super::super::config::Tuning;
use super::super::trust::signer::ExternalSigner;
use crate::codec::wire_struct;
use crate::limits::RECOVERY_REVISIONS;
use crate::pki::UnlockKey;
use crate::types::{ClusterId, Index, Member, MemberRole, NodeId, Revision, Term};

/// What a recovery needs besides the data directory.
#[derive(Clone, Debug)]
pub struct RecoverOptions {
    /// The cluster's unlock key, where the member's disk is locked.
    pub unlock: Option<UnlockKey>,
    /// What signs, where the cluster's signing key is kept outside.
    pub external_signer: Option<ExternalSigner>,
    /// By how much the revision goes up, at least 1: more than the epoch before can have handed out behind
    /// this member's back.
    pub revisions: Revision,
    /// Where the log is damaged: goes on with the state alone. What only the log has is lost, acknowledged
    /// writes among it. Refused where the log is whole.
    pub without_log: bool,
    /// As for a member that runs.
    pub tuning: Tuning,
}

impl Default for RecoverOptions {
    fn default() -> Self {
        Self {
            unlock: None,
            external_signer: None,
            revisions: RECOVERY_REVISIONS,
            without_log: false,
            tuning: Tuning::default(),
        }
    }
}

/// What a recovery finds, keeps and may lose.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovery {
    /// The cluster; it stays.
    pub cluster: ClusterId,
    /// The member's name; it stays.
    pub name: String,
    /// Where it is reached; it stays.
    pub addr: String,
    /// Its id in the epoch before.
    pub old_id: NodeId,
    /// Its id in the new epoch; `NodeId(0)` before there is one.
    pub new_id: NodeId,
    /// Its place in the group before; `None` where it had been removed.
    pub role: Option<MemberRole>,
    /// The epoch before; the new one is one more.
    pub epoch: u64,
    /// The other members of the epoch before, as this member knew them: they are shut out.
    pub others: Vec<Member>,
    /// Whether the log is given up.
    pub without_log: bool,
    /// The last entry on this member's disk: (term, index).
    pub last: (Term, Index),
    /// The last entry that it knows to be committed.
    pub committed: Index,
    /// The last entry in its state on disk.
    pub applied: Index,
    /// The revision of that state.
    pub revision: Revision,
    /// The revision with every entry up to `last`; 0 before they were carried out.
    pub kept_revision: Revision,
    /// The revision at which the new epoch begins; 0 before that.
    pub new_revision: Revision,
    /// The folder within the data directory with all that was there before; empty before that.
    pub set_aside: String,
}
wire_struct!(Recovery {
    cluster,
    name,
    addr,
    old_id,
    new_id,
    role,
    epoch,
    others,
    without_log,
    last,
    committed,
    applied,
    revision,
    kept_revision,
    new_revision,
    set_aside
});

impl Recovery {
    /// Entries that are on this member's disk and that it does not know to be committed. They are kept: each may
    /// have been acknowledged by a quorum that this member was in.
    pub fn uncertain(&self) -> u64 {
        self.last.1.saturating_sub(self.committed.max(self.applied))
    }
}

/// What is to be done, or was done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecoverStatus {
    /// A new epoch can be made. Nothing was changed.
    Possible(Recovery),
    /// This member alone is the quorum: it starts as it is. Nothing was changed.
    Alone(Recovery),
    /// A recovery was decided and then cut short; another call completes it.
    Unfinished(Recovery),
    /// The new epoch is made; the member can run.
    Done(Recovery),
}
