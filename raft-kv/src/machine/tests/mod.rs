//! The machine against a naive model, etcd's quirks one by one, and bugs planted on purpose.

mod alarms;
mod epoch;

mod limits;
mod model;
mod nodes;
#[cfg(feature = "sim")]
mod planted;
mod points;
mod points_rules;
mod quirks;
mod quota;
mod random;
mod ranges;
mod restore;
mod rotation;
mod sealing;
mod tokens;
mod trust;
mod users;

use bytes::Bytes;

use super::*;
use crate::types::*;

pub const VOTER: NodeId = NodeId(7);

pub fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub fn genesis() -> Genesis {
    Genesis {
        cluster: ClusterId(99),
        member: MemberRecord { id: VOTER, name: "one".into(), addr: "one:1".into(), ..Default::default() },
        authority: authority(1),
        node: NodeRecord { ends: 1000, ..NodeRecord::new(VOTER, Role::Manager, "one", RootDigest([1; 32])) },
        tokens: vec![("t1".into(), token(Role::Manager))],
    }
}

/// A root that is told from others by a number.
pub fn authority(number: u8) -> Authority {
    Authority {
        digest: RootDigest([number; 32]),
        signer: KeyDigest([number; 32]),
        root: bytes("cert"),
        key: Some(Sealed(bytes("key"))),
        cross: Some(bytes("cross")),
        ..Authority::default()
    }
}

/// A token for `role`, for ever.
pub fn token(role: Role) -> TokenRecord {
    let (label, secret) = (String::new(), Sealed(bytes("s")));
    TokenRecord { role, secret, label, created: 1, expires: i64::MAX, uses: None }
}

/// A machine in memory that is told commands one by one.
pub struct Bench {
    pub machine: Machine<MemoryStore>,
    pub term: Term,
}

impl Bench {
    pub fn new() -> Self {
        let store = MemoryStore::new();
        Machine::create(&store, &genesis()).unwrap();
        Self { machine: Machine::open(store).unwrap().unwrap(), term: 1 }
    }

    pub fn proposals(&self, commands: &[(Option<OnceId>, Command)]) -> Payload {
        let proposals: Vec<Proposal> = commands
            .iter()
            .enumerate()
            .map(|(at, (once, command))| Proposal {
                request: RequestId { origin: VOTER, boot: 1, seq: at as u64 },
                once: *once,
                command: command.clone(),
            })
            .collect();
        Payload::Proposals(proposals.to_bytes())
    }

    /// Applies entries with one list of commands each, in one batch.
    pub fn entries(&mut self, entries: &[Vec<(Option<OnceId>, Command)>]) -> Applied {
        let first = self.machine.applied().index + 1;
        let entries = entries.iter().enumerate().map(|(at, commands)| Committed {
            index: first + at as u64,
            term: self.term,
            payload: self.proposals(commands),
        });
        self.machine.apply(entries.collect()).unwrap()
    }

    pub fn payload(&mut self, payload: Payload) -> Applied {
        let index = self.machine.applied().index + 1;
        self.machine.apply(vec![Committed { index, term: self.term, payload }]).unwrap()
    }

    pub fn run(&mut self, command: Command) -> Applied {
        self.entries(&[vec![(None, command)]])
    }

    pub fn ask(&mut self, command: Command) -> Result<Answer, Refusal> {
        self.run(command).outcomes.remove(0).result
    }

    pub fn once(&mut self, client: u64, seq: u64, command: Command) -> Result<Answer, Refusal> {
        self.entries(&[vec![(Some(OnceId { client, seq }), command)]]).outcomes.remove(0).result
    }

    pub fn put(&mut self, key: &str, value: &str) -> Result<Answer, Refusal> {
        self.ask(put(key, value))
    }

    pub fn view<R>(&self, read: impl FnOnce(&dyn Read) -> R) -> R {
        self.machine.store().view(read)
    }

    pub fn range(&self, request: &RangeRequest) -> Result<RangeResponse, Refusal> {
        self.view(|view| read::range(view, request)).unwrap().map(|(_, response)| response)
    }

    pub fn get(&self, key: &str, revision: Revision) -> Option<KeyValue> {
        let request = RangeRequest { range: KeyRange::key(bytes(key)), revision, ..Default::default() };
        self.range(&request).unwrap().kvs.pop()
    }

    pub fn history(&self, from: Revision) -> Result<Vec<Change>, Refusal> {
        self.view(|view| read::history(view, from, i64::MAX - 1, usize::MAX)).unwrap()
    }

    pub fn hash(&self) -> u64 {
        self.view(read::hash).unwrap()
    }

    /// Ends the process and starts it again on what it wrote.
    pub fn reopen(&mut self) {
        let store = self.machine.store().clone();
        self.machine = Machine::open(store).unwrap().unwrap();
    }

    pub fn collect_all(&mut self) {
        while self.machine.collect().unwrap() {}
    }
}

pub fn put(key: &str, value: &str) -> Command {
    Command::Put(PutRequest { key: bytes(key), value: bytes(value), ..Default::default() })
}

pub fn put_leased(key: &str, lease: LeaseId) -> Command {
    Command::Put(PutRequest { key: bytes(key), lease, ..Default::default() })
}

pub fn delete(range: KeyRange) -> Command {
    Command::Delete(DeleteRequest { range, prev_kv: true })
}
