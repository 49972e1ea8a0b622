//! When revisions were there, as this member has seen it. An archive dates with it what was committed while its archiver
//! was off.
//!
//! In memory and bounded: the older, the less finely. It must never give a revision a date before it was there.

use std::sync::Arc;
use std::time::Duration;

use super::api::{Answered, Call, Reply};
use super::handle::{Handle, unexpected};
use super::local::Local;
use super::points::millis;
use crate::error::Error;
use crate::types::Revision;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(50);
/// How many dates are known, at most.
const MOST: usize = 32_768;
/// How many of them are in an answer.
const PAGE: usize = 4096;

/// Each revision with a time, in milliseconds since 1970, at which it was there.
#[derive(Debug, Default)]
pub(super) struct Dates {
    /// Both ascend.
    seen: Vec<(Revision, i64)>,
}

impl Dates {
    fn note(&mut self, revision: Revision, at: i64) {
        let (last, before) = self.seen.last().copied().unwrap_or_default();
        if revision <= last {
            return;
        }
        if self.seen.len() == MOST {
            // A date that goes leaves its revision with the next one, which is later.
            let mut number = 0;
            self.seen.retain(|_| {
                number += 1;
                number > MOST / 2 || number % 2 == 0
            });
        }
        self.seen.push((revision, at.max(before)));
    }

    /// Those behind a revision, the oldest first; not all at once.
    fn since(&self, revision: Revision) -> Vec<(Revision, i64)> {
        let from = self.seen.partition_point(|(at, _)| *at <= revision);
        self.seen[from..].iter().take(PAGE).copied().collect()
    }
}

/// Notes the dates of this member's revisions, for as long as it runs.
pub(super) async fn keep(local: Arc<Local>) {
    loop {
        // There is no state yet on a member that has just joined.
        if let Ok(header) = local.now() {
            // Read after the revision: it was there by then.
            local.dates.lock().note(header.revision, millis());
        }
        tokio::time::sleep(LOOK).await;
    }
}

impl Local {
    pub(super) fn dates_since(&self, since: Revision) -> Answered {
        Ok((self.now()?, Reply::Dates(self.dates.lock().since(since))))
    }
}

impl Handle {
    /// When the revisions behind `since` were there, as the member that answers has seen it since it was started:
    /// pairs of a revision and a time in milliseconds since 1970 at which all up to it were there, ascending. The first few
    /// thousand; ask again behind the last.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn revision_dates(&self, since: Revision) -> Result<Vec<(Revision, i64)>, Error> {
        match self.call(Call::Dates { since }).await? {
            (_, Reply::Dates(dates)) => Ok(dates),
            (_, other) => Err(unexpected(&other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_revision_is_never_dated_before_it_was_there_however_many_there_are() {
        let mut dates = Dates::default();
        let many = i64::try_from(5 * MOST).unwrap();
        for revision in 1..=many {
            dates.note(revision, revision * 10);
            dates.note(revision, revision * 10 + 5);
            assert!(dates.seen.len() <= MOST);
        }
        assert!(dates.seen.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1));
        // Of each revision: that of the first pair that has it.
        for (revision, at) in &dates.seen {
            assert_eq!(*at, revision * 10);
        }
        let newest = dates.since(many - 3);
        assert_eq!(newest, (many - 2..=many).map(|at| (at, at * 10)).collect::<Vec<_>>());
        assert_eq!(dates.since(many), []);
        assert_eq!(dates.since(0).len(), PAGE);
    }

    #[test]
    fn a_clock_that_goes_back_dates_nothing_earlier_than_what_came_before() {
        let mut dates = Dates::default();
        for (revision, at) in [(5, 100), (6, 90), (9, 120)] {
            dates.note(revision, at);
        }
        assert_eq!(dates.since(0), [(5, 100), (6, 100), (9, 120)]);
    }
}
