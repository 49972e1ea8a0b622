//! What `up` writes beside the data: who the members are and which processes run them. `down` believes
//! this file and nothing else, and a directory without it is never removed.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::process::Identity;

const FILE: &str = "cluster.json";
const MAKER: &str = "cargo xtask up";

/// One member, as recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRecord {
    /// Node id, as the server prints it; empty until it has served once.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub addr: String,
    /// What `--endpoints` takes.
    pub url: String,
    /// What etcd's clients take.
    pub etcd_url: String,
    /// Its data.
    pub data_dir: PathBuf,
    /// Its process, if one was started.
    pub process: Option<Identity>,
}

/// A cluster on this machine, as recorded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Record {
    /// The members in the order they were made.
    pub members: Vec<MemberRecord>,
}

impl Record {
    /// Reads the record of `dir`; none if the directory holds nothing at all.
    pub fn read(dir: &Path) -> Result<Option<Self>, String> {
        let path = dir.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return match fs::read_dir(dir).map(|mut entries| entries.next().is_none()) {
                    Ok(false) => Err(format!("{} is not empty and was not made by `{MAKER}`", dir.display())),
                    _ => Ok(None),
                };
            }
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        Self::parse(&text)
            .map(Some)
            .ok_or_else(|| format!("{} is not a record that `{MAKER}` wrote", path.display()))
    }

    fn parse(text: &str) -> Option<Self> {
        let value: Value = serde_json::from_str(text).ok()?;
        if value["made_by"] != MAKER {
            return None;
        }
        let members = value["members"].as_array()?.iter().map(MemberRecord::parse).collect::<Option<_>>()?;
        Some(Self { members })
    }

    /// Writes the record into `dir`, whole or not at all.
    pub fn write(&self, dir: &Path) -> Result<(), String> {
        let members: Vec<Value> = self.members.iter().map(MemberRecord::value).collect();
        let text = format!("{:#}\n", json!({ "made_by": MAKER, "members": members }));
        let (new, path) = (dir.join("cluster.json.new"), dir.join(FILE));
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|error| format!("{}: {error}", path.display()))
    }

    /// Every process recorded.
    pub fn processes(&self) -> Vec<Identity> {
        self.members.iter().filter_map(|member| member.process).collect()
    }
}

impl MemberRecord {
    fn parse(value: &Value) -> Option<Self> {
        let word = |name: &str| value[name].as_str().map(str::to_owned);
        let process = match &value["pid"] {
            Value::Null => None,
            pid => {
                let pid = u32::try_from(pid.as_u64()?).ok()?;
                Some(Identity { pid, start: value["start_time"].as_u64()? })
            }
        };
        Some(Self {
            id: word("id")?,
            name: word("name")?,
            addr: word("peer_addr")?,
            url: word("client_url")?,
            etcd_url: word("etcd_url")?,
            data_dir: word("data_dir")?.into(),
            process,
        })
    }

    /// The member as JSON: what scripts read, and the start of its process.
    pub fn value(&self) -> Value {
        json!({
            "id": self.id,
            "name": self.name,
            "pid": self.process.map(|process| process.pid),
            "start_time": self.process.map(|process| process.start),
            "client_url": self.url,
            "etcd_url": self.etcd_url,
            "peer_addr": self.addr,
            "data_dir": self.data_dir,
        })
    }
}

/// Removes a directory that `up` made, and only such a one. Nothing of it may run.
pub fn wipe(dir: &Path) -> Result<(), String> {
    if let Some(record) = Record::read(dir)? {
        if let Some(process) = record.processes().iter().find(|process| process.lives()) {
            return Err(format!("{}: process {} still runs there", dir.display(), process.pid));
        }
        fs::remove_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Record {
        let member = |name: &str, process| MemberRecord {
            id: "0a".to_owned(),
            name: name.to_owned(),
            addr: "127.0.0.1:1".to_owned(),
            url: "https://127.0.0.1:1".to_owned(),
            etcd_url: "https://127.0.0.1:2".to_owned(),
            data_dir: PathBuf::from("d").join(name),
            process,
        };
        Record { members: vec![member("n1", Some(Identity { pid: 7, start: 8 })), member("n2", None)] }
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Record::read(dir.path()), Ok(None));
        sample().write(dir.path()).unwrap();
        assert_eq!(Record::read(dir.path()), Ok(Some(sample())));
        assert_eq!(sample().processes(), [Identity { pid: 7, start: 8 }]);
    }

    #[test]
    fn only_what_up_made_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let check = |name: &str, content: &str, part: &str| {
            let dir = dir.path().join(name);
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join(FILE), content).unwrap();
            assert!(wipe(&dir).unwrap_err().contains(part), "{name}");
            assert!(dir.join(FILE).exists(), "{name}");
        };
        check("foreign", "{\"made_by\": \"someone\", \"members\": []}", "not a record");
        check("broken", "{", "not a record");
        let me = Identity::of(std::process::id()).unwrap();
        let mut running = sample();
        running.members[1].process = Some(me);
        let text = serde_json::to_string(&json!({
            "made_by": MAKER,
            "members": running.members.iter().map(MemberRecord::value).collect::<Vec<_>>(),
        }))
        .unwrap();
        check("running", &text, "still runs");

        let ours = dir.path().join("ours");
        fs::create_dir(&ours).unwrap();
        Record::default().write(&ours).unwrap();
        wipe(&ours).unwrap();
        assert!(!ours.exists());
    }
}
