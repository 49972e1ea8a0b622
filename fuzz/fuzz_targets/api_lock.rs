//! Feeds `api::TARGETS`' "api_lock".
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| raft_kv_fuzz::api::TARGETS[6].1(bytes));
