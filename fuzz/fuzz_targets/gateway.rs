//! Feeds `api::TARGETS`' "gateway".
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| raft_kv_fuzz::api::TARGETS[8].1(bytes));
