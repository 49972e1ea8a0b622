//! What the clients saw: one event when an operation begins and one when it ends, in one order.
//!
//! The index is the order in real time: an operation that ended at a lower index than another
//! began at had ended before that one began.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// The process that events of the nemesis carry.
pub const NEMESIS: i64 = -1;

/// What an event says of its operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It begins.
    #[default]
    Invoke,
    /// It was done.
    Ok,
    /// It was certainly not done.
    Fail,
    /// Nobody knows, or it is no operation at all.
    Info,
}

/// What is done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Function {
    /// Reads a key, linearizably.
    #[default]
    Read,
    /// Writes a key.
    Write,
    /// Writes a key if it holds `expected`.
    Cas,
    /// Adds an element to the set: writes a key that nobody else writes.
    Add,
    /// Reads lists and appends to lists, all or nothing: `txn`.
    Txn,
    /// Reads the whole set once all is healed.
    FinalRead,
    /// Starts to watch at `revision` (invoke), was told one change (ok), has to start anew (info).
    Watch,
    /// A fault begins; `value` names it, `elements` whom it meets.
    Break,
    /// A fault ends.
    Heal,
}

/// One step of a transaction on lists.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "f", rename_all = "lowercase")]
pub enum Step {
    /// Reads a list.
    R {
        /// Its key.
        k: String,
        /// What was in it; `None` where that is not known (yet).
        v: Option<Vec<String>>,
    },
    /// Appends to a list an element that nobody else appends anywhere.
    Append {
        /// Its key.
        k: String,
        /// The element.
        v: String,
    },
}

/// One line of a history.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Event {
    /// Its place in the history.
    #[serde(default)]
    pub index: u64,
    /// Nanoseconds since the history began.
    #[serde(default)]
    pub time: u64,
    /// Who does it. A client whose operation has an unknown outcome goes on under a new number.
    pub process: i64,
    /// Whether it begins or how it ended.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// What is done.
    pub f: Function,
    /// The key concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What is written (never the same value twice), or what was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What a compare-and-set expects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// Whether a compare-and-set wrote; where it did not, `value` is what it found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub swapped: Option<bool>,
    /// The revision at which what was read had been written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found_at: Option<i64>,
    /// The set's elements, or the members that a fault meets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub elements: Vec<String>,
    /// A transaction's steps, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub txn: Vec<Step>,
    /// The member that answered, or that was to be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The store's revision with the answer; a write's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<i64>,
    /// The term of the leader behind the answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub term: Option<u64>,
    /// How it went wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Reads a history of one event in JSON on each line.
///
/// # Errors
/// The number of the first line that is no event, and why.
pub fn parse(text: &str) -> Result<Vec<Event>, String> {
    let mut events: Vec<Event> = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(number, line)| {
            serde_json::from_str(line).map_err(|error| format!("line {}: {error}", number + 1))
        })
        .collect::<Result<_, _>>()?;
    (0..).zip(&mut events).for_each(|(index, event)| event.index = index);
    Ok(events)
}

impl Event {
    /// Whether a client's operation was done; watches and the last look are none.
    pub fn is_operation_done(&self) -> bool {
        self.kind == Kind::Ok && !matches!(self.f, Function::Watch | Function::FinalRead)
    }
}

struct Book {
    events: Vec<Event>,
    /// Operations of clients that were done.
    operations: u64,
    file: BufWriter<File>,
}

/// Where everybody writes down what happens. Clones share one history.
#[derive(Clone)]
pub struct Recorder {
    began: Instant,
    book: Arc<Mutex<Book>>,
}

impl Recorder {
    /// A history that is kept in memory and written to `path` as it happens.
    ///
    /// # Errors
    /// The file can't be made.
    pub fn new(path: &Path) -> Result<Self, String> {
        let file = File::create(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let book = Book { events: Vec::new(), operations: 0, file: BufWriter::new(file) };
        Ok(Self { began: Instant::now(), book: Arc::new(Mutex::new(book)) })
    }

    /// Puts the event at the end of the history.
    ///
    /// # Panics
    /// When the file can't be written: a run without its history proves nothing.
    pub fn record(&self, mut event: Event) {
        let mut book = self.book.lock();
        event.index = book.events.len() as u64;
        event.time = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let line = serde_json::to_string(&event).expect("an event is JSON");
        writeln!(book.file, "{line}").expect("the history's file can be written");
        book.operations += u64::from(event.is_operation_done());
        book.events.push(event);
    }

    /// How many operations of clients were done so far.
    pub fn operations(&self) -> u64 {
        self.book.lock().operations
    }

    /// The history so far; all of it is in the file then.
    ///
    /// # Panics
    /// When the file can't be written.
    pub fn events(&self) -> Vec<Event> {
        let mut book = self.book.lock();
        book.file.flush().expect("the history's file can be written");
        book.events.clone()
    }
}

/// An operation as a whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation<'a> {
    /// How it began.
    pub invoke: &'a Event,
    /// How it ended, if it did.
    pub end: Option<&'a Event>,
}

impl<'a> Operation<'a> {
    /// How it ended; `Info` where it did not.
    pub fn outcome(&self) -> Kind {
        self.end.map_or(Kind::Info, |end| end.kind)
    }

    /// The end of one that was done.
    pub fn done(&self) -> Option<&'a Event> {
        self.end.filter(|end| end.kind == Kind::Ok)
    }

    /// Whether it changes the store when it is done.
    pub fn writes(&self) -> bool {
        matches!(self.invoke.f, Function::Write | Function::Add | Function::Cas)
    }
}

/// The clients' operations, in the order in which they began. Watches and faults are not among them.
///
/// # Errors
/// A process that begins an operation within another, or ends one it has not begun.
pub fn operations(history: &[Event]) -> Result<Vec<Operation<'_>>, String> {
    let mut open = std::collections::BTreeMap::new();
    let mut operations: Vec<Operation> = Vec::new();
    for event in history {
        if matches!(event.f, Function::Watch | Function::Break | Function::Heal) {
            continue;
        }
        if event.kind == Kind::Invoke {
            if open.insert(event.process, operations.len()).is_some() {
                return Err(format!("event {}: process {} is busy", event.index, event.process));
            }
            operations.push(Operation { invoke: event, end: None });
        } else {
            let Some(at) = open.remove(&event.process) else {
                return Err(format!("event {}: process {} has begun nothing", event.index, event.process));
            };
            operations[at].end = Some(event);
        }
    }
    Ok(operations)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let event = Event {
            process: 3,
            kind: Kind::Ok,
            f: Function::FinalRead,
            elements: vec!["s/1".into()],
            node: Some("n1".into()),
            revision: Some(7),
            ..Event::default()
        };
        let line = serde_json::to_string(&event).unwrap();
        assert!(line.contains("\"type\":\"ok\",\"f\":\"final-read\""), "{line}");
        assert_eq!(parse(&line).unwrap(), [event]);
        assert!(parse("{}").unwrap_err().starts_with("line 1"));
    }

    #[test]
    fn operations_are_paired_by_process() {
        let text = r#"
            {"process":1,"type":"invoke","f":"read"}
            {"process":2,"type":"invoke","f":"read"}
            {"process":1,"type":"ok","f":"read"}
            {"process":-1,"type":"info","f":"break"}"#;
        let history = parse(text).unwrap();
        let operations = operations(&history).unwrap();
        let ends: Vec<Kind> = operations.iter().map(Operation::outcome).collect();
        assert_eq!(ends, [Kind::Ok, Kind::Info]);
    }

    #[test]
    fn a_process_does_one_thing_at_a_time() {
        let check = |text: &str| assert!(operations(&parse(text).unwrap()).is_err(), "{text}");
        check("{\"process\":1,\"type\":\"ok\",\"f\":\"read\"}");
        check(
            "{\"process\":1,\"type\":\"invoke\",\"f\":\"read\"}\n{\"process\":1,\"type\":\"invoke\",\"f\":\"read\"}",
        );
    }

    #[test]
    fn the_recorder_keeps_one_order_in_memory_and_in_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.jsonl");
        let recorder = Recorder::new(&path).unwrap();
        (0..3).for_each(|process| recorder.record(Event { process, ..Event::default() }));
        let events = recorder.events();
        assert_eq!(events.iter().map(|event| event.index).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(parse(&std::fs::read_to_string(path).unwrap()).unwrap(), events);
    }
}
