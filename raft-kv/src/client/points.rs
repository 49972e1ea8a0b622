//! Rollback points at this node's door, and what the leader does for them: makes those that a schedule is due,
//! and removes those that have expired. What a point is and what a rollback does is `machine/points`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::api::{Answered, Reply};
use super::auth::{Asker, serve};
use super::local::{Local, RANGES};
use super::node::OWN_PATIENCE;
use crate::error::Error;
use crate::limits::MAX_POINT_NAME_BYTES;
use crate::machine;
use crate::machine::auth::Asked;
use crate::machine::command::Command;
use crate::node::ask::What;
use crate::types::{Caller, PointCall, PointChange, PointDiffRequest, PointList, PointsReply, point_range};

/// How long a rollback may take: its time goes with what has changed since the point.
pub(super) const ROLLBACK_PATIENCE: Duration = Duration::from_secs(30 * 60);
/// How often it is looked whether a schedule is due or a point has expired.
const LOOK: Duration = Duration::from_secs(1);

/// Now, in milliseconds since 1970.
pub(super) fn millis() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Makes points by schedules and ends those that expire, for as long as this member leads. Runs until the node
/// ends; a second leader that does the same does no harm.
pub(super) async fn keep_schedules(local: Arc<Local>) {
    loop {
        tokio::time::sleep(LOOK).await;
        if !local.leads() || local.now().is_err() {
            continue;
        }
        let now = millis();
        let due = match local.read(|view| machine::read::points_due(view, now)) {
            Ok(due) => due,
            Err(Error::Stopped(_)) => return,
            Err(_) => continue,
        };
        if due {
            let what = What::Command { command: Command::Point(PointChange::Tidy { now }), once: None };
            if let Err(error) = local.apply(what, OWN_PATIENCE).await {
                tracing::debug!(%error, "rollback points of schedules: tried again");
            }
        }
    }
}

impl Local {
    /// Who asks, for people: a user, else the node whose certificate it was, else this member.
    pub(super) fn author(&self, asker: &Asker) -> Result<String, Error> {
        let name = match (&asker.caller, asker.node) {
            (Caller::User { name, .. }, _) => name.clone(),
            (_, Some(node)) if node != self.me => {
                let (record, members) =
                    self.read(|view| Ok((machine::read::node(view, node)?, machine::read::members(view)?)))?;
                let member = members.into_iter().map(|member| member.record).find(|record| record.id == node);
                let named = member.map(|member| member.name).or(record.map(|record| record.name));
                named.filter(|name| !name.is_empty()).unwrap_or_else(|| node.to_string())
            }
            _ => self.name.clone(),
        };
        // Names may be longer than what is kept of an author.
        Ok(name
            .char_indices()
            .take_while(|(at, char)| at + char.len_utf8() <= MAX_POINT_NAME_BYTES)
            .map(|(_, char)| char)
            .collect())
    }

    pub(super) async fn points(&self, caller: &Caller, call: PointCall, patience: Duration) -> Answered {
        match call {
            PointCall::List => {
                self.barrier(patience).await?;
                let list = self.read(|view| {
                    let (points, schedules) = (machine::read::points(view)?, machine::read::schedules(view)?);
                    Ok(PointList { points, schedules })
                })?;
                Ok((self.now()?, Reply::Points(PointsReply::List(list))))
            }
            PointCall::Diff(request) => self.point_diff(caller, request, patience).await,
        }
    }

    async fn point_diff(&self, caller: &Caller, request: PointDiffRequest, patience: Duration) -> Answered {
        self.barrier(patience).await?;
        let (shell, caller) = (self.shell.clone(), caller.clone());
        let read = move || {
            let range = point_range(request.prefix.as_ref());
            shell.read(|view| {
                let page = || machine::read::point_diff(view, &request);
                let answered = serve(view, &caller, &Asked::Range(&range), true, page)?;
                Ok(answered.map(|page| (page.to, page)))
            })
        };
        let (revision, page) = RANGES.run(patience, read).await???;
        Ok((self.header(revision), Reply::Points(PointsReply::Diff(page))))
    }
}
