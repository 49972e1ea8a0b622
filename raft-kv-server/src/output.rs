//! What commands print: lines for people or JSON for programs, on standard output, complete at
//! each flush. It must never print anything twice or half, and never guess at an encoding.

use std::io::{self, Write};

use raft_kv::types::TransferStatus;
use raft_kv::types::{Event, EventKind, KeyValue, LeaseId, LeaseStatus, Member, MemberRole, Revision};
use serde_json::{Map, Value, json};

use crate::bytes_arg::{escape, to_base64};
use crate::failure::{Failure, Kind};

/// Standard output in the form the caller chose.
pub struct Output {
    json: bool,
    out: io::StdoutLock<'static>,
}

impl Output {
    /// Output as JSON, or for people.
    pub fn new(json: bool) -> Self {
        Self { json, out: io::stdout().lock() }
    }

    /// Whether a program reads.
    pub fn json(&self) -> bool {
        self.json
    }

    /// One answer: `value` for programs, the lines of `text` for people.
    pub fn answer(
        &mut self,
        value: impl FnOnce() -> Value,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        let mut line = if self.json { value().to_string() } else { text() };
        if !line.is_empty() && !line.ends_with('\n') {
            line.push('\n');
        }
        self.bytes(line.as_bytes())
    }

    /// Bytes as they are, flushed.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes).and_then(|()| self.out.flush()).or_else(|error| match error.kind() {
            // The reader has what it wanted (`… | head -1`): no failure, and nothing left to do.
            io::ErrorKind::BrokenPipe => std::process::exit(0),
            _ => Err(Failure::new(
                Kind::Unknown,
                format!(
                    "the cluster has answered, but the answer can't be written to standard output: {error}"
                ),
            )),
        })
    }
}

/// Puts bytes into a JSON object: under `name` if they are text, else under `name_base64`.
pub fn put_bytes(object: &mut Map<String, Value>, name: &str, bytes: &[u8]) {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.insert(name.to_owned(), text.into()),
        Err(_) => object.insert(format!("{name}_base64"), to_base64(bytes).into()),
    };
}

/// A lease's id as programs and people give it back; none is `null`.
pub fn lease_json(id: LeaseId) -> Value {
    if id == 0 { Value::Null } else { lease_text(id).into() }
}

/// A lease's id as people give it back.
pub fn lease_text(id: LeaseId) -> String {
    format!("{id:x}")
}

/// A key in JSON.
pub fn kv_json(kv: &KeyValue, with_value: bool) -> Value {
    let mut object = Map::new();
    put_bytes(&mut object, "key", &kv.key);
    if with_value {
        put_bytes(&mut object, "value", &kv.value);
    }
    object.insert("create_revision".into(), kv.create_revision.into());
    object.insert("mod_revision".into(), kv.mod_revision.into());
    object.insert("version".into(), kv.version.into());
    object.insert("lease".into(), lease_json(kv.lease));
    object.into()
}

/// Keys in JSON.
pub fn kvs_json(kvs: &[KeyValue], with_value: bool) -> Value {
    kvs.iter().map(|kv| kv_json(kv, with_value)).collect()
}

/// A key for people: key and value on one line, separated by a tabulator, which neither holds.
pub fn kv_text(kv: &KeyValue, with_value: bool) -> String {
    if with_value {
        format!("{}\t{}\n", escape(&kv.key), escape(&kv.value))
    } else {
        format!("{}\n", escape(&kv.key))
    }
}

/// Keys for people.
pub fn kvs_text(kvs: &[KeyValue], with_value: bool) -> String {
    kvs.iter().map(|kv| kv_text(kv, with_value)).collect()
}

/// An event in JSON.
pub fn event_json(revision: Revision, event: &Event) -> Value {
    let mut object = Map::new();
    match event.kind {
        EventKind::Put => {
            object.insert("type".into(), "put".into());
            if let Value::Object(kv) = kv_json(&event.kv, true) {
                object.extend(kv);
            }
        }
        EventKind::Delete => {
            object.insert("type".into(), "delete".into());
            put_bytes(&mut object, "key", &event.kv.key);
            object.insert("mod_revision".into(), event.kv.mod_revision.into());
        }
    }
    if let Some(prev) = &event.prev {
        object.insert("prev".into(), kv_json(prev, true));
    }
    object.insert("revision".into(), revision.into());
    object.into()
}

/// An event for people: revision, what happened, the key, the value.
pub fn event_text(revision: Revision, event: &Event) -> String {
    let prev = event.prev.as_ref().map_or(String::new(), |prev| format!("\t(was {})", escape(&prev.value)));
    match event.kind {
        EventKind::Put => {
            format!("{revision}\tPUT\t{}\t{}{prev}\n", escape(&event.kv.key), escape(&event.kv.value))
        }
        EventKind::Delete => format!("{revision}\tDELETE\t{}{prev}\n", escape(&event.kv.key)),
    }
}

/// What a lease has left, in JSON.
pub fn lease_status_json(status: &LeaseStatus, keys: bool) -> Value {
    let mut object = Map::new();
    object.insert("id".into(), lease_json(status.id));
    object.insert("ttl".into(), status.ttl.into());
    object.insert("granted_ttl".into(), status.granted_ttl.into());
    if keys {
        let list = status.keys.iter().map(|key| {
            let mut entry = Map::new();
            put_bytes(&mut entry, "key", key);
            Value::from(entry)
        });
        object.insert("keys".into(), list.collect());
    }
    object.into()
}

/// The word for a member's place in the group.
pub fn role_word(role: MemberRole) -> &'static str {
    match role {
        MemberRole::Voter => "voter",
        MemberRole::Learner => "learner",
    }
}

/// Members in JSON.
pub fn members_json(
    members: &[Member],
    leader: Option<raft_kv::types::NodeId>,
    snapshots: &[TransferStatus],
) -> Value {
    let list: Value = members
        .iter()
        .map(|member| {
            json!({
                "id": member.record.id.to_string(),
                "name": member.record.name,
                "addr": member.record.addr,
                "etcd_url": member.record.client_url,
                "role": role_word(member.role),
                "leader": Some(member.record.id) == leader,
                "snapshot": of_member(snapshots, member).map(transfer_json),
            })
        })
        .collect();
    json!({ "members": list })
}

fn of_member<'a>(snapshots: &'a [TransferStatus], member: &Member) -> Option<&'a TransferStatus> {
    snapshots.iter().find(|transfer| transfer.member == member.record.id)
}

/// Members for people.
pub fn members_text(
    members: &[Member],
    leader: Option<raft_kv::types::NodeId>,
    snapshots: &[TransferStatus],
) -> String {
    let mut rows = vec![["ID", "NAME", "ADDRESS", "ROLE"].map(str::to_owned)];
    rows.extend(members.iter().map(|member| {
        let role = if Some(member.record.id) == leader { "voter, leader" } else { role_word(member.role) };
        let role = of_member(snapshots, member)
            .map_or_else(|| role.to_owned(), |transfer| format!("{role}, {}", transfer_text(transfer)));
        [member.record.id.to_string(), member.record.name.clone(), member.record.addr.clone(), role]
    }));
    table(&rows)
}

/// How far a snapshot is on its way, for machines.
pub fn transfer_json(transfer: &TransferStatus) -> Value {
    json!({
        "bytes": transfer.bytes,
        "done": transfer.done,
        "percent": transfer.percent(),
        "rate": transfer.rate,
    })
}

/// The same for people.
pub fn transfer_text(transfer: &TransferStatus) -> String {
    format!(
        "receiving a snapshot: {} of {} bytes, {} %, {} bytes/s",
        transfer.done,
        transfer.bytes,
        transfer.percent(),
        transfer.rate
    )
}

/// Rows in columns, separated by two spaces at least.
pub fn table<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let mut widths = [0; COLUMNS];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            line.push_str(&format!("{cell:width$}  "));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// A word as a shell takes it.
pub fn shell_word(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:,@%+=[]".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) && !word.contains(['[', ']']) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use raft_kv::types::{MemberRecord, NodeId};

    use super::*;

    fn kv(key: &'static [u8], value: &'static [u8], lease: LeaseId) -> KeyValue {
        let (key, value) = (Bytes::from_static(key), Bytes::from_static(value));
        KeyValue { key, value, create_revision: 2, mod_revision: 3, version: 2, lease }
    }

    fn check(value: Value, text: String, expect_json: &str, expect_text: &str) {
        assert_eq!(value, serde_json::from_str::<Value>(expect_json).unwrap());
        assert_eq!(text, expect_text);
    }

    #[test]
    fn keys_are_text_where_they_are_text_and_base64_elsewhere() {
        let text = kv(b"a", "\u{e4}".as_bytes(), 0);
        check(
            kv_json(&text, true),
            kv_text(&text, true),
            r#"{"key":"a","value":"ä","create_revision":2,"mod_revision":3,"version":2,"lease":null}"#,
            "a\tä\n",
        );
        let binary = kv(b"\xff", b"\x00\xfe", 31);
        check(
            kv_json(&binary, true),
            kv_text(&binary, true),
            r#"{"key_base64":"/w==","value_base64":"AP4=","create_revision":2,"mod_revision":3,"version":2,"lease":"1f"}"#,
            "\\xff\t\\0\\xfe\n",
        );
        check(
            kv_json(&binary, false),
            kv_text(&binary, false),
            r#"{"key_base64":"/w==","create_revision":2,"mod_revision":3,"version":2,"lease":"1f"}"#,
            "\\xff\n",
        );
    }

    #[test]
    fn events_say_what_happened_to_which_key_at_which_revision() {
        let put = Event { kind: EventKind::Put, kv: kv(b"k", b"v", 0), prev: None };
        check(
            event_json(3, &put),
            event_text(3, &put),
            r#"{"type":"put","key":"k","value":"v","create_revision":2,"mod_revision":3,"version":2,"lease":null,"revision":3}"#,
            "3\tPUT\tk\tv\n",
        );
        let gone = KeyValue { key: Bytes::from_static(b"k"), mod_revision: 4, ..KeyValue::default() };
        let delete = Event { kind: EventKind::Delete, kv: gone, prev: Some(kv(b"k", b"v", 0)) };
        check(
            event_json(4, &delete),
            event_text(4, &delete),
            r#"{"type":"delete","key":"k","mod_revision":4,"revision":4,
                "prev":{"key":"k","value":"v","create_revision":2,"mod_revision":3,"version":2,"lease":null}}"#,
            "4\tDELETE\tk\t(was v)\n",
        );
    }

    #[test]
    fn members_name_the_leader() {
        let member = |id, name: &str, role| {
            let record =
                MemberRecord { id: NodeId(id), name: name.into(), addr: "h:1".into(), ..Default::default() };
            Member { record, role }
        };
        let members = [member(1, "one", MemberRole::Voter), member(2, "second", MemberRole::Learner)];
        let snapshots = [TransferStatus { member: NodeId(2), bytes: 1000, done: 250, rate: 50 }];
        check(
            members_json(&members, Some(NodeId(1)), &snapshots),
            members_text(&members, Some(NodeId(1)), &snapshots),
            r#"{"members":[
                {"id":"0000000000000001","name":"one","addr":"h:1","etcd_url":"","role":"voter","leader":true,"snapshot":null},
                {"id":"0000000000000002","name":"second","addr":"h:1","etcd_url":"","role":"learner","leader":false,
                    "snapshot":{"bytes":1000,"done":250,"percent":25,"rate":50}}]}"#,
            "ID                NAME    ADDRESS  ROLE\n\
             0000000000000001  one     h:1      voter, leader\n\
             0000000000000002  second  h:1      learner, receiving a snapshot: 250 of 1000 bytes, 25 %, 50 bytes/s\n",
        );
    }

    #[test]
    fn a_lease_shows_its_keys_when_asked() {
        let status = LeaseStatus { id: 31, ttl: 5, granted_ttl: 10, keys: vec![Bytes::from_static(b"\xff")] };
        let expect = r#"{"id":"1f","ttl":5,"granted_ttl":10,"keys":[{"key_base64":"/w=="}]}"#;
        assert_eq!(lease_status_json(&status, true), serde_json::from_str::<Value>(expect).unwrap());
        assert_eq!(
            lease_status_json(&status, false),
            serde_json::from_str::<Value>(r#"{"id":"1f","ttl":5,"granted_ttl":10}"#).unwrap()
        );
    }

    #[test]
    fn a_printed_command_can_be_pasted() {
        for (word, expect) in
            [("a-b_c.d:1", "a-b_c.d:1"), ("", "''"), ("a b", "'a b'"), ("it's", "'it'\\''s'"), ("$x", "'$x'")]
        {
            assert_eq!(shell_word(word), expect);
        }
    }
}
