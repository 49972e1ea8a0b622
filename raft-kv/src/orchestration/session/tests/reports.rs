//! Reports of many sessions at once: few transactions, and each session its own answer.

use tokio::task::JoinHandle;

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

type Answer = Result<Vec<Reported>, Error>;

/// Begins a report; the order of beginnings is the order in the line.
fn begin(session: &Opened, reports: Vec<(String, TaskStatus)>) -> JoinHandle<Answer> {
    let voice = session.voice();
    tokio::spawn(async move { voice.report(reports).await })
}

/// Begins the report of each session on its own task.
fn begin_all(opened: &[Opened], numbers: std::ops::RangeInclusive<usize>) -> Vec<JoinHandle<Answer>> {
    numbers.map(|number| begin(&opened[number - 1], running(format!("t{number:03}")))).collect()
}

async fn answers(begun: Vec<JoinHandle<Answer>>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for one in begun {
        answers.push(one.await.expect("it is not aborted"));
    }
    answers
}

fn running(id: impl Into<String>) -> Vec<(String, TaskStatus)> {
    vec![(id.into(), status(TaskState::Running))]
}

#[test]
fn many_sessions_share_few_transactions() {
    run(async {
        let (world, orch, opened) = sessions(100).await;
        let before = world.revision();
        for answer in answers(begin_all(&opened, 1..=100)).await {
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
    let all = vec![
        begin(&opened[0], running("t001")),
        begin(&opened[1], running("t002")),
        begin(&opened[2], running("t001")),
        begin(&opened[3], running("t004")),
        begin(&opened[4], twice),
        begin(&opened[5], running("t006")),
    ];
    let expect = [
        vec![Reported::Taken],
        vec![Reported::Taken],
        vec![Reported::NotYours],
        vec![Reported::Old],
        vec![Reported::Taken, Reported::NotYours],
        vec![Reported::Taken],
    ];
    let got: Vec<_> = answers(all).await.into_iter().map(Result::unwrap).collect();
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
        // The first two have a turn; what waits behind them has the next ones. They are gone while it is read
        // for them, while it is committed, and while the next group is.
        for gone_after in [TIME / 2, TIME + TIME / 2, TIME * 2 + TIME / 2] {
            let gone = begin_all(&opened, 1..=4);
            let stay = begin_all(&opened, 5..=20);
            tokio::time::sleep(gone_after).await;
            gone.iter().for_each(JoinHandle::abort);
            for answer in answers(stay).await {
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
        for (number, answer) in (1..).zip(answers(begin_all(&opened, 1..=8)).await) {
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
        for answer in answers(begin_all(&opened, 1..=3)).await {
            assert!(matches!(answer, Err(Error::NotDone(_))), "{answer:?}");
        }
        world.fail(0);
        assert_eq!(opened[0].report(running("t001")).await, Ok(vec![Reported::Taken]));
    });
}

/// What is read to decide a report may be old: what comes of it may not.
#[test]
fn a_member_that_is_behind_answers_as_one_that_is_not() {
    run(async {
        let (world, orch) = orchestrator().await;
        let before = world.revision();
        give(&orch, "a", NODE, &[]).await;
        let given = world.revision();
        let report = async |state| orch.report(NODE, vec![("a".into(), status(state))]).await.unwrap();
        // It has not heard of the task.
        world.fall_behind(before);
        assert_eq!(report(TaskState::Running).await, [Reported::Taken]);
        // Nor of what was reported since.
        world.fall_behind(given);
        assert_eq!(report(TaskState::Ready).await, [Reported::Old]);
        assert_eq!(report(TaskState::Complete).await, [Reported::Taken]);
        assert_eq!(orch.task("a").await.unwrap().unwrap().status.state, TaskState::Complete);
        // Nor that it is gone.
        orch.delete_task("a").await.unwrap();
        assert_eq!(report(TaskState::Failed).await, [Reported::NotYours]);
        assert!(orch.task("a").await.unwrap().is_none());
    });
}
