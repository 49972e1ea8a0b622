//! Measurements of raft-kv.
