//! Differences as text, short enough to read, and their kinds.

use crate::ask::Answer;
use crate::watches::{Line, Lines};

/// Letters of one kind that are shown one by one.
const LONGEST_RUN: usize = 24;

/// The first watch whose lines differ.
pub fn watch_difference(etcd: &Lines, ours: &Lines) -> Option<String> {
    for id in etcd.keys().chain(ours.keys()) {
        let nothing = Vec::new();
        let (left, right) = (etcd.get(id).unwrap_or(&nothing), ours.get(id).unwrap_or(&nothing));
        if left == right {
            continue;
        }
        let at = left.iter().zip(right).take_while(|(a, b)| a == b).count();
        let show = |lines: &[Line]| {
            let shown: Vec<String> = lines.iter().skip(at).take(2).map(|line| format!("{line:?}")).collect();
            format!("({} lines) {}", lines.len(), shown.join(", "))
        };
        return Some(format!(
            "    watch {id}, from line {at}:\n    etcd: {}\n    ours: {}",
            show(left),
            show(right)
        ));
    }
    None
}

/// A refusal by its code and text.
pub fn refused(answer: &Answer) -> String {
    match answer {
        Answer::Refused { code, text } => format!("{code} {}", cut(text, 80)),
        _ => "done".to_owned(),
    }
}

/// The kind of a difference between two answers.
pub fn shape(etcd: &Answer, ours: &Answer, shown: &str) -> String {
    match (etcd, ours) {
        (Answer::Refused { .. }, _) | (_, Answer::Refused { .. }) => {
            format!("etcd [{}] ours [{}]", refused(etcd), refused(ours))
        }
        _ => cut(&letters(shown), 90),
    }
}

/// `text` without its numbers and values.
pub fn letters(text: &str) -> String {
    let words = text.split_whitespace().filter(|word| !word.chars().any(|c| c.is_ascii_digit() || c == '"'));
    words.collect::<Vec<_>>().join(" ")
}

/// `text` with long runs of one letter, as large values have, told by their length, and not longer
/// than `most`.
pub fn cut(text: &str, most: usize) -> String {
    let mut short = String::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = rest.find(|letter| letter != first).unwrap_or(rest.len());
        if end > LONGEST_RUN {
            short.push_str(&format!("[{first}; {end}]"));
        } else {
            short.push_str(&rest[..end]);
        }
        rest = &rest[end..];
    }
    match short.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &short[..end]),
        None => short,
    }
}
