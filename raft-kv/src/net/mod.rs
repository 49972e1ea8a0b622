//! QUIC with TLS 1.3 between members, and from clients and joiners to members: the only user of
//! sockets. One UDP port serves every purpose; each purpose has a protocol name of its own. For a
//! listener on TCP, which a server puts beside it, this has the TLS alone.
//!
//! There is no way to listen or dial here without TLS, and no stream of a connection is read
//! before its certificate is verified, its cluster, role and id are checked and it is known not
//! to be refused. What others send is bounded before it is kept.

mod bulk;
mod credential_files;
mod dial;
mod endpoint;
mod frame;
mod https;
mod live;
mod outbox;
mod peers;
mod progress;
mod request;
mod tls;

pub use crate::pki::Purpose;
pub use bulk::{BulkConn, BulkError, BulkIncoming};
pub use credential_files::{
    CERT_FILES, lock_credentials, read_credentials, read_credentials_in, replace_credentials,
    write_credentials, write_private,
};
pub use dial::{Dialer, ResponseStream};
pub use endpoint::{Accepted, ConnectionInfo, Endpoint, WeakEndpoint};
pub use https::{HandshakeFault, HttpsPeer, UNKNOWN_ROOT};
pub use live::LiveTrust;
pub use peers::{PeerConn, PeerEvent, PeerNet, Priority};
pub use progress::{Pace, Transfer, Transfers};
pub use request::{ClientConn, JoinConn, RequestStream};
pub use tls::{VerifiedPeer, check_chain, root_of};

#[cfg(test)]
mod tests;
