//! Counts what test runners say at their end.

/// Tests that ran, summed over all runners.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed.
    pub failed: u64,
}

impl Tally {
    /// Reads one line of a runner's output; other lines count nothing.
    pub fn read(&mut self, line: &str) {
        let Some(found) = closing_line(line) else { return };
        self.add(found);
    }

    /// Adds another count.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }

    /// The plain line that every run ends with.
    pub fn line(&self) -> String {
        format!("{} passed, {} failed", self.passed, self.failed)
    }
}

/// `test result: ok. 5 passed; 0 failed; …`, as libtest says it.
fn closing_line(line: &str) -> Option<Tally> {
    let rest = line.trim().strip_prefix("test result: ")?;
    let (_, counts) = rest.split_once(". ")?;
    let mut tally = Tally::default();
    for part in counts.split(';') {
        let mut words = part.split_whitespace();
        let (Some(number), Some(word)) = (words.next(), words.next()) else { continue };
        match word {
            "passed" => tally.passed = number.parse().ok()?,
            "failed" => tally.failed = number.parse().ok()?,
            _ => {}
        }
    }
    Some(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(lines: &str, expect: (u64, u64)) {
        let mut tally = Tally::default();
        lines.lines().for_each(|line| tally.read(line));
        assert_eq!((tally.passed, tally.failed), expect, "{lines}");
    }

    #[test]
    fn closing_lines_are_summed() {
        check("", (0, 0));
        check("test a ... ok\n5 passed", (0, 0));
        check(
            "test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out; finished in 0.1s\n\
             test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out",
            (8, 2),
        );
        check("test result: what is this", (0, 0));
    }

    #[test]
    fn the_last_line_is_plain() {
        assert_eq!(Tally { passed: 7, failed: 1 }.line(), "7 passed, 1 failed");
    }
}
