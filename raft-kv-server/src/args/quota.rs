//! The words of `quota`.

use std::str::FromStr;

use clap::{Args, Subcommand};

use super::ConnectArgs;

/// `quota`.
#[derive(Args, Debug)]
pub struct QuotaArgs {
    /// The connection.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: QuotaCommand,
}

/// The commands of `quota`.
#[derive(Subcommand, Debug)]
pub enum QuotaCommand {
    /// Show what the live keys and values take, and what they may
    Show,
    /// Set what they may take; what there is stays
    Set {
        /// Bytes, or a number with KiB, MiB, GiB or TiB; or `off`
        #[arg(value_name = "BYTES|off")]
        quota: Quota,
    },
}

/// A quota in bytes, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota(pub Option<u64>);

impl FromStr for Quota {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];
        let (number, shift) = units
            .into_iter()
            .find_map(|(unit, shift)| text.strip_suffix(unit).map(|number| (number, shift)))
            .unwrap_or((text, 0));
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let bytes = number.parse::<u64>().ok().filter(|_| digits).and_then(|n| n.checked_mul(1 << shift));
        bytes.map(|bytes| Self(Some(bytes))).ok_or_else(|| "give bytes, such as 16GiB, or `off`".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_is_in_bytes_or_has_a_unit_or_is_off() {
        let check = |text: &str, expect: Option<Option<u64>>| {
            assert_eq!(text.parse::<Quota>().ok().map(|quota| quota.0), expect, "{text:?}");
        };
        check("off", Some(None));
        check("0", Some(Some(0)));
        check("4096", Some(Some(4096)));
        check("2KiB", Some(Some(2048)));
        check("3MiB", Some(Some(3 << 20)));
        check("16GiB", Some(Some(16 << 30)));
        check("1TiB", Some(Some(1 << 40)));
        for wrong in ["", "GiB", "-1", "+1", "1.5GiB", "1GB", "1 GiB", "OFF", "99999999999TiB", "ü"] {
            check(wrong, None);
        }
    }
}
