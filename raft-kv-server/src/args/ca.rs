//! The words of `ca`: the cluster's root, and its replacement.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{ConnectArgs, PairArgs, ReachArgs};

/// `ca`.
#[derive(Args, Debug)]
pub struct CaArgs {
    /// The connection, but for `--cert` and `--key`: those of `ca rotate` are the new root's.
    #[command(flatten)]
    pub reach: ReachArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: CaCommand,
}

impl CaArgs {
    /// The connection.
    pub fn connect(&self) -> ConnectArgs {
        let pair = match &self.command {
            CaCommand::Rotate(_) => PairArgs::default(),
            CaCommand::Status { pair, .. } | CaCommand::Abort { pair, .. } | CaCommand::Show { pair } => {
                pair.clone()
            }
        };
        ConnectArgs { reach: self.reach.clone(), pair }
    }
}

/// The commands of `ca`.
#[derive(Subcommand, Debug)]
pub enum CaCommand {
    /// Replace the root while the cluster serves, and wait until the old one is not believed any more
    Rotate(RotateArgs),
    /// Show the roots, how far a replacement is, every node with a certificate, and who is late
    Status {
        /// One line for each change, until no replacement is under way
        #[arg(long)]
        watch: bool,
        /// The client's files.
        #[command(flatten)]
        pair: PairArgs,
    },
    /// Lead a replacement back to the root in force
    Abort {
        /// Return at once
        #[arg(long)]
        detach: bool,
        /// The client's files.
        #[command(flatten)]
        pair: PairArgs,
    },
    /// Print the believed roots (PEM), the one in force first
    Show {
        /// The client's files.
        #[command(flatten)]
        pair: PairArgs,
    },
}

/// `ca rotate`.
#[derive(Args, Debug)]
pub struct RotateArgs {
    /// The new root's certificate, its intermediates before it (PEM) [default: the cluster makes a root]; a
    /// client's own files are given by --cert-dir or the environment here
    #[arg(long = "cert", value_name = "FILE", requires = "root_key")]
    pub root_cert: Option<PathBuf>,
    /// The private key of the first certificate in that file (PEM, PKCS #8)
    #[arg(long = "key", value_name = "FILE", requires = "root_cert")]
    pub root_key: Option<PathBuf>,
    /// When it ends without who is late then: seconds, or a number with s, m, h or d
    #[arg(long, value_name = "TIME", value_parser = parse_time, default_value = "10m")]
    pub deadline: u64,
    /// The old root's key is in wrong hands: end as soon as most members have moved
    #[arg(long)]
    pub stolen: bool,
    /// Return as soon as it has begun
    #[arg(long)]
    pub detach: bool,
}

/// Seconds, from a number with a unit.
pub fn parse_time(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.char_indices().last() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3600),
        Some((at, 'd')) => (&text[..at], 24 * 3600),
        _ => (text, 1),
    };
    let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    let seconds = number.parse::<u64>().ok().filter(|_| digits).and_then(|number| number.checked_mul(unit));
    seconds
        .filter(|seconds| *seconds > 0)
        .ok_or_else(|| "give a time above zero, such as 90s, 10m, 2h or 1d".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_unit_or_is_in_seconds() {
        let check = |text: &str, expect: Option<u64>| assert_eq!(parse_time(text).ok(), expect, "{text:?}");
        check("10m", Some(600));
        check("90s", Some(90));
        check("7", Some(7));
        check("2h", Some(7200));
        check("1d", Some(86400));
        for wrong in ["", "m", "0", "0s", "-1", "+1s", "1.5h", "1w", "99999999999999999999d", "ü"] {
            check(wrong, None);
        }
    }
}
