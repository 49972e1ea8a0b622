//! Which sessions a member has, and who of them is to look again: one watch of each kind for all of
//! them, not one for each.
//!
//! It only wakes: what a worker is told is always read (`view`), so that a wake too many costs a read and
//! one too few is late, never wrong.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::super::words::ObjectKey;
use crate::error::Refusal;
use crate::types::NodeId;

/// Names a session among all of all members.
pub type SessionId = [u64; 2];

/// What a session is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Signal {
    /// How often something may have changed.
    pub looks: u64,
    /// A newer session of the node took over.
    pub taken: bool,
}

#[derive(Debug)]
struct Entry {
    id: SessionId,
    signal: watch::Sender<Signal>,
    needs: BTreeSet<ObjectKey>,
}

#[derive(Debug, Default)]
struct Sessions {
    of_node: BTreeMap<NodeId, Entry>,
    needing: BTreeMap<ObjectKey, BTreeSet<NodeId>>,
}

/// The sessions of one member.
#[derive(Debug, Default)]
pub struct Hub(Mutex<Sessions>);

impl Hub {
    /// Adds a session; one of the same node ends.
    ///
    /// # Errors
    /// [`Refusal::TooManySessions`] where there are `max` of other nodes.
    pub fn add(&self, node: NodeId, id: SessionId, max: usize) -> Result<watch::Receiver<Signal>, Refusal> {
        let mut sessions = self.0.lock();
        if sessions.of_node.len() >= max && !sessions.of_node.contains_key(&node) {
            return Err(Refusal::TooManySessions);
        }
        sessions.drop_of(node);
        let (signal, listen) = watch::channel(Signal::default());
        sessions.of_node.insert(node, Entry { id, signal, needs: BTreeSet::new() });
        Ok(listen)
    }

    /// The session is over.
    pub fn remove(&self, node: NodeId, id: SessionId) {
        let mut sessions = self.0.lock();
        if sessions.of_node.get(&node).is_some_and(|entry| entry.id == id) {
            sessions.drop_of(node);
        }
    }

    /// The session's worker holds these objects.
    pub fn needs<'a>(&self, node: NodeId, id: SessionId, keys: impl Iterator<Item = &'a ObjectKey>) {
        let mut sessions = self.0.lock();
        let Sessions { of_node, needing } = &mut *sessions;
        let Some(entry) = of_node.get_mut(&node).filter(|entry| entry.id == id) else { return };
        let now: BTreeSet<ObjectKey> = keys.cloned().collect();
        for gone in entry.needs.difference(&now) {
            let left = needing.get_mut(gone).map(|nodes| {
                nodes.remove(&node);
                nodes.is_empty()
            });
            if left == Some(true) {
                needing.remove(gone);
            }
        }
        for new in now.difference(&entry.needs) {
            needing.entry(new.clone()).or_default().insert(node);
        }
        entry.needs = now;
    }

    /// Something of the node's tasks changed.
    pub fn tasks_changed(&self, node: NodeId) {
        if let Some(entry) = self.0.lock().of_node.get(&node) {
            entry.signal.send_modify(|signal| signal.looks += 1);
        }
    }

    /// The object changed.
    pub fn object_changed(&self, key: &ObjectKey) {
        let sessions = self.0.lock();
        for node in sessions.needing.get(key).into_iter().flatten() {
            if let Some(entry) = sessions.of_node.get(node) {
                entry.signal.send_modify(|signal| signal.looks += 1);
            }
        }
    }

    /// The node's newest session, anywhere, is this one.
    pub fn newest_is(&self, node: NodeId, id: SessionId) {
        if let Some(entry) = self.0.lock().of_node.get(&node)
            && entry.id != id
        {
            entry.signal.send_modify(|signal| signal.taken = true);
        }
    }

    /// Anything may have changed.
    pub fn all_changed(&self) {
        for entry in self.0.lock().of_node.values() {
            entry.signal.send_modify(|signal| signal.looks += 1);
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.lock().of_node.len()
    }
}

impl Sessions {
    fn drop_of(&mut self, node: NodeId) {
        let Some(entry) = self.of_node.remove(&node) else { return };
        entry.signal.send_modify(|signal| signal.taken = true);
        for key in entry.needs {
            if let Some(nodes) = self.needing.get_mut(&key) {
                nodes.remove(&node);
                if nodes.is_empty() {
                    self.needing.remove(&key);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(id: &str) -> ObjectKey {
        ObjectKey { kind: "secret".into(), id: id.into() }
    }

    #[test]
    fn only_whom_it_concerns_is_woken() {
        let hub = Hub::default();
        let one = hub.add(NodeId(1), [1, 0], 10).unwrap();
        let two = hub.add(NodeId(2), [2, 0], 10).unwrap();
        let looks = || (one.borrow().looks, two.borrow().looks);
        hub.needs(NodeId(1), [1, 0], [object("a"), object("b")].iter());
        hub.needs(NodeId(2), [2, 0], [object("b")].iter());
        hub.tasks_changed(NodeId(1));
        assert_eq!(looks(), (1, 0));
        hub.object_changed(&object("b"));
        assert_eq!(looks(), (2, 1));
        hub.object_changed(&object("a"));
        assert_eq!(looks(), (3, 1));
        hub.needs(NodeId(1), [1, 0], [object("b")].iter());
        hub.object_changed(&object("a"));
        assert_eq!(looks(), (3, 1));
        hub.remove(NodeId(1), [1, 0]);
        hub.remove(NodeId(2), [2, 0]);
        assert!(hub.0.lock().needing.is_empty());
        assert_eq!(hub.len(), 0);
    }

    #[test]
    fn a_newer_session_ends_the_older_one_and_room_is_bounded() {
        let hub = Hub::default();
        let old = hub.add(NodeId(1), [1, 0], 2).unwrap();
        let new = hub.add(NodeId(1), [2, 0], 2).unwrap();
        assert!(old.borrow().taken && !new.borrow().taken);
        hub.remove(NodeId(1), [1, 0]);
        assert_eq!(hub.len(), 1, "the old one's end does not end the new one");
        hub.newest_is(NodeId(1), [2, 0]);
        assert!(!new.borrow().taken);
        hub.newest_is(NodeId(1), [3, 0]);
        assert!(new.borrow().taken);
        let _other = hub.add(NodeId(2), [4, 0], 2).unwrap();
        assert_eq!(hub.add(NodeId(3), [5, 0], 2).map(drop), Err(Refusal::TooManySessions));
        assert!(hub.add(NodeId(2), [6, 0], 2).is_ok());
    }
}
