//! Debian's `etcdctl`: a table of its sub-commands in the order of a session, each with what it has
//! to say. Two commands have no row: `check perf` (takes a minute and judges the machine) and
//! `snapshot status` (reads etcd's own file format), `check datascale` (asks for metrics without TLS).

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use super::Setting;
use crate::server::{Place, Server};

/// A command that has not said what it has to after this is ended.
const ROW_LIMIT: Duration = Duration::from_secs(30);

/// One command.
struct Row {
    words: &'static str,
    stdin: &'static str,
    expect: &'static [&'static str],
    fails: bool,
}

const fn ok(words: &'static str, expect: &'static [&'static str]) -> Row {
    Row { words, stdin: "", expect, fails: false }
}

const fn fed(words: &'static str, stdin: &'static str, expect: &'static [&'static str]) -> Row {
    Row { words, stdin, expect, fails: false }
}

const fn no(words: &'static str, expect: &'static [&'static str]) -> Row {
    Row { words, stdin: "", expect, fails: true }
}

/// The session. `{LEASE}` is the last lease granted, `{DIR}` a folder, `{LAST}` and `{OTHER}` the last
/// member and one that does not lead.
const KEYS: &[Row] = &[
    ok("version", &["etcdctl version"]),
    ok("put k1 v1", &["OK"]),
    ok("put --prev-kv k1 v2", &["OK", "k1", "v1"]),
    fed("put k2", "from-stdin", &["OK"]),
    ok("put k3 v3", &["OK"]),
    ok("put --ignore-value k3", &["OK"]),
    no("put --ignore-value none", &["key not found"]),
    no("put --lease=7b k1 v", &["requested lease not found"]),
    ok("get k1", &["k1\nv2"]),
    ok("get k2 --print-value-only", &["from-stdin"]),
    ok("get k --prefix --keys-only", &["k1\n\nk2\n\nk3"]),
    ok("get k --prefix --limit=1", &["k1\nv2"]),
    ok("get k --prefix --order=DESCEND --sort-by=KEY --limit=1", &["k3\nv3"]),
    ok("get k --prefix --order=ASCEND --sort-by=MODIFY --keys-only", &["k1\n\nk2\n\nk3"]),
    ok("get k --prefix -w fields", &["\"Count\" : 3"]),
    ok("get k1 k3", &["k1\nv2\nk2\nfrom-stdin"]),
    ok("get k2 --from-key --keys-only", &["k2\n\nk3"]),
    ok("get k1 --consistency=s", &["v2"]),
    ok("get k1 --hex", &["\\x6b\\x31"]),
    ok("get k1 -w json", &["\"key\":\"azE=\"", "\"version\":2"]),
    ok("get k1 -w protobuf", &["k1"]),
    no("get k1 --rev=9999", &["required revision is a future revision"]),
    fed(
        "txn",
        "value(\"k1\") = \"v2\"\nversion(\"none\") = \"0\"\n\nput k4 yes\nget k1\n\nput k4 no\n\n",
        &["SUCCESS", "OK", "k1\nv2"],
    ),
    fed("txn", "mod(\"k1\") = \"99\"\n\nput k4 a\n\nget k4\n\n", &["FAILURE", "k4\nyes"]),
    Row {
        words: "txn",
        stdin: "\nput d 1\nput d 2\n\n\n",
        expect: &["duplicate key given in txn request"],
        fails: true,
    },
    ok("del k4", &["1"]),
    ok("del --prev-kv k2", &["1", "k2\nfrom-stdin"]),
    ok("del none", &["0"]),
    ok("del --prefix k3", &["1"]),
    ok("put z1 1", &["OK"]),
    ok("del --from-key z", &["1"]),
    ok("compaction 3", &["compacted revision 3"]),
    ok("compaction --physical 4", &["compacted revision 4"]),
    no("compaction 2", &["required revision has been compacted"]),
    no("compaction 99999", &["required revision is a future revision"]),
    no("get k1 --rev=2", &["required revision has been compacted"]),
];

const LEASES: &[Row] = &[
    ok("lease grant 600", &["granted with TTL(600s)"]),
    ok("put --lease={LEASE} l1 x", &["OK"]),
    ok("lease timetolive {LEASE} --keys", &["granted with TTL(600s)", "attached keys([l1])"]),
    ok("lease keep-alive --once {LEASE}", &["keepalived with TTL(600)"]),
    ok("lease list", &["found 1 leases", "{LEASE}"]),
    ok("lease revoke {LEASE}", &["revoked"]),
    ok("get l1 -w fields", &["\"Count\" : 0"]),
    ok("lease timetolive {LEASE}", &["already expired"]),
    no("lease revoke {LEASE}", &["requested lease not found"]),
    ok("lock l echo got-the-lock", &["got-the-lock"]),
];

const CARE: &[Row] = &[
    ok("member list", &["started"]),
    ok("member list -w table", &["STATUS", "started"]),
    ok("member list -w json", &["\"members\":["]),
    no("member remove 1234", &["ember not found"]),
    no("member promote 1234", &["ember not found"]),
    no("member update 1234 --peer-urls=https://127.0.0.1:1", &["ember not found"]),
    ok("endpoint health", &["is healthy"]),
    ok("endpoint health --cluster", &["is healthy"]),
    ok("endpoint status --cluster -w table", &["ENDPOINT", "true"]),
    ok("endpoint status -w json", &["\"raftTerm\":"]),
    ok("endpoint hashkv --cluster", &[":"]),
    ok("alarm list", &[]),
    ok("alarm disarm", &[]),
    ok("defrag", &["Finished defragmenting"]),
    ok("snapshot save {DIR}/snapshot", &["Snapshot saved at"]),
];

const USERS: &[Row] = &[
    ok("role add root", &["Role root created"]),
    ok("user add root:pw", &["User root created"]),
    ok("user grant-role root root", &["Role root is granted to user root"]),
    ok("role add reader", &["Role reader created"]),
    ok("role grant-permission reader read k1", &["Role reader updated"]),
    ok("role grant-permission --prefix=true reader readwrite bob/", &["Role reader updated"]),
    ok("role get reader", &["KV Read:", "\tk1\n", "[bob/, bob0) (prefix bob/)"]),
    ok("role list", &["reader\nroot"]),
    ok("user add bob:pw", &["User bob created"]),
    no("user add bob:pw", &["user name already exists"]),
    ok("user grant-role bob reader", &["Role reader is granted to user bob"]),
    ok("user get bob", &["User: bob\nRoles: reader"]),
    ok("user list", &["bob\nroot"]),
    ok("auth enable", &["Authentication Enabled"]),
    ok("--user bob:pw get k1", &["k1\nv2"]),
    ok("--user bob:pw put bob/x 1", &["OK"]),
    no("--user bob:pw put k1 no", &["permission denied"]),
    no("--user bob:pw user list", &["permission denied"]),
    no("--user bob:wrong get k1", &["authentication failed, invalid user ID or password"]),
    fed("--user root:pw user passwd bob --interactive=false", "new\n", &["Password updated"]),
    ok("--user bob:new get k1", &["k1\nv2"]),
    ok(
        "--user root:pw role revoke-permission reader k1",
        &["Permission of key k1 is revoked from role reader"],
    ),
    no("--user bob:new get k1", &["permission denied"]),
    ok("--user root:pw user revoke-role bob reader", &["Role reader is revoked from user bob"]),
    ok("--user root:pw user delete bob", &["User bob deleted"]),
    ok("--user root:pw role delete reader", &["Role reader deleted"]),
    ok("--user root:pw auth disable", &["Authentication Disabled"]),
    ok("user delete root", &["User root deleted"]),
    ok("role delete root", &["Role root deleted"]),
];

/// Only where there is more than one member.
const MEMBERS: &[Row] = &[
    ok("move-leader {OTHER}", &["Leadership transferred"]),
    ok("endpoint status --cluster -w table", &["true"]),
    ok("member remove {LAST}", &["removed from cluster"]),
    ok("put after-removal 1", &["OK"]),
];

/// The whole session.
///
/// # Errors
/// Every row that said something else.
pub async fn run(setting: &Setting) -> Result<usize, String> {
    let server = setting.cluster().await?;
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    let mut session =
        Session { place: server.place(), dir: dir.path(), lease: String::new(), wrong: vec![], rows: 0 };
    session.rows(KEYS);
    session.rows(LEASES);
    session.follows();
    session.rows(CARE);
    session.snapshot_is_whole();
    session.rows(USERS);
    if matches!(server, Server::RaftKv(_)) {
        session.rows(MEMBERS);
    }
    if session.wrong.is_empty() { Ok(session.rows) } else { Err(session.wrong.join("\n")) }
}

struct Session<'a> {
    place: &'a Place,
    dir: &'a Path,
    lease: String,
    wrong: Vec<String>,
    rows: usize,
}

impl Session<'_> {
    fn command(&self) -> Command {
        self.command_at(&self.place.addrs)
    }

    fn command_at(&self, addrs: &[String]) -> Command {
        let mut command = Command::new("etcdctl");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("ETCDCTL_") {
                command.env_remove(name);
            }
        }
        command.env("ETCDCTL_API", "3").arg(format!("--endpoints={}", addrs.join(",")));
        if let Some(files) = &self.place.files {
            command
                .arg("--cacert")
                .arg(&files.ca)
                .arg("--cert")
                .arg(&files.cert)
                .arg("--key")
                .arg(&files.key);
        }
        command
    }

    fn rows(&mut self, rows: &[Row]) {
        for row in rows {
            self.rows += 1;
            if let Err(why) = self.row(row) {
                eprintln!("etcdctl {}: {why}", row.words);
                self.wrong.push(format!("etcdctl {}: {why}", row.words));
            }
        }
    }

    fn row(&mut self, row: &Row) -> Result<(), String> {
        let words = self.filled(row.words)?;
        // A snapshot is of one member.
        let one = words.starts_with("snapshot");
        let mut command = self.command_at(if one { &self.place.addrs[..1] } else { &self.place.addrs });
        command.args(words.split(' ').filter(|word| !word.is_empty()));
        let (success, said) = finished(&mut command, row.stdin)?;
        if success == row.fails {
            return Err(format!("{}: {said}", if success { "succeeded" } else { "failed" }));
        }
        if let Some(lease) = said.strip_prefix("lease ").filter(|said| said.contains("granted")) {
            self.lease = lease.split(' ').next().unwrap_or_default().to_owned();
        }
        for expected in row.expect {
            let expected = expected.replace("{LEASE}", &self.lease);
            if !said.contains(&expected) {
                return Err(format!("said no {expected:?}, but: {said}"));
            }
        }
        Ok(())
    }

    fn filled(&self, words: &str) -> Result<String, String> {
        let mut words = words.replace("{LEASE}", &self.lease).replace("{DIR}", &self.dir.to_string_lossy());
        if words.contains("{OTHER}") {
            let other = self.other_member()?;
            words = words.replace("{OTHER}", &other);
        }
        if words.contains("{LAST}") {
            let (_, said) = finished(self.command().args(["member", "list"]), "")?;
            let last = said.lines().last().and_then(|line| line.split(',').next()).unwrap_or_default();
            words = words.replace("{LAST}", last);
        }
        Ok(words)
    }

    /// A member that does not lead, hexadecimal.
    fn other_member(&self) -> Result<String, String> {
        let (_, said) = finished(self.command().args(["endpoint", "status", "-w", "json"]), "")?;
        let all: serde_json::Value =
            serde_json::from_str(said.trim()).map_err(|error| format!("{error}: {said}"))?;
        let statuses = all.as_array().ok_or("no list of members")?;
        let id = |status: &serde_json::Value| status["Status"]["header"]["member_id"].as_u64();
        let found = statuses.iter().find(|status| id(status) != status["Status"]["leader"].as_u64());
        let id = found.and_then(id).ok_or_else(|| format!("no other member: {said}"))?;
        Ok(format!("{id:x}"))
    }

    /// Commands that go on until they are ended: watches, elections, keep-alives, mirrors.
    fn follows(&mut self) {
        let tls = self.place.files.as_ref().map_or(String::new(), |files| {
            format!(
                " --dest-cacert={} --dest-cert={} --dest-key={}",
                files.ca.display(),
                files.cert.display(),
                files.key.display()
            )
        });
        let insecure = if self.place.files.is_some() { "" } else { " --dest-insecure-transport" };
        let mirror =
            format!("make-mirror --prefix=w --dest-prefix=mirror/{tls}{insecure} {}", self.place.addrs[0]);
        let follow: [(&str, &[&str], &[&str]); 7] = [
            ("watch w1", &["put w1 a"], &["PUT\nw1\na"]),
            (
                "watch w --prefix --prev-kv",
                &["put w1 a", "put w1 b", "del w1"],
                &["PUT\nw1\na\nw1\nb", "DELETE\nw1\nb"],
            ),
            ("watch w1 --rev=5", &[], &["PUT\nw1\na", "PUT\nw1\nb", "DELETE\nw1"]),
            ("watch w5", &["put w5 c"], &["PUT\nw5\nc"]),
            ("elect e me", &["put w9 d"], &["e/", "me"]),
            ("elect -l e", &[], &[]),
            (&mirror, &["put w7 mirrored"], &[]),
        ];
        for (words, causes, expect) in follow {
            self.rows += 1;
            if let Err(why) = self.follow(words, causes, expect) {
                eprintln!("etcdctl {words}: {why}");
                self.wrong.push(format!("etcdctl {words}: {why}"));
            }
        }
        self.rows(&[ok("get e --prefix -w fields", &["\"Count\" :"])]);
    }

    fn follow(&self, words: &str, causes: &[&str], expect: &[&str]) -> Result<(), String> {
        let mut command = self.command();
        command.args(words.split(' '));
        let running = Running::start(&mut command)?;
        let began = Instant::now();
        let mut next = Instant::now();
        let mut said = String::new();
        // The watch may stand only after the first change was made: they are repeated until seen.
        loop {
            while let Ok(line) = running.lines.try_recv() {
                said.push_str(&line);
                said.push('\n');
            }
            if !causes.is_empty() && next <= Instant::now() {
                for cause in causes {
                    finished(self.command().args(cause.split(' ')), "")?;
                }
                next = Instant::now() + Duration::from_secs(2);
            }
            let mirrored = words.starts_with("make-mirror");
            if mirrored {
                let (_, copied) = finished(self.command().args(["get", "mirror/7"]), "")?;
                if copied.contains("mirrored") {
                    return Ok(());
                }
            } else if expect.iter().all(|expected| said.contains(expected)) {
                return Ok(());
            }
            if began.elapsed() > ROW_LIMIT {
                return Err(format!("said only: {said}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What `etcdctl` and its users check in the file.
    fn snapshot_is_whole(&mut self) {
        let size = fs::metadata(self.dir.join("snapshot")).map_or(0, |found| found.len());
        if size % 512 != 32 {
            self.wrong.push(format!("the snapshot has {size} bytes: no checksum behind whole blocks"));
        }
    }
}

/// A child that goes on; ended by its own handle.
struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Running {
    fn start(command: &mut Command) -> Result<Self, String> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("etcdctl (Debian's etcd-client): {error}"))?;
        let output = child.stdout.take().expect("stdout is piped");
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether it ended with success, and all it said.
fn finished(command: &mut Command, stdin: &str) -> Result<(bool, String), String> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("etcdctl (Debian's etcd-client): {error}"))?;
    if let Some(mut input) = child.stdin.take() {
        // One that does not read closes its end.
        let _ = input.write_all(stdin.as_bytes());
    }
    let output = child.wait_with_output().map_err(|error| error.to_string())?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}
