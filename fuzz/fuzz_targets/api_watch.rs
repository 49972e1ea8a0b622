//! Feeds `api::TARGETS`' "api_watch".
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| raft_kv_fuzz::api::TARGETS[1].1(bytes));
