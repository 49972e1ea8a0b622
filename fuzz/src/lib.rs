//! The fuzz targets' bodies as a library.

pub mod api;
#[path = "../../raft-kv-server/src/gateway/json.rs"]
pub mod json;
pub mod targets;
