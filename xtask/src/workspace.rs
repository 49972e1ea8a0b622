//! Where things are, and the one environment in which every child `cargo` runs: whatever differs
//! between two commands here would compile RocksDB a second time.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// The checkout, and the cache outside it.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// The root of the checkout.
    pub root: PathBuf,
    /// What outlives the checkout: builds, and the data of `up`.
    pub cache: PathBuf,
    /// Where cargo builds.
    pub target: PathBuf,
}

impl Workspace {
    /// Finds the checkout that this xtask belongs to.
    pub fn find() -> Result<Self, String> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest.parent().ok_or("xtask has no parent directory")?.to_owned();
        let read = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let cache = cache_dir(read("RAFT_KV_CACHE"), read("XDG_CACHE_HOME"), read("HOME"))
            .ok_or("neither RAFT_KV_CACHE nor HOME is set: say where builds may go, RAFT_KV_CACHE=DIR")?;
        let cache = std::path::absolute(&cache).map_err(|error| format!("{}: {error}", cache.display()))?;
        let target = read("CARGO_TARGET_DIR").unwrap_or_else(|| cache.join("target"));
        let target =
            std::path::absolute(&target).map_err(|error| format!("{}: {error}", target.display()))?;
        Ok(Self { root, cache, target })
    }

    /// A cargo command in the checkout, in the environment that all of them share. RUSTFLAGS is not
    /// part of it: the flags are in `.cargo/config.toml`, and another value recompiles everything.
    pub fn cargo(&self) -> Command {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.current_dir(&self.root).env("CARGO_TARGET_DIR", &self.target);
        for (name, value) in compilers(|name| env::var_os(name).is_some()) {
            command.env(name, value);
        }
        // What `cargo run` sets for this process is not for the build scripts of others.
        for (name, _) in env::vars_os() {
            let shown = name.to_string_lossy();
            if shown.starts_with("CARGO_PKG_") || shown.starts_with("CARGO_MANIFEST_") {
                command.env_remove(&name);
            }
        }
        command.env_remove("LD_LIBRARY_PATH").env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
        command
    }

    /// The server's binary as a release build leaves it.
    pub fn server_binary(&self) -> PathBuf {
        self.target.join("release").join("raft-kv")
    }
}

/// The C compilers through ccache, unless the caller has chosen others.
fn compilers(chosen: impl Fn(&str) -> bool) -> Vec<(&'static str, &'static str)> {
    let ours = [("CC", "ccache gcc"), ("CXX", "ccache g++")];
    ours.into_iter().filter(|(name, _)| !chosen(name)).collect()
}

fn cache_dir(own: Option<PathBuf>, xdg: Option<PathBuf>, home: Option<PathBuf>) -> Option<PathBuf> {
    own.or_else(|| xdg.map(|dir| dir.join("raft-kv"))).or_else(|| home.map(|dir| dir.join(".cache/raft-kv")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_the_callers_then_the_users() {
        let path = |word: &str| Some(PathBuf::from(word));
        assert_eq!(cache_dir(path("own"), path("xdg"), path("home")), path("own"));
        assert_eq!(cache_dir(None, path("xdg"), path("home")), path("xdg/raft-kv"));
        assert_eq!(cache_dir(None, None, path("home")), path("home/.cache/raft-kv"));
        assert_eq!(cache_dir(None, None, None), None);
    }

    #[test]
    fn a_chosen_compiler_stays() {
        assert_eq!(compilers(|_| false), [("CC", "ccache gcc"), ("CXX", "ccache g++")]);
        assert_eq!(compilers(|name| name == "CC"), [("CXX", "ccache g++")]);
    }
}
