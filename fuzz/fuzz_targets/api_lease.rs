//! Feeds `api::TARGETS`' "api_lease".
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| raft_kv_fuzz::api::TARGETS[2].1(bytes));
