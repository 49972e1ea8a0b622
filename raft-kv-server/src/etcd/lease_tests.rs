//! The service against a real member in this process, called without a socket.

use futures_util::stream;
use raft_kv::raft::Role;
use raft_kv::types::PutRequest;
use tonic::Code;

use super::super::kv::tests::{One, says, told};
use super::*;

fn grant(id: i64, ttl: i64) -> Request<LeaseGrantRequest> {
    Request::new(LeaseGrantRequest { id, ttl })
}

fn revoke(id: i64) -> Request<LeaseRevokeRequest> {
    Request::new(LeaseRevokeRequest { id })
}

fn time_left(id: i64, keys: bool) -> Request<LeaseTimeToLiveRequest> {
    Request::new(LeaseTimeToLiveRequest { id, keys })
}

#[tokio::test]
async fn a_lease_is_granted_asked_for_and_revoked_with_its_keys() {
    let one = One::start().await;
    let leases = LeaseService::new(one.etcd.clone());
    let granted = leases.lease_grant(grant(7, 60)).await.unwrap().into_inner();
    assert_eq!((granted.id, granted.ttl, granted.header.unwrap().revision), (7, 60, 1), "no new revision");
    let chosen = leases.lease_grant(grant(0, 1)).await.unwrap().into_inner();
    assert!(chosen.id > 0);
    assert_eq!(chosen.ttl, 2, "raised to the shortest");
    for key in ["b", "a"] {
        let put = PutRequest { key: key.into(), lease: 7, ..PutRequest::default() };
        one.etcd.own_handle().put(put).await.unwrap();
    }
    let left = leases.lease_time_to_live(time_left(7, true)).await.unwrap().into_inner();
    assert_eq!((left.granted_ttl, left.keys), (60, vec!["a".into(), "b".into()]));
    assert!((58..=60).contains(&left.ttl), "{}", left.ttl);
    let all = leases.lease_leases(Request::new(LeaseLeasesRequest {})).await.unwrap().into_inner();
    assert_eq!(all.leases.len(), 2);

    let revoked = leases.lease_revoke(revoke(7)).await.unwrap().into_inner();
    assert_eq!(revoked.header.unwrap().revision, 4, "both keys in one revision");
    let gone = leases.lease_time_to_live(time_left(7, true)).await.unwrap().into_inner();
    assert_eq!((gone.id, gone.ttl, gone.granted_ttl, gone.keys), (7, -1, 0, vec![]), "no error");
}

#[tokio::test]
async fn what_is_refused_has_etcds_words() {
    let one = One::start().await;
    let leases = LeaseService::new(one.etcd.clone());
    leases.lease_grant(grant(7, 60)).await.unwrap();
    let again = told(leases.lease_grant(grant(7, 60)).await);
    assert_eq!(again, says(Code::FailedPrecondition, "lease already exists"));
    let long = told(leases.lease_grant(grant(8, 9_000_000_001)).await);
    assert_eq!(long, says(Code::OutOfRange, "too large lease TTL"));
    let unknown = told(leases.lease_revoke(revoke(9)).await);
    assert_eq!(unknown, says(Code::NotFound, "requested lease not found"));
    let learner = LeaseService::new(one.seen_as(true, Role::Learner));
    let refused = told(learner.lease_grant(grant(10, 60)).await);
    assert_eq!(refused, says(Code::FailedPrecondition, "rpc not supported for learner"));
}

/// More than fit in the pipeline, known and unknown ones mixed.
#[tokio::test]
async fn renewals_are_answered_in_their_order_and_unknown_leases_have_no_time() {
    let one = One::start().await;
    let leases = LeaseService::new(one.etcd.clone());
    for id in (2..=300).step_by(2) {
        leases.lease_grant(grant(id, 60 + id)).await.unwrap();
    }
    let asked = (1..=300).map(|id| Ok(LeaseKeepAliveRequest { id }));
    let answers: Vec<_> = renewals(one.etcd.own_handle().clone(), stream::iter(asked)).collect().await;
    assert_eq!(answers.len(), 300);
    for (id, answer) in (1..).zip(answers) {
        let answer = answer.unwrap();
        let ttl = if id % 2 == 0 { 60 + id } else { 0 };
        assert_eq!((answer.id, answer.ttl), (id, ttl));
        assert_eq!(answer.header.unwrap().revision, 1);
    }
}

#[tokio::test]
async fn a_stream_of_renewals_ends_with_the_first_error_of_its_own() {
    let one = One::start().await;
    let broken = stream::iter([Ok(LeaseKeepAliveRequest { id: 1 }), Err(Status::cancelled("gone"))]);
    let answers: Vec<_> = renewals(one.etcd.own_handle().clone(), broken).collect().await;
    assert!(answers[0].is_ok());
    assert_eq!(answers[1].as_ref().unwrap_err().code(), Code::Cancelled);
}

/// A lease that was revoked is never renewed, and no answer says a revision at which it had ended.
#[tokio::test]
async fn a_renewal_beside_a_revocation_never_says_a_later_revision() {
    let one = One::start().await;
    let leases = LeaseService::new(one.etcd.clone());
    let handle = one.etcd.own_handle().clone();
    for id in 1..=20 {
        leases.lease_grant(grant(id, 60)).await.unwrap();
        let put = PutRequest { key: "k".into(), lease: id, ..PutRequest::default() };
        handle.put(put).await.unwrap();
        let asked = stream::iter((0..20).map(|_| Ok(LeaseKeepAliveRequest { id })));
        let (answers, revoked) = tokio::join!(
            renewals(handle.clone(), asked).collect::<Vec<_>>(),
            leases.lease_revoke(revoke(id))
        );
        let ended = revoked.unwrap().into_inner().header.unwrap().revision;
        for answer in answers {
            let answer = answer.unwrap();
            assert!(answer.ttl == 0 || answer.header.unwrap().revision < ended);
        }
    }
}
