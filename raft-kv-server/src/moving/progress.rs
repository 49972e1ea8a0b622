//! What people see of a move while it runs, on standard error: one line that changes where it is a
//! terminal, a line now and then elsewhere, JSON where it was asked for. Standard output is for
//! the result alone.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Between two lines on a terminal.
const TERMINAL: Duration = Duration::from_millis(100);
/// Between two lines elsewhere.
const ELSEWHERE: Duration = Duration::from_secs(1);
/// Characters of a full bar.
const BAR: usize = 30;

/// The line.
pub struct Progress {
    json: bool,
    terminal: bool,
    shown: Option<Instant>,
    /// Whether the terminal's line is not ended yet.
    open: bool,
}

impl Progress {
    /// Nothing shown yet.
    pub fn new(json: bool) -> Self {
        Self { json, terminal: std::io::stderr().is_terminal() && !json, shown: None, open: false }
    }

    /// So many of `total` in this stage; shown if the last line is old enough.
    pub fn count(&mut self, stage: &str, done: u64, total: Option<u64>) {
        if self.is_due() {
            let value = json!({ "progress": stage, "done": done, "total": total });
            self.show(&value, &bar(stage, done, total));
        }
    }

    /// Where a mirror is, and how far behind.
    pub fn lag(&mut self, revision: i64, behind: i64) {
        if self.is_due() {
            let value = json!({ "progress": "mirror", "revision": revision, "behind": behind });
            self.show(&value, &format!("mirror   at the source's revision {revision}, {behind} behind"));
        }
    }

    /// Something that happens once.
    pub fn say(&mut self, stage: &str, text: &str) {
        self.done();
        let value = json!({ "progress": stage, "message": text });
        self.show(&value, &format!("{stage:<8} {text}"));
        self.done();
    }

    /// Ends the line.
    pub fn done(&mut self) {
        if std::mem::take(&mut self.open) {
            let _ = writeln!(std::io::stderr());
        }
        self.shown = None;
    }

    fn is_due(&self) -> bool {
        let every = if self.terminal { TERMINAL } else { ELSEWHERE };
        self.shown.is_none_or(|shown| shown.elapsed() >= every)
    }

    fn show(&mut self, value: &Value, text: &str) {
        self.shown = Some(Instant::now());
        let mut out = std::io::stderr().lock();
        // Nobody may be looking.
        let _ = if self.json {
            writeln!(out, "{value}")
        } else if self.terminal {
            self.open = true;
            write!(out, "\r\x1b[K{text}").and_then(|()| out.flush())
        } else {
            writeln!(out, "{text}")
        };
    }
}

fn bar(stage: &str, done: u64, total: Option<u64>) -> String {
    let Some(total) = total.filter(|total| *total > 0) else { return format!("{stage:<8} {done}") };
    let part = done.min(total);
    let full = usize::try_from(part * BAR as u64 / total).unwrap_or(BAR);
    let (full, empty) = ("#".repeat(full), ".".repeat(BAR - full));
    format!("{stage:<8} [{full}{empty}] {done}/{total} {}%", part * 100 / total)
}

#[cfg(test)]
mod tests {
    use super::bar;

    #[test]
    fn a_bar_is_full_at_the_end() {
        let check = |done, total, expect: &str| assert_eq!(bar("copy", done, total), expect);
        check(0, Some(4), "copy     [..............................] 0/4 0%");
        check(2, Some(4), "copy     [###############...............] 2/4 50%");
        check(4, Some(4), "copy     [##############################] 4/4 100%");
        check(5, Some(4), "copy     [##############################] 5/4 100%");
        check(7, None, "copy     7");
        check(7, Some(0), "copy     7");
    }
}
