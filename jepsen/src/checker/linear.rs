//! The claim: the operations on each key are linearizable, whatever revisions were told.
//!
//! The second opinion: it believes no revision, only who saw what and when. A search in the manner of
//! Wing and Gong, with Lowe's memory of what was tried: take any operation that may come first, replay
//! it, go on; come back where nothing fits. Keys are searched one by one, which loses nothing: what is
//! linearizable for each key is so as a whole. The search is bounded; a key that costs more is counted
//! and left to the witness, never called good.

use std::collections::{BTreeMap, HashSet};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::Verdict;
use crate::history::{Event, Function, Kind, Operation, operations};

/// States of one key that are looked at before it is given up.
const MAX_STATES: usize = 2_000_000;

/// Holds the history to the claim.
pub fn check(history: &[Event]) -> Verdict {
    check_within(history, MAX_STATES)
}

fn check_within(history: &[Event], states: usize) -> Verdict {
    let claim = "linearizable, key by key, by what was seen";
    let operations = match operations(history) {
        Ok(operations) => operations,
        Err(why) => return Verdict { claim, checked: "nothing".into(), breaches: vec![why] },
    };
    let mut keys: BTreeMap<&str, Vec<Call>> = BTreeMap::new();
    for operation in &operations {
        let Some(key) = operation.invoke.key.as_deref() else { continue };
        keys.entry(key).or_default().extend(Call::of(operation));
    }
    let (mut searched, mut given_up, mut breaches) = (0, Vec::new(), Vec::new());
    for (key, calls) in &keys {
        match Search::new(calls, states).run() {
            Found::Order => searched += calls.len(),
            Found::Nothing(stuck) => breaches.push(format!(
                "{key}: no order of its {} operations gives each what it saw; none can come after {} of them, \
                 event {} (process {}) least of all",
                calls.len(),
                stuck.depth,
                stuck.event,
                stuck.process
            )),
            Found::TooMuch => given_up.push(*key),
        }
    }
    let mut checked = format!("{searched} operations on {} keys", keys.len() - given_up.len());
    if !given_up.is_empty() {
        checked +=
            &format!("; {} keys need more than {states} states: {}", given_up.len(), given_up.join(" "));
    }
    Verdict { claim, checked, breaches }
}

/// What a key held, by number of the write; 0 for nothing.
type Value<'a> = Option<&'a str>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What<'a> {
    Read(Value<'a>),
    Write(&'a str),
    Swap {
        expected: Value<'a>,
        value: &'a str,
    },
    /// Found something else than it expected.
    Kept(Value<'a>),
}

/// One operation on one key.
#[derive(Clone, Debug)]
struct Call<'a> {
    what: What<'a>,
    begin: u64,
    /// `None` for one that may be done at any time later, or never.
    end: Option<u64>,
    process: i64,
}

impl<'a> Call<'a> {
    /// `None` for what has changed nothing and seen nothing.
    fn of(operation: &Operation<'a>) -> Option<Self> {
        let invoke = operation.invoke;
        let value = invoke.value.as_deref();
        let expected = invoke.expected.as_deref();
        let done = operation.done();
        let what = match (invoke.f, operation.outcome(), done) {
            (_, Kind::Fail, _) => return None,
            (Function::Read, Kind::Ok, Some(end)) => What::Read(end.value.as_deref()),
            (Function::Read, _, _) => return None,
            (Function::Write | Function::Add, _, _) => What::Write(value?),
            (Function::Cas, Kind::Ok, Some(end)) if end.swapped == Some(true) => {
                What::Swap { expected, value: value? }
            }
            (Function::Cas, Kind::Ok, Some(end)) => What::Kept(end.value.as_deref()),
            // Where it did not write, nobody saw it do anything.
            (Function::Cas, _, _) => What::Swap { expected, value: value? },
            _ => return None,
        };
        let end = done.map(|end| end.index);
        Some(Self { what, begin: invoke.index, end, process: invoke.process })
    }

    /// What the key must hold for it.
    fn asks(&self) -> Value<'a> {
        match self.what {
            What::Read(value) | What::Kept(value) | What::Swap { expected: value, .. } => value,
            What::Write(_) => None,
        }
    }

    /// What the key holds after it; `None` where it can't be done on `now`.
    fn step(&self, now: Value<'a>) -> Option<Value<'a>> {
        match self.what {
            What::Read(seen) | What::Kept(seen) => (seen == now).then_some(now),
            What::Write(value) => Some(Some(value)),
            What::Swap { expected, value } => (expected == now).then_some(Some(value)),
        }
    }
}

struct Stuck {
    depth: usize,
    event: u64,
    process: i64,
}

enum Found {
    Order,
    Nothing(Stuck),
    TooMuch,
}

/// A number for a set of operations: the numbers of its members, each drawn once, taken together. Two
/// sets of a search have the same with a chance of 1 in 2^80.
type Set = u128;

struct Search<'c, 'a> {
    /// Those that ended and then those that may be done at any time or never; each in the order in
    /// which they began.
    calls: Vec<&'c Call<'a>>,
    /// How many of them ended.
    ended: usize,
    /// Value → who of the others writes it.
    writers: BTreeMap<&'a str, Vec<usize>>,
    numbers: Vec<Set>,
    limit: usize,
    tried: HashSet<(Set, Value<'a>)>,
}

/// One operation further than the level before.
struct Level<'a> {
    value: Value<'a>,
    /// No operation before this one is open, of those that ended.
    first: usize,
    /// What may be done next, tried from the back.
    next: Vec<usize>,
    /// Which of them is being tried.
    chosen: usize,
}

impl<'c, 'a> Search<'c, 'a> {
    fn new(calls: &'c [Call<'a>], limit: usize) -> Self {
        let (mut sorted, open): (Vec<_>, Vec<_>) = calls.iter().partition(|call| call.end.is_some());
        let ended = sorted.len();
        sorted.extend(open);
        let mut chance = ChaCha8Rng::seed_from_u64(calls.len() as u64);
        let numbers = sorted.iter().map(|_| chance.random()).collect();
        let mut writers: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (at, call) in sorted.iter().enumerate().skip(ended) {
            if let What::Write(value) | What::Swap { value, .. } = call.what {
                writers.entry(value).or_default().push(at);
            }
        }
        Self { calls: sorted, ended, writers, numbers, limit, tried: HashSet::new() }
    }

    /// What may be done next: whatever began before any that is open had ended.
    fn level(&self, value: Value<'a>, mut first: usize, done: &[bool]) -> Level<'a> {
        while first < self.ended && done[first] {
            first += 1;
        }
        let (mut open, mut soonest) = (Vec::new(), u64::MAX);
        for (at, is_done) in done.iter().enumerate().take(self.ended).skip(first) {
            if self.calls[at].begin > soonest {
                break;
            }
            if !is_done {
                soonest = soonest.min(self.calls[at].end.unwrap_or(u64::MAX));
                open.push(at);
            }
        }
        open.retain(|&at| self.calls[at].begin < soonest);
        let mut next = self.wanted(&open, value, done, soonest);
        next.extend(open);
        Level { value, first, next, chosen: usize::MAX }
    }

    /// Which of those that need not be done at all may come next. One that nobody sees can be left out
    /// of any order, and one that somebody sees can come just before that: so only those count whose
    /// value one of `open` asks for, or another of them that does.
    fn wanted(&self, open: &[usize], now: Value<'a>, done: &[bool], soonest: u64) -> Vec<usize> {
        let mut asked: Vec<&str> = open.iter().filter_map(|&at| self.calls[at].asks()).collect();
        let mut wanted = Vec::new();
        while let Some(value) = asked.pop() {
            if now == Some(value) {
                continue;
            }
            for &at in self.writers.get(value).into_iter().flatten() {
                let call = self.calls[at];
                if !done[at] && call.begin < soonest && !wanted.contains(&at) {
                    wanted.push(at);
                    asked.extend(call.asks());
                }
            }
        }
        wanted
    }

    fn run(mut self) -> Found {
        let mut done = vec![false; self.calls.len()];
        let (mut set, mut left): (Set, usize) = (0, self.ended);
        let mut stuck = Stuck { depth: 0, event: 0, process: 0 };
        let mut levels = vec![self.level(None, 0, &done)];
        while left > 0 {
            let Some(level) = levels.last_mut() else { return Found::Nothing(stuck) };
            let Some(at) = level.next.pop() else {
                levels.pop();
                if let Some(Level { chosen, .. }) = levels.last() {
                    done[*chosen] = false;
                    set ^= self.numbers[*chosen];
                    left += usize::from(*chosen < self.ended);
                }
                continue;
            };
            let call = self.calls[at];
            let depth = self.ended - left;
            let Some(value) = call.step(level.value) else {
                if depth >= stuck.depth
                    && let Some(event) = call.end
                {
                    stuck = Stuck { depth, event, process: call.process };
                }
                continue;
            };
            if !self.tried.insert((set ^ self.numbers[at], value)) {
                continue;
            }
            if self.tried.len() > self.limit {
                return Found::TooMuch;
            }
            level.chosen = at;
            let first = level.first;
            done[at] = true;
            set ^= self.numbers[at];
            left -= usize::from(at < self.ended);
            levels.push(self.level(value, first, &done));
        }
        Found::Order
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn call(what: What<'static>, begin: u64, end: Option<u64>) -> Call<'static> {
        Call { what, begin, end, process: 1 }
    }

    fn good(calls: &[Call]) -> bool {
        matches!(Search::new(calls, MAX_STATES).run(), Found::Order)
    }

    const X: What = What::Write("x");
    const Y: What = What::Write("y");
    const SAW_X: What = What::Read(Some("x"));
    const SAW_Y: What = What::Read(Some("y"));
    const SAW_NOTHING: What = What::Read(None);

    #[test]
    fn one_after_the_other() {
        assert!(good(&[call(X, 0, Some(1)), call(SAW_X, 2, Some(3))]));
        assert!(!good(&[call(X, 0, Some(1)), call(SAW_NOTHING, 2, Some(3))]));
        assert!(!good(&[call(SAW_X, 0, Some(1)), call(X, 2, Some(3))]));
    }

    #[test]
    fn at_the_same_time_any_order_will_do_but_one_for_all() {
        let beside = [call(X, 0, Some(9)), call(SAW_NOTHING, 1, Some(2)), call(SAW_X, 3, Some(4))];
        assert!(good(&beside));
        let back = [call(X, 0, Some(9)), call(SAW_X, 1, Some(2)), call(SAW_NOTHING, 3, Some(4))];
        assert!(!good(&back));
        // Two readers that saw two writes in opposite orders.
        let opposite = [
            call(X, 0, Some(20)),
            call(Y, 1, Some(21)),
            call(SAW_X, 2, Some(3)),
            call(SAW_Y, 4, Some(5)),
            call(SAW_X, 6, Some(7)),
        ];
        assert!(!good(&opposite));
    }

    #[test]
    fn what_nobody_knows_the_end_of_is_done_late_or_never_and_once() {
        assert!(good(&[call(X, 0, None), call(SAW_NOTHING, 1, Some(2))]));
        assert!(good(&[call(X, 0, None), call(SAW_NOTHING, 1, Some(2)), call(SAW_X, 3, Some(4))]));
        let twice = [
            call(X, 0, None),
            call(SAW_X, 1, Some(2)),
            call(Y, 3, Some(4)),
            call(SAW_Y, 5, Some(6)),
            call(SAW_X, 7, Some(8)),
        ];
        assert!(!good(&twice));
    }

    #[test]
    fn compare_and_set() {
        let swap = What::Swap { expected: Some("x"), value: "y" };
        assert!(good(&[call(X, 0, Some(1)), call(swap, 2, Some(3)), call(SAW_Y, 4, Some(5))]));
        assert!(!good(&[call(swap, 2, Some(3))]));
        // Two that both found x.
        let other = What::Swap { expected: Some("x"), value: "z" };
        assert!(!good(&[call(X, 0, Some(1)), call(swap, 2, Some(9)), call(other, 3, Some(8))]));
        let maybe = swap;
        assert!(good(&[
            call(X, 0, Some(1)),
            call(maybe, 2, None),
            call(SAW_X, 4, Some(5)),
            call(SAW_Y, 6, Some(7))
        ]));
        assert!(!good(&[call(maybe, 2, None), call(SAW_Y, 6, Some(7))]));
    }

    #[test]
    fn a_history_is_taken_key_by_key_and_its_breach_named() {
        let lines = [
            r#""process":1,"type":"invoke","f":"write","key":"a","value":"x""#,
            r#""process":1,"type":"ok","f":"write","key":"a","value":"x","revision":2"#,
            r#""process":2,"type":"invoke","f":"read","key":"a""#,
            r#""process":2,"type":"ok","f":"read","key":"a","revision":2"#,
        ];
        super::super::expect(check, &lines, Some("a: no order of its 2 operations"));
        super::super::expect(check, &lines[..3], None);
    }

    #[test]
    fn a_key_that_costs_too_much_is_counted_and_not_called_good() {
        let mut lines: Vec<String> = Vec::new();
        for process in 0..12 {
            lines.push(format!(
                r#"{{"process":{process},"type":"invoke","f":"write","key":"a","value":"{process}"}}"#
            ));
        }
        lines.push(r#"{"process":99,"type":"invoke","f":"read","key":"a"}"#.into());
        lines.push(r#"{"process":99,"type":"ok","f":"read","key":"a","value":"?"}"#.into());
        for process in 0..12 {
            lines.push(format!(
                r#"{{"process":{process},"type":"ok","f":"write","key":"a","value":"{process}"}}"#
            ));
        }
        let history = crate::history::parse(&lines.join("\n")).unwrap();
        let verdict = check_within(&history, 100);
        assert!(
            verdict.checked.contains("0 operations") && verdict.checked.contains("1 keys need"),
            "{verdict:?}"
        );
    }

    /// Tries every order.
    fn by_force(calls: &[Call<'static>], done: u32, now: Value<'static>) -> bool {
        let left = |at: usize| done >> at & 1 == 0;
        if (0..calls.len()).all(|at| !left(at) || calls[at].end.is_none()) {
            return true;
        }
        (0..calls.len()).filter(|&at| left(at)).any(|at| {
            let first = (0..calls.len())
                .filter(|&other| other != at && left(other))
                .all(|other| calls[other].end.is_none_or(|end| end > calls[at].begin));
            first && calls[at].step(now).is_some_and(|next| by_force(calls, done | 1 << at, next))
        })
    }

    fn any_call() -> impl Strategy<Value = (usize, u64, u64, bool)> {
        (0usize..7, 0u64..30, 1u64..12, prop::bool::weighted(0.4))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn it_finds_an_order_exactly_where_there_is_one(drawn in prop::collection::vec(any_call(), 1..8)) {
            let kinds = [
                X, Y, SAW_X, SAW_Y, SAW_NOTHING,
                What::Swap { expected: Some("x"), value: "y" },
                What::Swap { expected: Some("y"), value: "x" },
            ];
            let mut calls: Vec<Call> = (0..).zip(&drawn).map(|(number, &(kind, begin, long, open))| {
                // No two events at one time.
                let (begin, end) = (begin * 16 + number, (begin + long) * 16 + number + 8);
                let open = open && !matches!(kinds[kind], What::Read(_));
                call(kinds[kind], begin, (!open).then_some(end))
            }).collect();
            calls.sort_by_key(|call| call.begin);
            prop_assert_eq!(good(&calls), by_force(&calls, 0, None));
        }
    }
}
