//! The comparison itself: two etcds must not differ, and one falsified answer must be found.

use raft_kv_conformance::differential::{Other, Plan, sequence};

async fn check(planted: Option<usize>, auth: bool, expect: usize) {
    let plan = Plan { other: Other::Etcd, planted, asked: Default::default() };
    let story = sequence(&plan, 11, auth, 250).await.expect("etcd starts; Debian's etcd-server");
    assert!(story.requests > 200, "{} requests", story.requests);
    assert_eq!(story.differences.len(), expect, "{:#?}", story.differences);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_etcds_answer_alike() {
    check(None, false, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_etcds_answer_alike_about_users() {
    check(None, true, 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_falsified_answer_is_found() {
    check(Some(100), false, 1).await;
}
