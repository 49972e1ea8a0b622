//! Feeds `api::TARGETS`' "api_kv".
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| raft_kv_fuzz::api::TARGETS[0].1(bytes));
