//! `node`: every node that has a certificate of this cluster, and taking one out. What becomes of a
//! node is decided by the cluster; here it is only named and shown.

use raft_kv::client::Handle;
use raft_kv::types::{CaStatus, Member, MemberRole, NodeId, NodeRecord, Role};
use serde_json::{Value, json};
use time::OffsetDateTime;

use crate::args::{NodeArgs, NodeCommand};
use crate::connect::connect;
use crate::failure::{Failure, Kind};
use crate::output::{Output, role_word, table};

/// How many digits of a root's digest tell it from the others.
const SHORT: usize = 12;

/// `raft-kv node`.
pub async fn run(args: &NodeArgs, output: &mut Output) -> Result<(), Failure> {
    let handle = connect(&args.connect).await?;
    let nodes = Nodes::ask(&handle).await?;
    match &args.command {
        NodeCommand::Ls => output.answer(|| nodes.json(), || nodes.text()),
        NodeCommand::Inspect { node } => {
            let node = nodes.find(node)?;
            output.answer(|| nodes.node_json(node), || nodes.node_text(node))
        }
        NodeCommand::Rm { node } => {
            let node = nodes.find(node)?;
            handle.node_remove(node.id()).await?;
            let hint = if node.member.is_some() { "; its data directory can be emptied" } else { "" };
            done(
                output,
                node,
                "removed",
                &format!("is removed: its certificate is refused from now on{hint}"),
            )
        }
        NodeCommand::Promote { node } => {
            let node = nodes.find(node)?;
            handle.node_promote(node.id()).await?;
            done(output, node, "promoted", "is a voter now")
        }
        NodeCommand::Demote { node } => {
            let node = nodes.find(node)?;
            handle.node_demote(node.id()).await?;
            done(
                output,
                node,
                "demoted",
                "is no manager any more, and its certificate is refused from now on. It comes back under a new \
                 id: empty its data directory, then let it join with a token of whichever role it is to have",
            )
        }
        NodeCommand::Readmit { node } => {
            let node = nodes.find(node)?;
            handle.node_readmit(node.id()).await?;
            let role = node.record.role;
            done(
                output,
                node,
                "readmitted",
                &format!("may come back within a day, with its data and a token for the role {role}"),
            )
        }
    }
}

/// Answers a change.
fn done(output: &mut Output, node: &Shown, word: &str, what: &str) -> Result<(), Failure> {
    let (id, name) = (node.id(), node.name());
    output.answer(
        || json!({ "id": id.to_string(), "name": name, word: true }),
        || format!("node {id} ({name}) {what}"),
    )
}

/// A node, and its place in the group if it is a member.
struct Shown {
    record: NodeRecord,
    member: Option<MemberRole>,
    /// A member's name as it is now.
    name: Option<String>,
}

impl Shown {
    fn id(&self) -> NodeId {
        self.record.id
    }

    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.record.name)
    }

    fn role(&self) -> Role {
        if self.member.is_some() { Role::Manager } else { self.record.role }
    }
}

/// All nodes, and by what they are judged.
struct Nodes {
    nodes: Vec<Shown>,
    status: CaStatus,
    leader: Option<NodeId>,
}

impl Nodes {
    async fn ask(handle: &Handle) -> Result<Self, Failure> {
        let (_, status) = handle.nodes().await?;
        let (_, members) = handle.members().await?;
        let leader = handle.info().await?.1.leader;
        Ok(Self::of(status, &members, leader))
    }

    fn of(status: CaStatus, members: &[Member], leader: Option<NodeId>) -> Self {
        let member = |id| members.iter().find(|member| member.record.id == id);
        let shown = |record: &NodeRecord| {
            let member = member(record.id);
            let name = member.map(|member| member.record.name.clone());
            Shown { record: record.clone(), member: member.map(|member| member.role), name }
        };
        let mut nodes: Vec<Shown> = status.nodes.iter().map(shown).collect();
        nodes.sort_by_key(|node| {
            (std::cmp::Reverse(node.member.is_some()), node.role().to_string(), node.id())
        });
        Self { nodes, status, leader }
    }

    /// The node that is meant.
    fn find(&self, given: &str) -> Result<&Shown, Failure> {
        let lower = given.to_ascii_lowercase();
        let begins = |node: &&Shown| !given.is_empty() && node.id().to_string().starts_with(&lower);
        let whole = |node: &&Shown| node.id().to_string() == lower;
        if let Some(node) = self.nodes.iter().find(whole) {
            return Ok(node);
        }
        let named = |node: &&Shown| !given.is_empty() && node.name() == given;
        let found: Vec<_> = self.nodes.iter().filter(|node| named(node) || begins(node)).collect();
        match found[..] {
            [one] => Ok(one),
            [one, other, ..] => Err(Failure::usage(format!(
                "{given:?} means {} nodes, among them {} ({}) and {} ({}); give the whole id",
                found.len(),
                one.id(),
                one.name(),
                other.id(),
                other.name()
            ))),
            [] => Err(Failure::new(
                Kind::NotFound,
                format!("no node has the id or name {given:?}; `raft-kv node ls` lists them"),
            )),
        }
    }

    /// What there is to say of a node in one word or two.
    fn state(&self, node: &Shown) -> String {
        let mut words = Vec::new();
        if let Some(member) = node.member {
            words.push(role_word(member));
        }
        if self.leader == Some(node.id()) {
            words.push("leader");
        }
        if self.status.late.contains(&node.id()) {
            words.push("late");
        }
        if self.status.shut_out(&node.record) {
            words.push("shut out");
        }
        if node.record.ends <= self.status.now {
            words.push("ended");
        }
        if node.record.readmit > self.status.now {
            words.push("may come back");
        }
        words.join(", ")
    }

    fn node_json(&self, node: &Shown) -> Value {
        let record = &node.record;
        let (member, leads) = (node.member.map(role_word), self.leader == Some(node.id()));
        json!({
            "id": node.id().to_string(),
            "name": node.name(),
            "role": node.role().to_string(),
            "member": member,
            "leader": leads,
            "issuer": record.issuer.to_string(),
            "verified": record.verified.map(|root| root.to_string()),
            "serial": hex(&record.serial),
            "issued": record.issued,
            "ends": record.ends,
            "late": self.status.late.contains(&node.id()),
            "shut_out": self.status.shut_out(record),
            "token": record.token,
            "error": record.error,
            "readmit": record.readmit,
        })
    }

    fn json(&self) -> Value {
        let nodes: Value = self.nodes.iter().map(|node| self.node_json(node)).collect();
        json!({ "nodes": nodes })
    }

    fn text(&self) -> String {
        let mut rows = vec![["ID", "NAME", "ROLE", "ROOT", "ENDS", "SEEN", "STATE"].map(str::to_owned)];
        rows.extend(self.nodes.iter().map(|node| {
            [
                node.id().to_string(),
                node.name().to_owned(),
                node.role().to_string(),
                short(&node.record.issuer.to_string()),
                ends(node.record.ends, self.status.now),
                node.record.verified.map_or("-".to_owned(), |root| short(&root.to_string())),
                self.state(node),
            ]
        }));
        table(&rows)
    }

    fn node_text(&self, node: &Shown) -> String {
        let record = &node.record;
        let seen =
            record.verified.map_or("never while a root was replaced".to_owned(), |root| root.to_string());
        let or = |text: &str, none: &str| if text.is_empty() { none.to_owned() } else { text.to_owned() };
        let mut rows = vec![
            ["id".to_owned(), node.id().to_string()],
            ["name".to_owned(), node.name().to_owned()],
            ["role".to_owned(), node.role().to_string()],
            ["state".to_owned(), or(&self.state(node), "-")],
            ["root".to_owned(), record.issuer.to_string()],
            ["seen with".to_owned(), seen],
            ["serial".to_owned(), hex(&record.serial)],
            ["issued".to_owned(), date(record.issued)],
            ["ends".to_owned(), format!("{} ({})", date(record.ends), ends(record.ends, self.status.now))],
            ["token".to_owned(), or(&record.token, "none")],
            ["last error".to_owned(), or(&record.error, "none")],
        ];
        if record.readmit > self.status.now {
            rows.push(["may come back".to_owned(), format!("until {}", date(record.readmit))]);
        }
        table(&rows)
    }
}

fn short(digest: &str) -> String {
    digest.chars().take(SHORT).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A time in UTC, to the second.
pub(super) fn date(at: i64) -> String {
    let known = OffsetDateTime::from_unix_timestamp(at).ok();
    known.map_or("never".to_owned(), |at| {
        let (date, time) = (at.date(), at.time());
        format!("{date}T{:02}:{:02}:{:02}Z", time.hour(), time.minute(), time.second())
    })
}

/// How long it is until `at`, or since.
fn ends(at: i64, now: i64) -> String {
    let Ok(left) = u64::try_from(at.saturating_sub(now)) else {
        return format!("{} ago", span(now.abs_diff(at)));
    };
    if at == i64::MAX { "never".to_owned() } else { format!("in {}", span(left)) }
}

fn span(seconds: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    match seconds {
        days @ (DAY..) => format!("{} d", days / DAY),
        hours @ (HOUR..) => format!("{} h", hours / HOUR),
        minutes @ (MINUTE..) => format!("{} min", minutes / MINUTE),
        seconds => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use raft_kv::types::{MemberRecord, RootDigest};

    use super::*;

    fn nodes() -> Nodes {
        let record = |id, role, name: &str| NodeRecord {
            ends: 1000 + 3 * 24 * 3600,
            ..NodeRecord::new(NodeId(id), role, name, RootDigest([0xab; 32]))
        };
        let late = NodeRecord { ends: 400, ..record(0xb200, Role::Worker, "rack7") };
        let status = CaStatus {
            nodes: vec![
                record(0xa100_0000_0000_0000, Role::Manager, "old name"),
                record(0xa200_0000_0000_0000, Role::Client, "deploy"),
                late,
            ],
            late: vec![NodeId(0xb200)],
            digests: vec![RootDigest([0xab; 32])],
            now: 1000,
            ..CaStatus::default()
        };
        let record = MemberRecord {
            id: NodeId(0xa100_0000_0000_0000),
            name: "one".into(),
            addr: "h:1".into(),
            ..Default::default()
        };
        let members = [Member { record, role: MemberRole::Voter }];
        Nodes::of(status, &members, Some(NodeId(0xa100_0000_0000_0000)))
    }

    #[test]
    fn a_node_is_found_by_the_beginning_of_its_id_or_its_name() {
        let nodes = nodes();
        let check = |given: &str, expect: Result<&str, Kind>| {
            let found = nodes.find(given);
            assert_eq!(found.map(Shown::name).map_err(|failure| failure.kind), expect, "{given:?}");
        };
        check("a1", Ok("one"));
        check("A1000000", Ok("one"));
        check("one", Ok("one"));
        check("old name", Err(Kind::NotFound));
        check("deploy", Ok("deploy"));
        check("000000000000b200", Ok("rack7"));
        check("0", Ok("rack7"));
        check("a", Err(Kind::Usage));
        check("b200", Err(Kind::NotFound));
        check("", Err(Kind::NotFound));
    }

    #[test]
    fn the_list_says_who_is_what_and_who_is_late() {
        assert_eq!(
            nodes().text(),
            "ID                NAME    ROLE     ROOT          ENDS        SEEN  STATE\n\
             a100000000000000  one     manager  abababababab  in 3 d      -     voter, leader\n\
             a200000000000000  deploy  client   abababababab  in 3 d      -\n\
             000000000000b200  rack7   worker   abababababab  10 min ago  -     late, ended\n"
        );
        let json = nodes().json();
        assert_eq!(json["nodes"][0]["member"], "voter");
        assert_eq!(json["nodes"][0]["leader"], true);
        assert_eq!(json["nodes"][1]["member"], Value::Null);
        assert_eq!(json["nodes"][2]["late"], true);
        assert_eq!(json["nodes"][2]["verified"], Value::Null);
        let all = nodes();
        assert!(all.node_text(&all.nodes[2]).contains("ends        1970-01-01T00:06:40Z (10 min ago)"));
    }

    #[test]
    fn times_are_said_in_the_largest_unit() {
        for (at, expect) in [
            (1059, "in 59 s"),
            (1060, "in 1 min"),
            (1000 + 7200, "in 2 h"),
            (1000 + 90 * 24 * 3600, "in 90 d"),
            (999, "1 s ago"),
            (i64::MAX, "never"),
        ] {
            assert_eq!(ends(at, 1000), expect);
        }
    }
}
