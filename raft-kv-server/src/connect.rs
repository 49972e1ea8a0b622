//! From the connection options and the environment to a handle. Says exactly what is missing.
//! It must never fall back to anything unauthenticated: there is no such connection.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use raft_kv::client::{Handle, credentials_unlocked};
use raft_kv::net::{CERT_FILES, read_credentials};
use raft_kv::pki::{Credentials, ends_soon, validity_of};

use crate::args::ConnectArgs;
use crate::failure::Failure;

/// The members that a client asks, and what it shows them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Members, as `HOST:PORT`; empty: the member on this machine.
    endpoints: Vec<String>,
    /// Where the certificate is.
    identity: Identity,
}

/// Where a client's certificate is.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Identity {
    /// In three files.
    Files { cacert: PathBuf, cert: PathBuf, key: PathBuf },
    /// In a member's data directory.
    Member(PathBuf),
}

/// Reaches the cluster as the options and the environment say.
pub async fn connect(args: &ConnectArgs) -> Result<Handle, Failure> {
    reach(plan(args, |name| std::env::var_os(name))?).await
}

/// As [`connect`], but to the member at `addr` alone.
pub async fn connect_to(args: &ConnectArgs, addr: &str) -> Result<Handle, Failure> {
    let plan = plan(args, |name| std::env::var_os(name))?;
    reach(Plan { endpoints: vec![addr.to_owned()], ..plan }).await
}

/// As [`connect`], for what outlives a certificate: that of a client whose three files lie in one
/// folder under their usual names is kept current there.
pub async fn connect_for_long(args: &ConnectArgs) -> Result<Handle, Failure> {
    let plan = plan(args, |name| std::env::var_os(name))?;
    match plan.identity.folder() {
        Some(folder) => Ok(Handle::connect_renewing(&plan.endpoints, &folder).await?),
        None => reach(plan).await,
    }
}

/// The endpoints, and the folder in which a client's certificate is to be kept current.
pub fn renewable(args: &ConnectArgs) -> Result<(Vec<String>, PathBuf), Failure> {
    let plan = plan(args, |name| std::env::var_os(name))?;
    match plan.identity.folder() {
        Some(folder) => Ok((plan.endpoints, folder)),
        None => Err(Failure::usage(
            "only a client's files cacert.pem, cert.pem and key.pem in one folder can be renewed; give it with \
             --cert-dir (a member renews its own certificate)",
        )),
    }
}

impl Identity {
    /// The folder that holds the three files under their usual names.
    fn folder(&self) -> Option<PathBuf> {
        let Self::Files { cacert, cert, key } = self else { return None };
        let folder = cert.parent()?;
        let usual = |(path, name): (&&PathBuf, &&str)| ***path == folder.join(name);
        let all = [cacert, cert, key];
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        all.iter().zip(&CERT_FILES).all(usual).then(|| folder.to_owned())
    }
}

/// Says on standard error that a client's certificate ends soon: nobody else looks after it.
fn warn_of_end(credentials: &Credentials) {
    let Some(leaf) = credentials.chain.first() else { return };
    let Ok((from, until)) = validity_of(leaf) else { return };
    if ends_soon(from, until, SystemTime::now()) {
        let left = until.duration_since(SystemTime::now()).unwrap_or_default().as_secs();
        tracing::warn!(
            "this client's certificate ends in {} h {} min; `raft-kv cert renew` gets a new one, \
             `raft-kv cert renew --watch` keeps it current",
            left / 3600,
            left / 60 % 60
        );
    }
}

async fn reach(plan: Plan) -> Result<Handle, Failure> {
    let Plan { mut endpoints, identity } = plan;
    let credentials = match &identity {
        Identity::Files { cacert, cert, key } => {
            let credentials = read_credentials(cacert, cert, key)?;
            warn_of_end(&credentials);
            credentials
        }
        Identity::Member(data_dir) => {
            let unlock = crate::cli::lock::key_in_environment()?;
            let (credentials, address) = credentials_unlocked(data_dir, unlock.as_ref())?;
            if endpoints.is_empty() {
                endpoints.push(address);
            }
            credentials
        }
    };
    Ok(Handle::connect(&endpoints, credentials).await?)
}

/// What `args` and the environment ask for. Options come before the environment, a file by its own name before
/// the folder of all three, `--data-dir` before all of the environment.
fn plan(args: &ConnectArgs, environment: impl Fn(&str) -> Option<OsString>) -> Result<Plan, Failure> {
    let ConnectArgs { reach, pair } = args;
    if let Some(data_dir) = &reach.data_dir {
        let endpoints = reach.endpoints.as_deref().map(parse_endpoints).transpose()?.unwrap_or_default();
        return Ok(Plan { endpoints, identity: Identity::Member(data_dir.clone()) });
    }
    let set = |name: &str| environment(name).filter(|value| !value.is_empty());
    let folder = set("RAFT_KV_CERT_DIR").map(PathBuf::from);
    let within = |dir: &Option<PathBuf>, at: usize| dir.as_ref().map(|dir| dir.join(CERT_FILES[at]));
    let file = |given: &Option<PathBuf>, at: usize, name: &str| {
        let given = given.clone().or_else(|| within(&reach.cert_dir, at));
        given.or_else(|| set(name).map(PathBuf::from)).or_else(|| within(&folder, at))
    };
    let endpoints = match &reach.endpoints {
        Some(list) => Some(list.clone()),
        None => set("RAFT_KV_ENDPOINTS")
            .map(|list| {
                list.into_string()
                    .map_err(|_| Failure::usage("RAFT_KV_ENDPOINTS is not text; give HOST:PORT,…"))
            })
            .transpose()?,
    };
    let cacert = file(&reach.cacert, 0, "RAFT_KV_CACERT");
    let cert = file(&pair.cert, 1, "RAFT_KV_CERT");
    let key = file(&pair.client_key, 2, "RAFT_KV_KEY");
    let none = cacert.is_none() && cert.is_none() && key.is_none();
    let missing: Vec<&str> = [
        (endpoints.is_none(), "--endpoints (or RAFT_KV_ENDPOINTS)"),
        (none, "--cert-dir (or RAFT_KV_CERT_DIR; or a file each, with --cacert, --cert and --key)"),
        (!none && cacert.is_none(), "--cacert (or RAFT_KV_CACERT)"),
        (!none && cert.is_none(), "--cert (or RAFT_KV_CERT)"),
        (!none && key.is_none(), "--key (or RAFT_KV_KEY)"),
    ]
    .into_iter()
    .filter_map(|(is_missing, name)| is_missing.then_some(name))
    .collect();
    match (endpoints, cacert, cert, key) {
        (Some(endpoints), Some(cacert), Some(cert), Some(key)) => Ok(Plan {
            endpoints: parse_endpoints(&endpoints)?,
            identity: Identity::Files { cacert, cert, key },
        }),
        _ => Err(Failure::usage(format!(
            "can't tell how to reach the cluster: {} not given; on a machine that runs a member, `--data-dir DIR` \
             alone is enough; `raft-kv cert issue NAME --out DIR` makes the three files for other machines",
            missing.join(", ")
        ))),
    }
}

/// The endpoints in a list separated by commas, as `HOST:PORT`.
pub fn parse_endpoints(list: &str) -> Result<Vec<String>, Failure> {
    let endpoints: Vec<String> = list
        .split(',')
        .map(str::trim)
        .filter(|endpoint| !endpoint.is_empty())
        .map(parse_endpoint)
        .collect::<Result<_, _>>()?;
    if endpoints.is_empty() {
        return Err(Failure::usage("the list of endpoints is empty; give HOST:PORT,…"));
    }
    Ok(endpoints)
}

/// One endpoint, as `HOST:PORT`: with or without `https://` and a slash behind.
pub fn parse_endpoint(given: &str) -> Result<String, Failure> {
    let bad = |why: &str| {
        Failure::usage(format!("the endpoint {given:?} {why}; give HOST:PORT or https://HOST:PORT"))
    };
    let place = match given.split_once("://") {
        Some(("https", place)) => place,
        Some(("http", _)) => return Err(bad("is plain HTTP, which no member speaks")),
        Some((scheme, _)) => return Err(bad(&format!("has the unknown scheme {scheme:?}"))),
        None => given,
    };
    let place = place.strip_suffix('/').unwrap_or(place);
    if place.contains(['/', '?', '#', '@']) || place.contains(char::is_whitespace) {
        return Err(bad("has more than a host and a port"));
    }
    let (host, port) = place.rsplit_once(':').ok_or_else(|| bad("has no port"))?;
    if !matches!(port.parse::<u16>(), Ok(1..)) || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad("has no port from 1 to 65535"));
    }
    let bracketed = host.starts_with('[') && host.ends_with(']') && host.len() > 2;
    if host.is_empty() {
        return Err(bad("has no host"));
    }
    if host.contains([':', '[', ']']) && !bracketed {
        return Err(bad("has an IPv6 address without its brackets"));
    }
    Ok(place.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{PairArgs, ReachArgs};

    fn check_endpoint(given: &str, expect: Result<&str, &str>) {
        match (parse_endpoint(given), expect) {
            (Ok(got), Ok(expected)) => assert_eq!(got, expected),
            (Err(failure), Err(part)) => assert!(failure.message.contains(part), "{failure} lacks {part:?}"),
            (got, expected) => panic!("{given:?}: got {got:?}, expected {expected:?}"),
        }
    }

    #[test]
    fn an_endpoint_is_a_host_and_a_port_or_is_refused_with_the_reason() {
        check_endpoint("127.0.0.1:2380", Ok("127.0.0.1:2380"));
        check_endpoint("https://node-1.example:2380/", Ok("node-1.example:2380"));
        check_endpoint("[::1]:2380", Ok("[::1]:2380"));
        check_endpoint("http://127.0.0.1:2380", Err("plain HTTP"));
        check_endpoint("quic://127.0.0.1:2380", Err("unknown scheme \"quic\""));
        check_endpoint("127.0.0.1", Err("no port"));
        check_endpoint("127.0.0.1:0", Err("from 1 to 65535"));
        check_endpoint("127.0.0.1:65536", Err("from 1 to 65535"));
        check_endpoint("127.0.0.1:+1", Err("from 1 to 65535"));
        check_endpoint(":2380", Err("no host"));
        check_endpoint("::1:2380", Err("brackets"));
        check_endpoint("https://host:1/v3", Err("more than a host"));
        check_endpoint("user@host:1", Err("more than a host"));
        check_endpoint("a b:1", Err("more than a host"));
    }

    fn check_plan(args: &[(&str, &str)], environment: &[(&str, &str)], expect: Result<Plan, &str>) {
        let find = |list: &[(&str, &str)], name: &str| {
            list.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        };
        let path = |name: &str| find(args, name).map(PathBuf::from);
        let reach = ReachArgs {
            endpoints: find(args, "endpoints"),
            cert_dir: path("cert_dir"),
            cacert: path("cacert"),
            data_dir: path("data_dir"),
        };
        let args = ConnectArgs { reach, pair: PairArgs { cert: path("cert"), client_key: path("key") } };
        match (plan(&args, |name| find(environment, name).map(OsString::from)), expect) {
            (Ok(got), Ok(expected)) => assert_eq!(got, expected),
            (Err(failure), Err(part)) => assert!(failure.message.contains(part), "{failure} lacks {part:?}"),
            (got, expected) => panic!("got {got:?}, expected {expected:?}"),
        }
    }

    fn files(endpoints: &[&str], cacert: &str, cert: &str, key: &str) -> Result<Plan, &'static str> {
        let identity = Identity::Files { cacert: cacert.into(), cert: cert.into(), key: key.into() };
        Ok(Plan { endpoints: endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect(), identity })
    }

    #[test]
    fn options_come_before_the_environment_and_what_is_missing_is_named() {
        let environment = [
            ("RAFT_KV_ENDPOINTS", "https://e:1"),
            ("RAFT_KV_CACERT", "ea"),
            ("RAFT_KV_CERT", "eb"),
            ("RAFT_KV_KEY", "ec"),
        ];
        check_plan(&[], &environment, files(&["e:1"], "ea", "eb", "ec"));
        check_plan(
            &[("endpoints", "a:1, b:2,"), ("cert", "b")],
            &environment,
            files(&["a:1", "b:2"], "ea", "b", "ec"),
        );
        check_plan(&[("endpoints", " , ")], &environment, Err("is empty"));
        let folder = ("RAFT_KV_CERT_DIR", "f");
        check_plan(
            &[],
            &[environment[0], folder],
            files(&["e:1"], "f/cacert.pem", "f/cert.pem", "f/key.pem"),
        );
        check_plan(
            &[("cert_dir", "g")],
            &environment,
            files(&["e:1"], "g/cacert.pem", "g/cert.pem", "g/key.pem"),
        );
        check_plan(
            &[("cert_dir", "g"), ("key", "k")],
            &[environment[0], folder],
            files(&["e:1"], "g/cacert.pem", "g/cert.pem", "k"),
        );
        check_plan(&[], &[&environment[..], &[folder]].concat(), files(&["e:1"], "ea", "eb", "ec"));
        check_plan(&[], &[], Err("--endpoints (or RAFT_KV_ENDPOINTS), --cert-dir (or RAFT_KV_CERT_DIR;"));
        check_plan(&[], &environment[..3], Err(": --key (or RAFT_KV_KEY) not given"));
        check_plan(&[], &[("RAFT_KV_ENDPOINTS", "")], Err("--endpoints"));
        let member = |endpoints: &[&str]| {
            let endpoints = endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect();
            Ok(Plan { endpoints, identity: Identity::Member("d".into()) })
        };
        check_plan(&[("data_dir", "d")], &environment, member(&[]));
        check_plan(&[("data_dir", "d"), ("endpoints", "a:1")], &environment, member(&["a:1"]));
    }
}
