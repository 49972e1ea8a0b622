//! Feeds `api::TARGETS`' "api_maintenance".
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| raft_kv_fuzz::api::TARGETS[4].1(bytes));
