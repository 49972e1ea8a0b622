//! The claim: transactions on lists are strictly serializable: there is one order of all of them that
//! explains every list that was read, and that no later transaction comes before an earlier one in.
//!
//! As Elle does it: a list tells the order of its writers, and so which transaction depends on which;
//! dependencies that form a circle have no order. Circles are named as Adya does: G0 (writes only),
//! G1c (writes and reads), G-single (one overlooked write), G2 (several), each alone or only together
//! with the order in time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Verdict;
use crate::history::{Event, Function, Kind, Operation, Step, operations};

/// Why one transaction comes before another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Why {
    /// It wrote what the other wrote behind.
    WriteWrite,
    /// It wrote what the other read.
    WriteRead,
    /// It did not see what the other wrote.
    ReadWrite,
    /// It had ended when the other began.
    Time,
}

/// Holds the history to the claim.
pub fn check(history: &[Event]) -> Verdict {
    let claim = "transactions on lists have one order in time";
    let operations = match operations(history) {
        Ok(operations) => operations,
        Err(why) => return Verdict { claim, checked: "nothing".into(), breaches: vec![why] },
    };
    let transactions: Vec<&Operation> = operations.iter().filter(|op| op.invoke.f == Function::Txn).collect();
    let mut graph = Graph::new(&transactions);
    graph.gather();
    graph.order_lists();
    graph.order_time(history);
    graph.find_circles();
    let elements: usize = graph.lists.values().map(|list| list.len()).sum();
    let checked = format!(
        "{} transactions on {} lists, {elements} elements in their order",
        transactions.iter().filter(|op| op.outcome() == Kind::Ok).count(),
        graph.lists.len()
    );
    Verdict { claim, checked, breaches: graph.breaches }
}

struct Graph<'a> {
    transactions: &'a [&'a Operation<'a>],
    /// (list, element) → who appends it.
    writers: BTreeMap<(&'a str, &'a str), usize>,
    /// list → its longest known content.
    lists: BTreeMap<&'a str, &'a [String]>,
    /// list → who read it, and what.
    readers: BTreeMap<&'a str, Vec<(usize, &'a [String])>>,
    edges: Vec<BTreeMap<usize, Why>>,
    breaches: Vec<String>,
}

impl<'a> Graph<'a> {
    fn new(transactions: &'a [&'a Operation<'a>]) -> Self {
        Self {
            transactions,
            writers: BTreeMap::new(),
            lists: BTreeMap::new(),
            readers: BTreeMap::new(),
            edges: vec![BTreeMap::new(); transactions.len()],
            breaches: Vec::new(),
        }
    }

    fn name(&self, at: usize) -> String {
        let operation = self.transactions[at];
        let event = operation.end.unwrap_or(operation.invoke);
        format!("event {} (process {})", event.index, event.process)
    }

    fn breach(&mut self, at: usize, why: impl std::fmt::Display) {
        let name = self.name(at);
        self.breaches.push(format!("{name}: {why}"));
    }

    /// The strongest reason counts: a circle is named by what it needs at least.
    fn edge(&mut self, from: usize, to: usize, why: Why) {
        if from != to {
            let known = self.edges[from].entry(to).or_insert(why);
            *known = why.min(*known);
        }
    }

    /// Who appends what, who read what, and each list's longest content.
    fn gather(&mut self) {
        for (at, operation) in self.transactions.iter().enumerate() {
            for step in &operation.invoke.txn {
                if let Step::Append { k, v } = step
                    && self.writers.insert((k, v), at).is_some()
                {
                    self.breach(at, format_args!("{v} is appended to {k} twice: the workload is at fault"));
                }
            }
        }
        for (at, operation) in self.transactions.iter().enumerate() {
            let Some(end) = operation.done() else { continue };
            let mut own: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for step in &end.txn {
                match step {
                    Step::Append { k, v } => own.entry(k).or_default().push(v),
                    Step::R { k, v } => {
                        let list = v.as_deref().unwrap_or_default();
                        let mine = own.get(k.as_str()).map(Vec::as_slice).unwrap_or_default();
                        let (before, after) = list.split_at(list.len().saturating_sub(mine.len()));
                        if after != mine {
                            self.breach(at, format_args!("it does not see in {k} what it appended itself"));
                            continue;
                        }
                        self.readers.entry(k).or_default().push((at, before));
                        let longest = self.lists.entry(k).or_insert(before);
                        if before.len() > longest.len() {
                            *longest = before;
                        }
                    }
                }
            }
        }
    }

    /// What the lists say of who came before whom.
    fn order_lists(&mut self) {
        for (key, list) in self.lists.clone() {
            let mut seen = BTreeSet::new();
            if let Some(twice) = list.iter().find(|element| !seen.insert(element.as_str())) {
                self.breaches.push(format!("{key}: {twice} is in it twice"));
            }
            let writers: Vec<Option<usize>> =
                list.iter().map(|element| self.writers.get(&(key, element.as_str())).copied()).collect();
            for pair in writers.windows(2) {
                if let [Some(one), Some(other)] = pair {
                    self.edge(*one, *other, Why::WriteWrite);
                }
            }
            // Appended for certain, and in no list that was read: behind everybody who read.
            let unread: Vec<usize> = (self.writers.range((key, "")..))
                .take_while(|((of, _), _)| *of == key)
                .filter(|((_, element), at)| {
                    self.transactions[**at].done().is_some() && !seen.contains(*element)
                })
                .map(|(_, at)| *at)
                .collect();
            for (reader, read) in self.readers[key].clone() {
                self.order_reader(reader, key, read, list, &writers);
                unread.iter().for_each(|&writer| self.edge(reader, writer, Why::ReadWrite));
            }
        }
    }

    fn order_reader(
        &mut self,
        reader: usize,
        key: &'a str,
        read: &'a [String],
        list: &'a [String],
        writers: &[Option<usize>],
    ) {
        if !list.starts_with(read) {
            self.breach(reader, format_args!("what it read of {key} is no beginning of what others read"));
            return;
        }
        if let Some(next) = writers.get(read.len()).copied().flatten() {
            self.edge(reader, next, Why::ReadWrite);
        }
        for (element, writer) in read.iter().zip(writers) {
            match writer {
                None => self.breach(reader, format_args!("{element} in {key} was appended by nobody")),
                Some(writer) if self.transactions[*writer].outcome() == Kind::Fail => {
                    self.breach(reader, format_args!("G1a: {element} in {key} was certainly not appended"));
                }
                Some(_) => {}
            }
        }
        let Some(writer) = writers[..read.len()].last().copied().flatten() else { return };
        self.edge(writer, reader, Why::WriteRead);
        // It saw a state in the midst of another transaction.
        if writer != reader && writers.get(read.len()).copied().flatten() == Some(writer) {
            self.breach(reader, format_args!("G1b: it saw a part of what {} did", self.name(writer)));
        }
    }

    /// Who had ended before somebody else began, with no edge that others imply.
    fn order_time(&mut self, history: &'a [Event]) {
        let begins: BTreeMap<u64, usize> =
            (0..).zip(self.transactions).map(|(at, op)| (op.invoke.index, at)).collect();
        let ends: BTreeMap<u64, usize> = (0..)
            .zip(self.transactions)
            .filter_map(|(at, op)| op.done().map(|end| (end.index, at)))
            .collect();
        // Ended, and not before another of them began.
        let mut front: BTreeSet<usize> = BTreeSet::new();
        let mut before: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for event in history {
            if let Some(&at) = begins.get(&event.index) {
                front.iter().for_each(|&earlier| self.edge(earlier, at, Why::Time));
                before.insert(at, front.clone());
            } else if let Some(&at) = ends.get(&event.index) {
                let earlier = before.remove(&at).unwrap_or_default();
                front.retain(|one| !earlier.contains(one));
                front.insert(at);
            }
        }
    }

    fn find_circles(&mut self) {
        use Why::{ReadWrite, Time, WriteRead, WriteWrite};
        let levels: [(&str, &[Why]); 6] = [
            ("G0", &[WriteWrite]),
            ("G1c", &[WriteWrite, WriteRead]),
            ("G2", &[WriteWrite, WriteRead, ReadWrite]),
            ("G0 in time", &[WriteWrite, Time]),
            ("G1c in time", &[WriteWrite, WriteRead, Time]),
            ("G2 in time", &[WriteWrite, WriteRead, ReadWrite, Time]),
        ];
        for (name, allowed) in levels {
            if let Some(circle) = self.circle(allowed) {
                let steps: Vec<String> = (circle.iter().zip(circle.iter().cycle().skip(1)))
                    .map(|(&from, to)| format!("{} -{:?}->", self.name(from), self.edges[from][to]))
                    .collect();
                let overlooked = (circle.iter().zip(circle.iter().cycle().skip(1)))
                    .filter(|(from, to)| self.edges[**from][to] == ReadWrite)
                    .count();
                let name = if overlooked == 1 { name.replace("G2", "G-single") } else { name.to_owned() };
                self.breaches.push(format!("{name}: {} and round again", steps.join(" ")));
                // The weaker ones have the same cause.
                return;
            }
        }
    }

    /// A short circle of such edges, if there is one.
    fn circle(&self, allowed: &[Why]) -> Option<Vec<usize>> {
        let next =
            |at: usize| self.edges[at].iter().filter(|(_, why)| allowed.contains(why)).map(|(to, _)| *to);
        // What is left once all that nothing points to is taken away again and again has circles.
        let mut pointed = vec![0usize; self.edges.len()];
        (0..self.edges.len()).flat_map(next).for_each(|to| pointed[to] += 1);
        let mut free: Vec<usize> = (0..pointed.len()).filter(|&at| pointed[at] == 0).collect();
        while let Some(at) = free.pop() {
            for to in next(at) {
                pointed[to] -= 1;
                if pointed[to] == 0 {
                    free.push(to);
                }
            }
        }
        let left = (0..pointed.len()).filter(|&at| pointed[at] > 0);
        // Some of what is left only hangs on a circle; the first with a way back to itself is on one.
        left.clone().find_map(|start| {
            let mut came: BTreeMap<usize, usize> = BTreeMap::new();
            let mut reached = VecDeque::from([start]);
            while let Some(at) = reached.pop_front() {
                for to in next(at).filter(|&to| pointed[to] > 0) {
                    if to == start {
                        let mut circle = vec![at];
                        while let Some(&from) = came.get(circle.last().expect("it has one")) {
                            circle.push(from);
                        }
                        circle.reverse();
                        return Some(circle);
                    }
                    if let std::collections::btree_map::Entry::Vacant(place) = came.entry(to) {
                        place.insert(at);
                        reached.push_back(to);
                    }
                }
            }
            None
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::expect;

    /// Lines from (process, type, steps): `a+1` appends 1 to a, `a=1,2` read that of a.
    fn check(lines: &[(i64, &str, &str)], breach: Option<&str>) {
        let lines: Vec<String> = lines
            .iter()
            .map(|(process, kind, steps)| {
                let steps: Vec<String> = steps
                    .split_whitespace()
                    .map(|step| match step.split_once('+') {
                        Some((k, v)) => format!(r#"{{"f":"append","k":"{k}","v":"{v}"}}"#),
                        None => {
                            let (k, list) = step.split_once('=').unwrap();
                            let list: Vec<String> = list
                                .split(',')
                                .filter(|v| !v.is_empty())
                                .map(|v| format!("\"{v}\""))
                                .collect();
                            format!(r#"{{"f":"r","k":"{k}","v":[{}]}}"#, list.join(","))
                        }
                    })
                    .collect();
                format!(r#""process":{process},"type":"{kind}","f":"txn","txn":[{}]"#, steps.join(","))
            })
            .collect();
        expect(super::check, &lines.iter().map(String::as_str).collect::<Vec<_>>(), breach);
    }

    /// All at the same time.
    fn beside(transactions: &[&str], breach: Option<&str>) {
        let begin = (1..).zip(transactions).map(|(process, steps)| (process, "invoke", *steps));
        let end = (1..).zip(transactions).map(|(process, steps)| (process, "ok", *steps));
        check(&begin.chain(end).collect::<Vec<_>>(), breach);
    }

    /// One after the other.
    fn in_turn(transactions: &[&str], breach: Option<&str>) {
        let lines: Vec<_> = transactions.iter().flat_map(|t| [(1, "invoke", *t), (1, "ok", *t)]).collect();
        check(&lines, breach);
    }

    #[test]
    fn what_has_an_order_is_good() {
        in_turn(&["a+1", "a+2 b+1", "a=1,2 b=1", "a+3 a=1,2,3"], None);
        beside(&["a+1 b=", "b+1 a=1", "a=1 b=1"], None);
    }

    #[test]
    fn writes_in_a_circle() {
        beside(&["a+1 b+1", "a+2 b+2", "a=1,2", "b=2,1"], Some("G0:"));
    }

    #[test]
    fn information_in_a_circle() {
        beside(&["a+1 b=2", "b+2 a=1"], Some("G1c:"));
    }

    #[test]
    fn a_lost_update() {
        beside(&["a=1 a+2", "a=1 a+3", "a+1", "a=1,2,3"], Some("G-single:"));
    }

    #[test]
    fn a_skewed_write() {
        beside(&["a= b+1", "b= a+1", "a=1 b=1"], Some("G2:"));
    }

    #[test]
    fn old_data_is_read_after_new_was_written() {
        in_turn(&["a+1", "a=", "a=1"], Some("G-single in time:"));
        // Nobody ever saw it.
        in_turn(&["a+1", "a="], Some("G-single in time:"));
        beside(&["a+1", "a=", "a=1"], None);
    }

    #[test]
    fn what_was_not_done_or_half_done_is_seen() {
        check(
            &[(1, "invoke", "a+1"), (1, "fail", "a+1"), (2, "invoke", "a="), (2, "ok", "a=1")],
            Some("G1a:"),
        );
        beside(&["a+1 a+2", "a=1", "a=1,2"], Some("G1b:"));
        beside(&["a=7"], Some("by nobody"));
        // An unknown end is either.
        check(&[(1, "invoke", "a+1"), (1, "info", "a+1"), (2, "invoke", "a="), (2, "ok", "a=1")], None);
        check(&[(1, "invoke", "a+1"), (1, "info", "a+1"), (2, "invoke", "a="), (2, "ok", "a=")], None);
    }

    #[test]
    fn lists_that_contradict_each_other_or_themselves() {
        beside(&["a+1", "a+2", "a=1,2", "a=2,1"], Some("no beginning"));
        beside(&["a+1", "a=1,1"], Some("twice"));
        beside(&["a+1 a="], Some("appended itself"));
    }
}
