//! Two answers, and where they are not the same. Knows nothing of reasons.

use std::fmt::Debug;

/// Lines that a difference shows at most.
const SHOWN: usize = 12;

/// What is different, one line for each field; nothing if the values are equal.
pub fn difference<T: Debug + PartialEq>(etcd: &T, ours: &T) -> Option<String> {
    if etcd == ours {
        return None;
    }
    let (left, right) = (format!("{etcd:#?}"), format!("{ours:#?}"));
    let (left, right): (Vec<&str>, Vec<&str>) = (left.lines().collect(), right.lines().collect());
    let head = left.iter().zip(&right).take_while(|(a, b)| a == b).count();
    let most = left.len().min(right.len()) - head;
    let tail = left.iter().rev().zip(right.iter().rev()).take(most).take_while(|(a, b)| a == b).count();
    let part = |name: &str, lines: &[&str]| {
        let lines = &lines[head..lines.len() - tail];
        let shown: Vec<&str> = lines.iter().take(SHOWN).map(|line| line.trim()).collect();
        let more = if lines.len() > SHOWN { " …" } else { "" };
        format!("    {name}: {}{more}", shown.join(" "))
    };
    Some(format!("{}\n{}", part("etcd", &left), part("ours", &right)))
}

#[cfg(test)]
mod tests {
    use super::difference;

    #[test]
    fn only_what_differs_is_shown() {
        let check = |a: Vec<u8>, b: Vec<u8>, expect: Option<&str>| {
            assert_eq!(difference(&a, &b).as_deref(), expect);
        };
        check(vec![1, 2], vec![1, 2], None);
        check(vec![1, 2, 3], vec![1, 7, 3], Some("    etcd: 2,\n    ours: 7,"));
        check(vec![1], vec![1, 2], Some("    etcd: \n    ours: 2,"));
    }
}
