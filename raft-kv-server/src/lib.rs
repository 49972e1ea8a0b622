//! The server's doors: the etcd v3 API over gRPC, its JSON gateway, and what monitors ask over
//! HTTP, all on one TLS port. Thin: each message is mapped to the crate's handle; nothing is
//! decided about the store here.

pub mod door;
pub mod etcd;
pub mod foreign;
pub mod gateway;
pub mod http;
pub mod metrics;
pub mod orchestrator;
pub mod worker_client;
