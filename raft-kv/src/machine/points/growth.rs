//! What a rollback would do to the live bytes, without doing it.

use super::records::point;
use super::segments::ChangedSince;
use crate::error::StorageFailed;
use crate::machine::format::Stored;
use crate::machine::store::Read;
use crate::machine::versions::{superseded_at, version_at};
use crate::types::{PointChange, point_range};

/// By how many bytes the live keys and values would grow; less than 0 where they would shrink. 0 for
/// what is no rollback, or one to an unknown point. Reads records and no values; holds one key at a
/// time. Its cost goes with what has changed since the point.
pub fn growth(view: &dyn Read, change: &PointChange) -> Result<i128, StorageFailed> {
    let PointChange::Rollback { point: name, prefix, .. } = change else { return Ok(0) };
    let Some(point) = point(view, name)? else { return Ok(0) };
    let mut grown = 0;
    for key in ChangedSince::new(view, point.revision, &point_range(prefix.as_ref()), None)? {
        let key = key?;
        let now = version_at(view, &key, None)?;
        if now.as_ref().is_some_and(|now| now.mod_revision <= point.revision) {
            continue;
        }
        let then = superseded_at(view, &key, point.revision)?.map(|(_, past)| past.stored);
        let size = |version: Option<Stored>| version.map_or(0, |it| (key.len() + it.value_len()) as i128);
        grown += size(then) - size(now);
    }
    Ok(grown)
}
