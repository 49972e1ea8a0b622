//! Reading the values of many keys in their order: those that lie apart are next to each other,
//! so that one scan gives what would take a look-up each.
//!
//! What it gives is what [`Stored::value`] gives; it must not pass over more than a few values
//! that nobody asked for, such as older ones of the same keys.

use bytes::Bytes;

use super::format::{Held, Stored, check_value, past_key};
use super::store::{Pairs, Read, Table};
use crate::error::StorageFailed;

/// Look-ups after which a scan is begun.
const LOOKUPS_BEFORE_SCAN: u32 = 8;
/// Values that a scan passes over before it is given up.
const PASSED_BEFORE_LOOKUP: u32 = 4;

/// Values of keys that are asked for in ascending order; in any other order it is slow.
pub struct ValueReader<'a> {
    view: &'a dyn Read,
    scan: Option<Pairs<'a>>,
    /// Look-ups since the last scan.
    lookups: u32,
}

impl<'a> ValueReader<'a> {
    /// Nothing read yet.
    pub fn new(view: &'a dyn Read) -> Self {
        Self { view, scan: None, lookups: 0 }
    }

    /// The value of a version of `key`.
    pub fn value(&mut self, key: &[u8], stored: &Stored) -> Result<Bytes, StorageFailed> {
        let Held::Apart(bytes) = &stored.value else { return stored.value(self.view, key) };
        let wanted = past_key(key, stored.mod_revision);
        if self.scan.is_none() && self.lookups >= LOOKUPS_BEFORE_SCAN {
            self.scan = Some(self.view.scan(Table::Values, &wanted, None));
        }
        if let Some(scan) = &mut self.scan {
            for pair in scan.take(PASSED_BEFORE_LOOKUP as usize + 1) {
                let (found, value) = pair?;
                if found == wanted {
                    return check_value(Some(value), *bytes);
                }
                if found > wanted {
                    break;
                }
            }
            self.scan = None;
            self.lookups = 0;
        }
        self.lookups += 1;
        check_value(self.view.get(Table::Values, &wanted)?, *bytes)
    }
}
