//! Tokens on a watch stream: bad ones, ones that end, and what only looks like either.

use std::sync::Arc;

use parking_lot::Mutex;
use raft_kv::client::hash_password;
use raft_kv::types::AuthChange;
use tonic::{Code, Request};

use super::*;
use crate::etcd::room::Room;
use crate::etcd::watch::{Asking, stream};

const BAD_TOKEN: &str = "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token";

/// Users count from now on; the token of root.
async fn logged_in(world: &World) -> String {
    let password = Some(hash_password("p").unwrap().into());
    for change in [
        AuthChange::UserAdd { name: "root".into(), password },
        AuthChange::RoleAdd { role: "root".into() },
        AuthChange::UserGrant { name: "root".into(), role: "root".into() },
        AuthChange::Enable { token_key: Default::default() },
    ] {
        world.handle.auth_change(change).await.unwrap();
    }
    world.handle.authenticate("root", "p").await.unwrap().1
}

fn bearer(token: &str) -> Who {
    let mut request = Request::new(());
    request.metadata_mut().insert("token", token.parse().unwrap());
    Who::asks(&request)
}

#[tokio::test]
async fn a_bad_token_is_told_and_one_that_ends_ends_its_watchers() {
    let world = World::new().await;
    let token = logged_in(&world).await;
    let mut stranger = world.open_as(bearer("rubbish"));
    stranger.create(watch("k"));
    assert_eq!(kind(&stranger.next().await), format!("refused -1: {BAD_TOKEN}"));
    let mut root = world.open_as(bearer(&token));
    assert_eq!(root.created(watch("k")).await, 0);
    // Another password ends the token; the stream and its next watcher say so.
    let password = Some(hash_password("q").unwrap().into());
    world.handle.auth_change(AuthChange::UserPassword { name: "root".into(), password }).await.unwrap();
    assert_eq!(kind(&root.next().await), format!("canceled 0, compacted 0 {BAD_TOKEN}"));
    root.create(watch("k"));
    assert_eq!(kind(&root.next().await), format!("refused -1: {BAD_TOKEN}"));
}

/// A member that can't say who asks says nothing of tokens: the stream ends as it does without a
/// leader, and the client opens it again with its watchers.
#[tokio::test]
async fn what_is_no_bad_token_cancels_no_watcher() {
    let world = World::new().await;
    let fails = Arc::new(Mutex::new(None::<Status>));
    let (handle, told) = (world.handle.clone(), fails.clone());
    let caller_now = move || told.lock().clone().map_or_else(|| Ok(handle.clone()), Err);
    let (requests, received) = mpsc::unbounded_channel();
    let (out, answers) = mpsc::channel(1);
    let (answers, hungry) = Asking::new(answers);
    let (out, room) = (stream::Out { answers: out, hungry }, Room::of(1 << 20));
    let set = world.handle.watch_set().unwrap();
    let stream = stream::Stream::new(set, out, room.clone(), Box::new(caller_now));
    let ends =
        stream::Ends { leaderless: std::future::pending(), auth_changes: Some(world.handle.auth_changes()) };
    let received = Box::pin(UnboundedReceiverStream::new(received));
    tokio::spawn(stream.run(received, ends, Duration::from_secs(600)));
    let mut client = Client { requests: Some(requests), answers: room.paced(answers) };
    assert_eq!(client.created(watch("k")).await, 0);
    *fails.lock() = Some(Status::unavailable("etcdserver: no leader"));
    let role = AuthChange::RoleAdd { role: "r".into() };
    world.handle.auth_change(role).await.unwrap();
    let ended = client.next_or_end().await.unwrap().unwrap_err();
    assert_eq!((ended.code(), ended.message()), (Code::Unavailable, "etcdserver: no leader"));
}
