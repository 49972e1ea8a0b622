//! What the sessions of one member report at the same time, gathered into shared transactions: a cluster of
//! thousands of workers pays for transactions, not for workers.
//!
//! Whoever reports while no turn is free waits in line; whoever gets a turn commits the front of the line for
//! all in it. There is no task of its own and no pause: alone, a report goes at once. It must never answer
//! before the commit, nor one session with another's answer; whoever is dropped takes nobody else's report
//! with it.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

use super::super::store::{Clock, Store};
use super::super::tasks::NodeReport;
use super::super::words::TaskStatus;
use super::super::{Orchestrator, Reported, rules};
use crate::error::Error;
use crate::limits::MAX_REPORTED_AT_ONCE;
use crate::planted;
use crate::types::NodeId;

/// Transactions of reports that a member has on their way at a time. More of them would be smaller ones: what
/// comes meanwhile gathers.
const TURNS: usize = 1;

type Answer = Result<Vec<Reported>, Error>;

#[derive(Debug)]
struct Waiting {
    reports: Arc<Vec<NodeReport>>,
    answer: oneshot::Sender<Answer>,
}

/// The reports of one member's sessions.
#[derive(Debug)]
pub struct Reports {
    line: Mutex<VecDeque<Waiting>>,
    turns: Semaphore,
}

impl Default for Reports {
    fn default() -> Self {
        Self { line: Mutex::default(), turns: Semaphore::new(TURNS) }
    }
}

impl Reports {
    /// See [`Orchestrator::report`].
    pub async fn report<S: Store, C: Clock>(
        &self,
        orchestrator: &Orchestrator<S, C>,
        node: NodeId,
        reports: Vec<(String, TaskStatus)>,
    ) -> Answer {
        // What is at fault by itself shall not reach the line: it would be everybody's.
        for (_, status) in &reports {
            rules::reported(status)?;
        }
        let reports = reports.into_iter().map(|(id, status)| NodeReport { node, id, status });
        let reports: Arc<Vec<NodeReport>> = Arc::new(reports.collect());
        loop {
            let (answer, answered) = oneshot::channel();
            self.line.lock().push_back(Waiting { reports: reports.clone(), answer });
            if let Some(answer) = self.take_turns(orchestrator, answered).await {
                return answer;
            }
        }
    }

    /// Until there is an answer; `None` where whoever had it in hand was dropped. Then it may have been
    /// committed: a report that is repeated is the same report.
    async fn take_turns<S: Store, C: Clock>(
        &self,
        orchestrator: &Orchestrator<S, C>,
        mut answered: oneshot::Receiver<Answer>,
    ) -> Option<Answer> {
        loop {
            let turn = tokio::select! {
                biased;
                answer = &mut answered => return answer.ok(),
                turn = self.turns.acquire() => turn.expect("turns are never closed"),
            };
            let group = self.front();
            if group.is_empty() {
                // Somebody else has it in hand.
                drop(turn);
                return answered.await.ok();
            }
            commit(orchestrator, group).await;
        }
    }

    /// Those in front whose reports fit one transaction, at least one.
    fn front(&self) -> Vec<Waiting> {
        let mut line = self.line.lock();
        let (mut group, mut statuses) = (Vec::new(), 0);
        while let Some(next) = line.pop_front() {
            if next.answer.is_closed() {
                // Nobody waits for it: its worker says it again, elsewhere.
                continue;
            }
            statuses += next.reports.len();
            if statuses > MAX_REPORTED_AT_ONCE && !group.is_empty() {
                line.push_front(next);
                break;
            }
            group.push(next);
        }
        group
    }
}

async fn commit<S: Store, C: Clock>(orchestrator: &Orchestrator<S, C>, group: Vec<Waiting>) {
    let all: Vec<NodeReport> = group.iter().flat_map(|waiting| waiting.reports.iter().cloned()).collect();
    match orchestrator.report_of_many(&all).await {
        Ok(mut answers) => {
            if planted!(GatherMixesAnswers) {
                answers.reverse();
            }
            for waiting in group {
                let rest = answers.split_off(waiting.reports.len());
                let _ = waiting.answer.send(Ok(std::mem::replace(&mut answers, rest)));
            }
        }
        // What is wrong with one task is not the others' matter.
        Err(Error::Refused(_)) if group.len() > 1 => {
            for waiting in group {
                let alone = orchestrator.report_of_many(&waiting.reports).await;
                let _ = waiting.answer.send(alone);
            }
        }
        Err(error) => {
            for waiting in group {
                let _ = waiting.answer.send(Err(error.clone()));
            }
        }
    }
}
