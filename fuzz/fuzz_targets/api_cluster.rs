//! Feeds `api::TARGETS`' "api_cluster".
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| raft_kv_fuzz::api::TARGETS[3].1(bytes));
