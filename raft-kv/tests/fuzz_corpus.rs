//! Replays what the fuzz targets have met, as a plain test: the seeds, every file in `fuzz/corpus/`, and
//! for each of them all its beginnings and every one of its bytes changed. A crash that a fuzzer finds
//! is kept by putting its file into the corpus.
#![cfg(feature = "sim")]

#[path = "../../fuzz/src/targets.rs"]
mod targets;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use raft_kv::codec::Wire;
use raft_kv::machine::Proposal;
use raft_kv::node::wire::PeerFrame;

/// Inputs longer than this are replayed as they are only.
const MUTATED_UP_TO: usize = 4096;

#[test]
fn every_input_met_so_far_keeps_the_properties() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let mut met: BTreeMap<&str, usize> = BTreeMap::new();
    let mut replay = |name: &'static str, target: fn(&[u8]), bytes: &[u8]| {
        *met.entry(name).or_default() += 1;
        target(bytes);
        if bytes.len() > MUTATED_UP_TO {
            return;
        }
        for end in 0..bytes.len() {
            target(&bytes[..end]);
        }
        let mut changed = bytes.to_vec();
        for at in 0..changed.len() {
            for byte in [changed[at] ^ 1, changed[at] ^ 0x80, 0, 0xff] {
                let was = std::mem::replace(&mut changed[at], byte);
                target(&changed);
                changed[at] = was;
            }
        }
    };
    let seeds = targets::seeds();
    for (name, target) in targets::TARGETS {
        for (_, bytes) in seeds.iter().filter(|(of, _)| of == name) {
            replay(name, *target, bytes);
        }
        // A target without a corpus of its own has its seeds alone.
        for entry in fs::read_dir(corpus.join(name)).into_iter().flatten().flatten() {
            replay(name, *target, &fs::read(entry.path()).expect("a corpus file can be read"));
        }
    }
    for (name, _) in targets::TARGETS {
        assert!(met.get(name).is_some_and(|count| *count > 1), "{name} met nothing");
    }
    let known: Vec<&str> = targets::TARGETS.iter().map(|(name, _)| *name).collect();
    for (name, _) in &seeds {
        assert!(known.contains(name), "a seed for {name}, which is no target");
    }
}

#[test]
fn the_seeds_reach_beyond_the_decoder() {
    for (name, bytes) in targets::seeds() {
        let decoded = match name {
            "proposals" | "machine" => Vec::<Proposal>::from_bytes(bytes.into()).is_ok(),
            "peer_frame" => PeerFrame::from_bytes(bytes.into()).is_ok(),
            _ => true,
        };
        assert!(decoded, "{name}: a seed that does not decode");
    }
}
