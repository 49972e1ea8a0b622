//! Writes the seeds into the corpora, for a fuzzer to begin with: `cargo run` in this folder.

use std::fs;
use std::path::Path;

fn main() -> std::io::Result<()> {
    write(raft_kv_fuzz::targets::seeds())?;
    write(raft_kv_fuzz::api::seeds())
}

fn write(seeds: Vec<(&'static str, Vec<u8>)>) -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (number, (target, bytes)) in seeds.into_iter().enumerate() {
        let folder = corpus.join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(format!("seed-{number:02}")), bytes)?;
    }
    Ok(())
}
