//! `member`: who is in the group, who may come, who goes. Members come by token: `add` checks what
//! can be checked beforehand and prints the command for the new machine; it changes nothing.

use std::time::Duration;

use raft_kv::client::Handle;
use raft_kv::client::api::Info;
use raft_kv::error::Refusal;
use raft_kv::limits::{MAX_ADDR_BYTES, MAX_MEMBERS, MAX_NAME_BYTES};
use raft_kv::types::{Member, MemberRole, NodeId, Role, TransferStatus};
use serde_json::json;

use crate::args::{ConnectArgs, MemberArgs, MemberCommand};
use crate::connect::{connect, connect_to, parse_endpoint};
use crate::failure::{Failure, Kind};
use crate::output::{Output, members_json, members_text};
use crate::serve::join_command;

/// Endpoints in a printed join command: enough that one of them is up.
const JOIN_ENDPOINTS: usize = 3;
/// How long the list of members waits for the leader, which may be out of reach from here.
const LEADER_PATIENCE: Duration = Duration::from_secs(2);

/// `raft-kv member`.
pub async fn run(args: &MemberArgs, output: &mut Output) -> Result<(), Failure> {
    let handle = connect(&args.connect).await?;
    match &args.command {
        MemberCommand::Ls => {
            let (_, members) = handle.members().await?;
            let asked = handle.info().await?.1;
            let leader = asked.leader;
            let snapshots = snapshots(&args.connect, &members, asked).await;
            output.answer(
                || members_json(&members, leader, &snapshots),
                || members_text(&members, leader, &snapshots),
            )
        }
        MemberCommand::Add { name, addr } => add(&handle, name, addr, output).await,
        MemberCommand::Promote { member } => {
            let id = resolve(&handle, member).await?;
            let (_, members) = handle.member_promote(id).await?;
            changed(&handle, id, "is a voter now", &members, output).await
        }
        MemberCommand::Rm { member } => {
            let id = resolve(&handle, member).await?;
            let (_, members) = handle.member_remove(id).await?;
            changed(&handle, id, "is removed for good; its data directory can be emptied", &members, output)
                .await
        }
    }
}

/// How far the snapshots are that the leader sends, as far as it can be asked: it alone knows.
async fn snapshots(args: &ConnectArgs, members: &[Member], asked: Info) -> Vec<TransferStatus> {
    if asked.leader == Some(asked.member) {
        return asked.snapshots.sending;
    }
    let Some(leader) = members.iter().find(|member| Some(member.record.id) == asked.leader) else {
        return Vec::new();
    };
    let ask = async {
        let handle = connect_to(args, &leader.record.addr).await.ok()?;
        Some(handle.info().await.ok()?.1.snapshots.sending)
    };
    tokio::time::timeout(LEADER_PATIENCE, ask).await.ok().flatten().unwrap_or_default()
}

async fn leader(handle: &Handle) -> Result<Option<NodeId>, Failure> {
    Ok(handle.info().await?.1.leader)
}

/// Answers a change. Who leads is beside the point, so not knowing it is no failure.
async fn changed(
    handle: &Handle,
    id: NodeId,
    what: &str,
    members: &[Member],
    output: &mut Output,
) -> Result<(), Failure> {
    let leader = if output.json() { leader(handle).await.unwrap_or(None) } else { None };
    output.answer(|| members_json(members, leader, &[]), || format!("member {id} {what}"))
}

async fn add(handle: &Handle, name: &str, addr: &str, output: &mut Output) -> Result<(), Failure> {
    let addr = parse_endpoint(addr)?;
    let (_, members) = handle.members().await?;
    check_free(&members, name, &addr)?;
    let token = handle.join_token(Role::Manager).await?;
    let command = join_command(&token, Some((name, &addr)), &join_endpoints(&members));
    output.answer(
        || json!({ "name": name, "addr": addr, "token": token, "command": command }),
        || format!("Run on the machine of {name}:\n  {command}\n"),
    )
}

/// Whether a member of that name and address could join now.
fn check_free(members: &[Member], name: &str, addr: &str) -> Result<(), Refusal> {
    let invalid = |field: &str, why: String| Err(Refusal::Invalid { field: field.into(), why });
    let fit = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(fit) {
        return invalid(
            "the name",
            format!("{name:?}: give 1 to {MAX_NAME_BYTES} letters, digits, `-`, `_` or `.`"),
        );
    }
    if addr.len() > MAX_ADDR_BYTES {
        return invalid("the address", format!("it has {} bytes, the limit is {MAX_ADDR_BYTES}", addr.len()));
    }
    for Member { record, .. } in members {
        let taken = |field: &str, value: &str| Refusal::MemberTaken {
            field: field.into(),
            value: value.into(),
            owner: record.id,
        };
        if record.name == name {
            return Err(taken("name", name));
        }
        if record.addr == addr {
            return Err(taken("address", addr));
        }
    }
    if members.len() >= MAX_MEMBERS {
        return Err(Refusal::TooManyMembers { max: MAX_MEMBERS as u64 });
    }
    Ok(())
}

/// Where a joiner asks: voters, by address, a few of them.
pub fn join_endpoints(members: &[Member]) -> Vec<String> {
    let voters = members.iter().filter(|member| member.role == MemberRole::Voter);
    voters.take(JOIN_ENDPOINTS).map(|member| member.record.addr.clone()).collect()
}

/// The id of the member that is named by its id or its name.
pub async fn resolve(handle: &Handle, given: &str) -> Result<NodeId, Failure> {
    let (_, members) = handle.members().await?;
    find(&members, given)
}

fn find(members: &[Member], given: &str) -> Result<NodeId, Failure> {
    let id = given.parse::<NodeId>().ok();
    let mut found =
        members.iter().map(|member| &member.record).filter(|it| it.name == given || Some(it.id) == id);
    match (found.next(), found.next()) {
        (Some(one), None) => Ok(one.id),
        (Some(one), Some(other)) => Err(Failure::usage(format!(
            "{given:?} means member {} ({}) and member {} ({}); give the whole id",
            one.id, one.name, other.id, other.name
        ))),
        (None, _) => Err(Failure::new(
            Kind::NotFound,
            format!("no member has the id or name {given:?}; `raft-kv member ls` lists them"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use raft_kv::types::MemberRecord;

    use super::*;

    fn member(id: u64, name: &str, addr: &str, role: MemberRole) -> Member {
        Member {
            record: MemberRecord {
                id: NodeId(id),
                name: name.into(),
                addr: addr.into(),
                ..Default::default()
            },
            role,
        }
    }

    fn members() -> Vec<Member> {
        vec![
            member(0xa1, "one", "h1:1", MemberRole::Voter),
            member(0xb2, "two", "h2:1", MemberRole::Learner),
            member(0xc3, "a1", "h3:1", MemberRole::Voter),
        ]
    }

    #[test]
    fn a_member_is_found_by_id_or_name() {
        let check = |given, expect: Result<u64, Kind>| {
            assert_eq!(
                find(&members(), given).map(|id| id.0).map_err(|failure| failure.kind),
                expect,
                "{given}"
            );
        };
        check("one", Ok(0xa1));
        check("00000000000000b2", Ok(0xb2));
        check("b2", Ok(0xb2));
        check("a1", Err(Kind::Usage));
        check("00000000000000a1", Ok(0xa1));
        check("four", Err(Kind::NotFound));
        check("d4", Err(Kind::NotFound));
        check("", Err(Kind::NotFound));
    }

    #[test]
    fn a_taken_name_or_address_and_a_full_group_are_refused() {
        let check = |name: &str, addr: &str, part: &str| {
            let got = check_free(&members(), name, addr).map_err(|refusal| refusal.to_string());
            match part {
                "" => assert_eq!(got, Ok(())),
                part => assert!(got.clone().unwrap_err().contains(part), "{got:?} lacks {part:?}"),
            }
        };
        check("four", "h4:1", "");
        check("one", "h4:1", "name \"one\" belongs to member 00000000000000a1");
        check("four", "h2:1", "address \"h2:1\" belongs to member 00000000000000b2");
        check("", "h4:1", "the name is not valid");
        check("a\nb", "h4:1", "the name is not valid");
        check(&"n".repeat(MAX_NAME_BYTES + 1), "h4:1", "the name is not valid");
        check("four", &"h".repeat(MAX_ADDR_BYTES + 1), "the address is not valid");
        let full: Vec<Member> = (1..=MAX_MEMBERS as u64)
            .map(|id| member(id, &format!("n{id}"), &format!("h{id}:1"), MemberRole::Voter))
            .collect();
        assert!(matches!(check_free(&full, "more", "more:1"), Err(Refusal::TooManyMembers { .. })));
    }

    #[test]
    fn a_joiner_is_sent_to_voters() {
        assert_eq!(join_endpoints(&members()), ["h1:1", "h3:1"]);
    }
}
