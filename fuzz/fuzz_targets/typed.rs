//! Feeds `targets::typed`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| raft_kv_fuzz::targets::typed::typed(bytes));
