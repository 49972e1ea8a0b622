//! Feeds `api::TARGETS`' "api_auth".
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| raft_kv_fuzz::api::TARGETS[5].1(bytes));
