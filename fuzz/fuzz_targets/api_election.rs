//! Feeds `api::TARGETS`' "api_election".
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| raft_kv_fuzz::api::TARGETS[7].1(bytes));
