//! The handle's words for rollback points: to make, list and remove them, to see what differs, to go back.

use bytes::Bytes;

use super::api::{Call, Reply};
use super::handle::Handle;
use super::points::ROLLBACK_PATIENCE;
use crate::error::{Error, Refusal};
use crate::machine::Answer;
use crate::machine::command::Command;
use crate::types::{
    Header, PointCall, PointChange, PointDiffPage, PointDiffRequest, PointList, PointReply, PointSchedule,
    PointsReply, Revision, RollbackPoint, RolledBack,
};

/// What a new rollback point is like, besides its name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NewPoint {
    /// The revision that it names; the current one for `None`. An older one must still be readable.
    pub at: Option<Revision>,
    /// When it is removed by itself, in milliseconds since 1970; never for `None`.
    pub expires: Option<i64>,
    /// What for, for people.
    pub comment: String,
}

fn unexpected(got: impl std::fmt::Debug) -> Error {
    Refusal::Malformed { what: format!("{got:?} for a question about rollback points") }.into()
}

impl Handle {
    /// Makes a rollback point: a name for a revision that stays readable until the point is removed.
    ///
    /// ```no_run
    /// # use raft_kv::client::{Handle, NewPoint};
    /// # async fn example(handle: Handle) -> Result<(), raft_kv::error::Error> {
    /// handle.point_create("before-upgrade", NewPoint::default()).await?;
    /// // … and if it went wrong:
    /// let (_, done) = handle.rollback("before-upgrade", None).await?;
    /// println!("{} keys put back; undo by rolling back to {:?}", done.events, done.undo);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Refusal::Invalid`] for a name that is taken or too long, or where there are too many points;
    /// [`Refusal::Compacted`] and [`Refusal::FutureRevision`] for an older revision; see [`Error`].
    pub async fn point_create(&self, name: &str, new: NewPoint) -> Result<(Header, RollbackPoint), Error> {
        let NewPoint { at, expires, comment } = new;
        // Who and when is filled in where it is asked.
        let (name, author, now) = (name.to_owned(), String::new(), 0);
        match self.point_change(PointChange::Create { name, at, expires, author, comment, now }).await? {
            (header, PointReply::Created(point)) => Ok((header, point)),
            (_, other) => Err(unexpected(other)),
        }
    }

    /// Removes a rollback point; what only it could see goes with later compactions.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] where there is none of that name; see [`Error`].
    pub async fn point_remove(&self, name: &str) -> Result<(Header, RollbackPoint), Error> {
        match self.point_change(PointChange::Remove { name: name.to_owned() }).await? {
            (header, PointReply::Removed(point)) => Ok((header, point)),
            (_, other) => Err(unexpected(other)),
        }
    }

    /// All rollback points and schedules, by name.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn points(&self) -> Result<(Header, PointList), Error> {
        match self.call(Call::Points(PointCall::List)).await? {
            (header, Reply::Points(PointsReply::List(list))) => Ok((header, list)),
            (_, other) => Err(unexpected(other)),
        }
    }

    /// Makes points by a schedule from now on; replaces one of the same name.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] out of its bounds; see [`Error`].
    pub async fn point_schedule(&self, schedule: PointSchedule) -> Result<Header, Error> {
        Ok(self.point_change(PointChange::SetSchedule(schedule)).await?.0)
    }

    /// Ends a schedule; the points that it made stay.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] where there is none of that name; see [`Error`].
    pub async fn point_unschedule(&self, name: &str) -> Result<Header, Error> {
        Ok(self.point_change(PointChange::RemoveSchedule { name: name.to_owned() }).await?.0)
    }

    /// One page of what differs between a point and now: exactly what a rollback would do. Go on with
    /// [`PointDiffPage::next`] and the revision of the first page until there is no next.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] for an unknown point, [`Refusal::Auth`] without the right to read the range;
    /// see [`Error`].
    pub async fn point_diff(&self, request: PointDiffRequest) -> Result<(Header, PointDiffPage), Error> {
        match self.call(Call::Points(PointCall::Diff(request))).await? {
            (header, Reply::Points(PointsReply::Diff(page))) => Ok((header, page)),
            (_, other) => Err(unexpected(other)),
        }
    }

    /// Puts the keys that begin with `prefix`, or all, back as they were at a point: one new revision whose
    /// events are exactly the differences. Its time goes with what has changed since the point.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] for an unknown point, [`Refusal::Auth`] without the right to read and write the
    /// range; see [`Error`].
    pub async fn rollback(&self, point: &str, prefix: Option<Bytes>) -> Result<(Header, RolledBack), Error> {
        let patient = self.clone().with_patience(ROLLBACK_PATIENCE);
        let (point, author, now) = (point.to_owned(), String::new(), 0);
        match patient.point_change(PointChange::Rollback { point, prefix, author, now }).await? {
            (header, PointReply::RolledBack(done)) => Ok((header, done)),
            (_, other) => Err(unexpected(other)),
        }
    }

    async fn point_change(&self, change: PointChange) -> Result<(Header, PointReply), Error> {
        match self.command(Command::Point(change)).await? {
            (header, Answer::Point(reply)) => Ok((header, reply)),
            (_, other) => Err(unexpected(other)),
        }
    }
}
