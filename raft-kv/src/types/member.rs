//! Members: who they are, how to reach them and what their certificates allow.

use super::NodeId;
use crate::codec::{wire_enum, wire_struct};

/// What the cluster knows of a member besides its place in raft.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MemberRecord {
    /// Its raft id.
    pub id: NodeId,
    /// For people; unique among members.
    pub name: String,
    /// `host:port` where peers, joiners and clients reach it.
    pub addr: String,
    /// Where HTTP clients (the etcd API) reach it, `https://host:port`; empty where they don't.
    pub client_url: String,
}
wire_struct!(MemberRecord { id, name, addr, client_url });

/// One run of a member: from one opening of its log to the next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Run {
    /// The log's number for it, above that of each run before; 0 where the log doesn't count its runs.
    pub number: u64,
    /// Drawn by chance at each start: two runs with one number began from one copy of the directory.
    pub boot: u64,
}
wire_struct!(Run { number, boot });

impl std::fmt::Display for Older {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "this directory is an older copy of itself: ")?;
        match self {
            Self::Run { newest } => {
                write!(f, "the others have seen a later run of this member, number {newest}")
            }
            Self::Promised { term, index: 0 } => {
                write!(f, "the others have its vote in term {term}, of which it knows nothing")
            }
            Self::Promised { term, index } => write!(
                f,
                "the others have its acknowledgement of entry {index} in term {term}, which it does not hold"
            ),
        }
    }
}

/// What shows that a member's directory is an older copy of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Older {
    /// The member has run later than this run.
    Run {
        /// The newest run known of it.
        newest: u64,
    },
    /// It has promised what this directory does not hold: a vote, or entries.
    Promised {
        /// The term of its last promise.
        term: u64,
        /// The last entry that it acknowledged in that term; 0 where it only voted.
        index: u64,
    },
}
wire_enum!(Older { 1 => Run { newest }, 2 => Promised { term, index } });

/// A member's place in the raft group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MemberRole {
    /// Votes and counts for the quorum.
    Voter,
    /// Receives the log; becomes a voter once caught up.
    Learner,
}
wire_enum!(MemberRole { 1 => Voter, 2 => Learner });

/// A member as `member ls` shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Name and address.
    pub record: MemberRecord,
    /// Its place in the group.
    pub role: MemberRole,
}
wire_struct!(Member { record, role });

/// What a certificate lets its holder do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Role {
    /// A raft member: everything.
    Manager,
    /// An orchestrator process or a tool: keys, within its grants.
    Client,
    /// Its own tasks and nothing else.
    Worker,
}
wire_enum!(Role { 1 => Manager, 2 => Client, 3 => Worker });

impl Role {
    /// The word in certificates (OU) and on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Manager => "manager",
            Self::Client => "client",
            Self::Worker => "worker",
        }
    }

    /// Whether a node that was given this role may show `shown`: the same or less.
    pub fn covers(self, shown: Self) -> bool {
        let power = |role| match role {
            Self::Manager => 2,
            Self::Client => 1,
            Self::Worker => 0,
        };
        power(self) >= power(shown)
    }

    /// The role that `word` names.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Manager, Self::Client, Self::Worker].into_iter().find(|role| role.as_str() == word)
    }
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}
