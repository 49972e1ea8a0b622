//! The service against a real member in this process, called without a socket.

use raft_kv::raft::Role;
use tonic::Code;

use super::super::kv::tests::{One, named, says, told};
use super::*;

fn list(linearizable: bool) -> Request<MemberListRequest> {
    Request::new(MemberListRequest { linearizable })
}

#[tokio::test]
async fn the_members_are_listed_linearizably_or_as_they_are_here() {
    let one = One::start().await;
    let cluster = ClusterService::new(one.etcd.clone());
    for linearizable in [true, false] {
        let listed = cluster.member_list(list(linearizable)).await.unwrap().into_inner();
        let header = listed.header.unwrap();
        assert_eq!((header.revision, header.cluster_id), (0, one.node.cluster().0));
        let [member] = &listed.members[..] else { panic!("one member") };
        assert_eq!((member.id, member.name.as_str()), (one.node.id().0, "one"));
        assert_eq!(member.peer_ur_ls, [format!("https://{}", one.node.addr())]);
        assert!(!member.is_learner);
    }
}

#[tokio::test]
async fn what_is_refused_has_etcds_words() {
    let one = One::start().await;
    let cluster = ClusterService::new(one.etcd.clone());
    let me = one.node.id().0;
    let bad = says(Code::InvalidArgument, "given member URLs are invalid");
    for urls in [vec![], vec![""], vec!["h:1"], vec!["https://h"], vec!["ftp://h:1"], vec!["https://h:1/x"]] {
        let peer_ur_ls: Vec<String> = urls.into_iter().map(str::to_owned).collect();
        let add = MemberAddRequest { peer_ur_ls: peer_ur_ls.clone(), is_learner: false };
        assert_eq!(told(cluster.member_add(Request::new(add)).await), bad, "{peer_ur_ls:?}");
        let update = MemberUpdateRequest { id: me, peer_ur_ls };
        assert_eq!(told(cluster.member_update(Request::new(update)).await), bad);
    }
    let add = MemberAddRequest { peer_ur_ls: vec!["https://h:1".into()], is_learner: true };
    let (code, text) = told(cluster.member_add(Request::new(add)).await);
    assert_eq!(code, Code::FailedPrecondition);
    assert!(text.contains("raft-kv join-token") && text.contains("raft-kv join"), "{text}");

    let unknown = says(Code::NotFound, "member not found");
    let remove = |id| Request::new(MemberRemoveRequest { id });
    let promote = |id| Request::new(MemberPromoteRequest { id });
    assert_eq!(told(cluster.member_remove(remove(9)).await), unknown);
    assert_eq!(told(cluster.member_promote(promote(9)).await), unknown);
    let update = MemberUpdateRequest { id: 9, peer_ur_ls: vec!["https://h:1".into()] };
    assert_eq!(told(cluster.member_update(Request::new(update)).await), unknown);
    let needed = says(Code::FailedPrecondition, "re-configuration failed due to not enough started members");
    assert_eq!(told(cluster.member_remove(remove(me)).await), needed);
    let voter = says(Code::FailedPrecondition, "can only promote a learner member");
    assert_eq!(told(cluster.member_promote(promote(me)).await), voter);
}

#[tokio::test]
async fn without_a_leader_the_members_are_still_listed() {
    let one = One::start().await;
    let cluster = ClusterService::new(one.seen_as(false, Role::Follower));
    assert_eq!(cluster.member_list(list(false)).await.unwrap().into_inner().members.len(), 1);
    let mut asking = list(false);
    asking.metadata_mut().insert("hasleader", "true".parse().unwrap());
    assert_eq!(told(cluster.member_list(asking).await), says(Code::Unavailable, "no leader"));
}

/// Somebody without rights is told so, and not whether there is such a member.
#[tokio::test]
async fn rights_are_asked_for_before_a_member_is_looked_up() {
    let one = One::start().await;
    one.enable_auth().await;
    let cluster = ClusterService::new(one.etcd.clone());
    let denied = says(Code::PermissionDenied, "permission denied");
    let peer_ur_ls = Vec::new();
    let add = MemberAddRequest { peer_ur_ls: peer_ur_ls.clone(), is_learner: false };
    assert_eq!(told(cluster.member_add(named(add, "bob")).await), denied);
    for id in [one.node.id().0, 9] {
        let update = MemberUpdateRequest { id, peer_ur_ls: peer_ur_ls.clone() };
        assert_eq!(told(cluster.member_update(named(update, "bob")).await), denied);
        assert_eq!(told(cluster.member_remove(named(MemberRemoveRequest { id }, "bob")).await), denied);
        assert_eq!(told(cluster.member_promote(named(MemberPromoteRequest { id }, "bob")).await), denied);
    }
}
