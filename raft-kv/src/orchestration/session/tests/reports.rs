//! Reports of many sessions at once: few transactions, and each session its own answer.

use futures_util::future::join_all;

use super::super::super::store::Store;
use super::*;
use crate::types::{PutRequest, TxnOp, TxnRequest};

const TIME: Duration = Duration::from_millis(5);

/// `count` nodes with a task each, and their sessions at one member.
async fn sessions(count: u64) -> (World, Orch, Vec<Opened>) {
    let (world, orch) = orchestrator().await;
    let dispatcher = Dispatcher::new(orch.clone(), Settings::default());
    let mut opened = Vec::new();
    for number in 1..=count {
        give(&orch, &format!("t{number:03}"), NodeId(number), &[]).await;
        opened.push(dispatcher.open(NodeId(number), None).await.unwrap());
    }
    world.take_time(TIME);
    (world, orch, opened)
}

fn running(id: impl Into<String>) -> Vec<(String, TaskStatus)> {
    vec![(id.into(), status(TaskState::Running))]
}

#[test]
fn many_sessions_share_few_transactions() {
    run(async {
        let (world, orch, opened) = sessions(100).await;
        let before = world.revision();
        let all = (1..).zip(&opened).map(|(number, session)| session.report(running(format!("t{number:03}"))));
        for answer in join_all(all).await {
            assert_eq!(answer, Ok(vec![Reported::Taken]));
        }
        // Two go at once and alone, the others in full groups.
        let took = world.revision() - before;
        assert!(took <= 6, "{took} transactions for 100 reports");
        for number in 1..=100 {
            let task = orch.task(&format!("t{number:03}")).await.unwrap().unwrap();
            assert_eq!(task.status.state, TaskState::Running);
        }
    });
}

/// Answers of sessions that share a transaction: taken, old, another's, and several at a time.
async fn mixed() -> Result<(), String> {
    let (_, orch, opened) = sessions(6).await;
    orch.report(NodeId(4), vec![("t004".into(), status(TaskState::Failed))]).await.unwrap();
    let twice = [running("t005"), running("t001")].concat();
    let all = [
        opened[0].report(running("t001")),
        opened[1].report(running("t002")),
        opened[2].report(running("t001")),
        opened[3].report(running("t004")),
        opened[4].report(twice),
        opened[5].report(running("t006")),
    ];
    let expect = [
        vec![Reported::Taken],
        vec![Reported::Taken],
        vec![Reported::NotYours],
        vec![Reported::Old],
        vec![Reported::Taken, Reported::NotYours],
        vec![Reported::Taken],
    ];
    let got: Vec<_> = join_all(all).await.into_iter().map(Result::unwrap).collect();
    if got == expect { Ok(()) } else { Err(format!("{got:?}")) }
}

#[test]
fn each_session_gets_its_own_answer() {
    assert_eq!(run(mixed()), Ok(()));
    let mixes = crate::planted::Bug::GatherMixesAnswers;
    assert!(crate::planted::with(Some(mixes), || run(mixed())).is_err(), "it was not seen");
}

#[test]
fn whoever_is_dropped_takes_nobody_elses_report_with_it() {
    run(async {
        let (_, orch, opened) = sessions(20).await;
        let report = |number: usize| opened[number - 1].report(running(format!("t{number:03}")));
        // The first two have a turn; they are gone while their transactions are on their way. What waits
        // behind them has the next ones, and the first of those is dropped too.
        for gone_after in [TIME / 2, TIME + TIME / 2, TIME * 2 + TIME / 2] {
            let gone = join_all([report(1), report(2), report(3), report(4)]);
            let (gone, stay) = tokio::join!(
                tokio::time::timeout(gone_after, gone),
                join_all((5..=20).map(report))
            );
            assert!(gone.is_err() || gone_after > TIME * 2);
            for answer in stay {
                assert_eq!(answer, Ok(vec![Reported::Taken]));
            }
        }
        for number in 5..=20 {
            let task = orch.task(&format!("t{number:03}")).await.unwrap().unwrap();
            assert_eq!(task.status.state, TaskState::Running);
        }
    });
}

#[test]
fn what_is_wrong_with_one_task_is_not_the_others_matter() {
    run(async {
        let (world, _, opened) = sessions(8).await;
        let put = PutRequest { key: "_rk/s/t005".into(), value: "no status".into(), ..Default::default() };
        world.txn(TxnRequest { success: vec![TxnOp::Put(put)], ..Default::default() }).await.unwrap();
        let all = (1..).zip(&opened).map(|(number, session)| session.report(running(format!("t{number:03}"))));
        for (number, answer) in (1..).zip(join_all(all).await) {
            match number {
                5 => assert!(matches!(answer, Err(Error::Refused(Refusal::Malformed { .. }))), "{answer:?}"),
                _ => assert_eq!(answer, Ok(vec![Reported::Taken]), "{number}"),
            }
        }
        // What no node can say never meets the others.
        let remove = vec![("t001".to_owned(), status(TaskState::Remove))];
        let (wrong, right) = tokio::join!(opened[0].report(remove), opened[1].report(running("t002")));
        assert!(matches!(wrong, Err(Error::Refused(Refusal::Invalid { .. } | Refusal::TaskRule { .. }))));
        assert_eq!(right, Ok(vec![Reported::Taken]));
    });
}

#[test]
fn a_store_that_does_not_answer_fails_all_who_wait() {
    run(async {
        let (world, _, opened) = sessions(3).await;
        world.fail(usize::MAX);
        let all = (1..).zip(&opened).map(|(number, session)| session.report(running(format!("t{number:03}"))));
        for answer in join_all(all).await {
            assert!(matches!(answer, Err(Error::NotDone(_))), "{answer:?}");
        }
        world.fail(0);
        assert_eq!(opened[0].report(running("t001")).await, Ok(vec![Reported::Taken]));
    });
}
