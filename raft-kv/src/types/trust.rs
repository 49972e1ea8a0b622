//! Whom the cluster believes: its roots, the nodes that its authority knows, join tokens, and the
//! replacement of a root while it serves.
//!
//! Certificates are opaque bytes here; what they say is `pki`'s. Times are seconds since 1970, by
//! the clock of whoever proposed the change.

use std::fmt;

use bytes::Bytes;

use super::{DataKeyId, HandedKeys, LockStatus, MemberRecord, NodeId, Resealed, Role};
use crate::codec::{Malformed, Reader, Wire, wire_enum, wire_struct};

macro_rules! digest {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        pub struct $name(pub [u8; 32]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
        impl Wire for $name {
            fn encode(&self, out: &mut bytes::BytesMut) {
                self.0.iter().for_each(|byte| byte.encode(out));
            }
            fn decode(input: &mut Reader) -> Result<Self, Malformed> {
                let mut bytes = [0; 32];
                for byte in &mut bytes {
                    *byte = u8::decode(input)?;
                }
                Ok(Self(bytes))
            }
        }
    };
}

digest! {
    /// SHA-256 of a root certificate in DER: what a join token pins, and what a root is called by.
    RootDigest
}
digest! {
    /// SHA-256 of a public key (SPKI in DER).
    KeyDigest
}

/// A secret as the cluster keeps it: encrypted, so that no log, state, snapshot or backup has it in
/// clear. What it means is known to whoever sealed it.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Sealed(pub Bytes);

impl Wire for Sealed {
    fn encode(&self, out: &mut bytes::BytesMut) {
        self.0.encode(out);
    }
    fn decode(input: &mut Reader) -> Result<Self, Malformed> {
        Bytes::decode(input).map(Self)
    }
}

impl fmt::Debug for Sealed {
    /// Shows nothing of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealed(..)")
    }
}

/// A secret on its way: the text of a token, or its secret part. Nothing prints it by accident.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Hidden(pub String);

impl Wire for Hidden {
    fn encode(&self, out: &mut bytes::BytesMut) {
        self.0.encode(out);
    }
    fn decode(input: &mut Reader) -> Result<Self, Malformed> {
        String::decode(input).map(Self)
    }
}

impl fmt::Debug for Hidden {
    /// Shows nothing of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden(..)")
    }
}

impl From<String> for Hidden {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Hidden {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

/// A root, and how the cluster's authority signs under it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Authority {
    /// The root's digest.
    pub digest: RootDigest,
    /// The digest of the key that signs leaves: the root's, or that of the first of `via`.
    pub signer: KeyDigest,
    /// The root certificate, DER.
    pub root: Bytes,
    /// What lies between leaves and the root, the signing one first, DER; empty where the root
    /// itself signs.
    pub via: Vec<Bytes>,
    /// The signing key; `None` where it is kept outside and members ask their external signer.
    pub key: Option<Sealed>,
    /// The signing key as certified by the root that was in force when this one was introduced, DER:
    /// with it behind them, leaves are accepted by who believes only that one. What leads from it to
    /// that root follows it, if anything does. `None` for the first.
    pub cross: Option<Bytes>,
}
wire_struct!(Authority { digest, signer, root, via, key, cross });

/// How far the replacement of a root is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// The new root is made known: both are believed, leaves still come from the old one.
    Introduce,
    /// Both are believed, leaves come from the new one. It ends by settling: only the new one is
    /// believed then.
    Reissue,
}
wire_enum!(Phase { 1 => Introduce, 2 => Reissue });

impl Phase {
    /// The word for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Introduce => "introduce",
            Self::Reissue => "reissue",
        }
    }
}

/// The replacement of a root, under way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rotation {
    /// Its number; no other rotation of this cluster has had it.
    pub id: u64,
    /// How far it is.
    pub phase: Phase,
    /// The root that will be the only one.
    pub target: RootDigest,
    /// When it began.
    pub started: i64,
    /// When it settles without who is late, if a quorum of the members has moved.
    pub deadline: i64,
    /// Whether the old root's key is in wrong hands: it settles as soon as a quorum has moved.
    pub stolen: bool,
    /// Whether it leads back to the root that was in force before.
    pub aborting: bool,
}
wire_struct!(Rotation { id, phase, target, started, deadline, stolen, aborting });

/// What the cluster believes now.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Trusted {
    /// Grows with every change of this record.
    pub epoch: u64,
    /// The believed roots; never none. The first is the one in force, whose digest join tokens pin; the
    /// others were introduced since.
    pub roots: Vec<Authority>,
    /// The replacement under way, if any.
    pub rotation: Option<Rotation>,
    /// Keys of roots that were believed once and may not lead to a believed one any more, each with the
    /// time after which no certificate of it is valid.
    pub distrusted: Vec<(KeyDigest, i64)>,
}
wire_struct!(Trusted { epoch, roots, rotation, distrusted });

impl Trusted {
    /// The authority that leaves come from now.
    ///
    /// # Panics
    /// If there is no root: a state always has one.
    pub fn issuing(&self) -> &Authority {
        let target = match &self.rotation {
            Some(rotation) if rotation.phase == Phase::Reissue => rotation.target,
            _ => self.in_force().digest,
        };
        self.roots.iter().find(|root| root.digest == target).expect("the target is believed")
    }

    /// The root that join tokens pin.
    ///
    /// # Panics
    /// If there is no root: a state always has one.
    pub fn in_force(&self) -> &Authority {
        self.roots.first().expect("a state always has a root")
    }
}

/// What the authority knows of a node that it gave a certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeRecord {
    /// Its id, in its certificate.
    pub id: NodeId,
    /// What its next certificate lets it do.
    pub role: Role,
    /// A client's or worker's name; for a member its name when it joined.
    pub name: String,
    /// The root that its newest certificate rests on.
    pub issuer: RootDigest,
    /// The key in its newest certificate.
    pub key: KeyDigest,
    /// Serial number of its newest certificate.
    pub serial: Bytes,
    /// When its newest certificate was made.
    pub issued: i64,
    /// When its newest certificate ends.
    pub ends: i64,
    /// The root that its certificate rested on when a listener last verified it, or, where the newest one
    /// rests on another, that of the one before: what counts as progress. `None` if neither is known.
    pub verified: Option<RootDigest>,
    /// The token it came with; empty for the first member and for what `cert issue` made.
    pub token: String,
    /// What went wrong last when it asked for a certificate, and when; empty if nothing.
    pub error: String,
    /// Until when a token lets it come back under this id although its certificate is not believed any
    /// more; 0 if not at all.
    pub readmit: i64,
}
wire_struct!(NodeRecord {
    id,
    role,
    name,
    issuer,
    key,
    serial,
    issued,
    ends,
    verified,
    token,
    error,
    readmit
});

/// A node that is refused although its certificate is valid.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Revocation {
    /// When the last of its certificates ends, and this record with it; `i64::MAX` where that is not
    /// known.
    pub until: i64,
    /// What it was.
    pub role: Role,
    /// What it was called.
    pub name: String,
}
wire_struct!(Revocation { until, role, name });

/// Whether a node whose chain is good may be let in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It is known, under this role.
    Known(Role),
    /// It was removed.
    Removed,
    /// Nothing is known of it (yet).
    Unknown,
}

/// A join token as the cluster keeps it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TokenRecord {
    /// What joining with it makes of a node.
    pub role: Role,
    /// The secret part of the token.
    pub secret: Sealed,
    /// For people.
    pub label: String,
    /// When it was made or last rotated.
    pub created: i64,
    /// From when on it is refused; `i64::MAX` for never.
    pub expires: i64,
    /// How often it may still be used; `None` for any number.
    pub uses: Option<u64>,
}
wire_struct!(TokenRecord { role, secret, label, created, expires, uses });

/// A change of what is believed. Applying it is total; a refusal has changed nothing. `now` is the
/// proposer's clock.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TrustChange {
    /// Begins to replace the root in force, also on top of a rotation that is under way: its new root
    /// stays believed until this one settles.
    Rotate {
        /// The rotation's number.
        id: u64,
        /// The new root.
        authority: Authority,
        /// See [`Rotation::deadline`].
        deadline: i64,
        /// See [`Rotation::stolen`].
        stolen: bool,
        /// Now.
        now: i64,
    },
    /// Goes from introducing to reissuing.
    Reissue {
        /// Which rotation.
        id: u64,
    },
    /// Leads a rotation back to the root in force.
    Abort {
        /// When it settles without who is late.
        deadline: i64,
        /// Now.
        now: i64,
    },
    /// Ends a rotation: only its target is believed from here on. Refused while somebody must be
    /// waited for.
    Settle {
        /// Which rotation.
        id: u64,
        /// New secrets of tokens, by id; a token that is not named here is gone.
        tokens: Vec<(String, Sealed)>,
        /// Now.
        now: i64,
    },
    /// A certificate is about to be handed out, for a new node or a known one. The record's
    /// `verified`, `error` and `readmit` do not count.
    Issue {
        /// The node as it will be.
        node: NodeRecord,
        /// Whether it must be known already: a renewal.
        renewal: bool,
        /// Now.
        now: i64,
    },
    /// Listeners have verified certificates of these nodes, resting on these roots.
    Verified {
        /// Which; those that are unknown are passed over.
        nodes: Vec<(NodeId, RootDigest)>,
    },
    /// A node could not be given, or did not take, a certificate.
    Failed {
        /// Which.
        id: NodeId,
        /// Why, without an address.
        error: String,
    },
    /// Stores a join token that does not exist yet.
    TokenCreate {
        /// Its id.
        id: String,
        /// The token.
        token: TokenRecord,
        /// Now.
        now: i64,
    },
    /// Gives a token another secret; the old one stops working.
    TokenRotate {
        /// Which.
        id: String,
        /// The new secret.
        secret: Sealed,
        /// Now.
        now: i64,
    },
    /// Removes a token.
    TokenRevoke {
        /// Which.
        id: String,
    },
    /// Takes a client or worker out: its certificate is refused from here on. Members leave by a change
    /// of the group.
    NodeRemove {
        /// Which.
        id: NodeId,
        /// Now.
        now: i64,
    },
    /// Changes what a client's or worker's next certificate lets it do.
    NodeRole {
        /// Which.
        id: NodeId,
        /// Its role from its next certificate on.
        role: Role,
    },
    /// Lets a node come back under its id with a token, although its certificate is not believed.
    Readmit {
        /// Which.
        id: NodeId,
        /// Until when.
        until: i64,
    },
    /// Removes what ended before `now`.
    Tidy {
        /// Now.
        now: i64,
    },
    /// Makes the next data key known to the members, who store it. While one is being replaced this asks
    /// for another replacement after it.
    KeyNext {
        /// One more than the active one's.
        id: DataKeyId,
        /// The key, sealed with the active one.
        key: Sealed,
        /// Now.
        now: i64,
    },
    /// A member has the next data key on its disk.
    KeyStored {
        /// Which key.
        id: DataKeyId,
        /// Who.
        node: NodeId,
    },
    /// From here on the next data key seals. Refused while it is not on the disks of a quorum.
    KeyActivate {
        /// Which key.
        id: DataKeyId,
    },
    /// Secrets sealed anew.
    Reseal {
        /// Which; those that have changed meanwhile are passed over.
        items: Vec<Resealed>,
    },
    /// From here on nothing is sealed with the key before the active one. Refused while something is.
    KeySettle {
        /// The active key.
        id: DataKeyId,
    },
    /// Locks members' disks with an unlock key, or with another one, or unlocks them.
    Unlock {
        /// The unlock key; `None` for no lock.
        key: Option<Sealed>,
        /// The version before it: of two changes at a time one is refused.
        version: u64,
    },
}
wire_enum!(TrustChange {
    1 => Rotate { id, authority, deadline, stolen, now }, 2 => Reissue { id },
    3 => Abort { deadline, now }, 4 => Settle { id, tokens, now },
    5 => Issue { node, renewal, now }, 6 => Verified { nodes }, 7 => Failed { id, error },
    8 => TokenCreate { id, token, now }, 9 => TokenRotate { id, secret, now }, 10 => TokenRevoke { id },
    11 => NodeRemove { id, now }, 12 => NodeRole { id, role }, 13 => Readmit { id, until },
    14 => Tidy { now },
    30 => KeyNext { id, key, now }, 31 => KeyStored { id, node }, 32 => KeyActivate { id },
    33 => Reseal { items }, 34 => KeySettle { id }, 35 => Unlock { key, version },
});

/// A root that its owner brings, instead of one that the cluster makes.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct OwnRoot {
    /// The root certificate, DER.
    pub root: Bytes,
    /// Intermediates, the signing one first, DER.
    pub via: Vec<Bytes>,
    /// The signing key, PKCS #8 DER; `None` where an external signer has it.
    pub key: Option<Bytes>,
    /// The signing key as certified by the root in force, DER, and what leads from there to that root;
    /// `None` where the cluster or its external signer makes it.
    pub cross: Option<Bytes>,
}
wire_struct!(OwnRoot { root, via, key, cross });

impl fmt::Debug for OwnRoot {
    /// Shows nothing of the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnRoot").field("root", &self.root.len()).finish_non_exhaustive()
    }
}

/// What is asked of the cluster's authority.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TrustCall {
    /// What is believed, who has which certificate, how far a rotation is.
    Status,
    /// Replaces the root.
    Rotate {
        /// The new one; `None`: the cluster makes one.
        new: Option<OwnRoot>,
        /// Seconds until it settles without who is late; 0 for the usual time.
        deadline: u64,
        /// Whether the old key is in wrong hands.
        stolen: bool,
    },
    /// Leads a rotation back.
    Abort,
    /// The tokens, without their secrets.
    Tokens,
    /// Makes a token.
    TokenCreate {
        /// For which role.
        role: Role,
        /// For people.
        label: String,
        /// Seconds that it is good for; 0 for ever.
        ttl: u64,
        /// How often it may be used; 0 for any number.
        uses: u64,
    },
    /// Gives a token a new secret.
    TokenRotate(String),
    /// Removes a token.
    TokenRevoke(String),
    /// The token with that id, secret included.
    Token(String),
    /// Takes a node out, whatever its role.
    NodeRemove(NodeId),
    /// Makes a learner a voter, or lets a client or worker join as a manager.
    NodePromote(NodeId),
    /// Takes a manager out of the group; it may come back as a worker or client with a token.
    NodeDemote(NodeId),
    /// Lets a node come back with a token, keeping its id and data.
    NodeReadmit(NodeId),
    /// A new certificate for the node that asks by its present one.
    Renew {
        /// The certificate request (DER); only its public key is taken.
        request: Bytes,
    },
    /// Tells when what is believed changes: answered by a stream, each item the same as to `Renew` without
    /// a chain.
    Follow,
    /// Whether a node that the asker has not heard of is a member: for members alone, answered by what the
    /// asked member has applied.
    Vouch(NodeId),
    /// Whether members' disks are locked.
    LockStatus,
    /// Locks members' disks, or unlocks them; data keys are replaced.
    Autolock(bool),
    /// The unlock key.
    UnlockKey,
    /// Gives the cluster another unlock key; data keys are replaced.
    UnlockKeyRotate,
    /// The keys that secrets are sealed with: for members alone.
    Keys,
}
wire_enum!(TrustCall {
    1 => Status, 2 => Rotate { new, deadline, stolen }, 3 => Abort, 4 => Tokens,
    5 => TokenCreate { role, label, ttl, uses }, 6 => TokenRotate(id), 7 => TokenRevoke(id), 8 => Token(id),
    9 => NodeRemove(id), 10 => NodePromote(id), 11 => NodeDemote(id), 12 => NodeReadmit(id),
    13 => Renew { request }, 14 => Follow, 15 => Vouch(id),
    30 => LockStatus, 31 => Autolock(on), 32 => UnlockKey, 33 => UnlockKeyRotate, 34 => Keys,
});

/// What the authority answers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TrustReply {
    /// To a question about its state.
    Status(CaStatus),
    /// To a question about tokens: without secrets, each with its id.
    Tokens(Vec<(String, TokenRecord)>),
    /// A token's id and text, secret included.
    Token {
        /// Its id.
        id: String,
        /// What a joiner gives.
        text: Hidden,
    },
    /// A certificate, and what to believe.
    Certificate {
        /// The leaf first, then what leads to a root (DER); empty where none was asked for.
        chain: Vec<Bytes>,
        /// All believed roots (DER).
        roots: Vec<Bytes>,
        /// The root that leaves come from now: who has another renews.
        issuing: RootDigest,
    },
    /// To anything that has nothing to tell.
    Done,
    /// To a member that asks about another: its record, if it is one.
    Vouched(Option<MemberRecord>),
    /// To a question about the lock, and to changes of it.
    Lock(LockStatus),
    /// To a member that asks for keys.
    Keys(HandedKeys),
}
wire_enum!(TrustReply {
    1 => Status(status), 2 => Tokens(tokens), 3 => Token { id, text },
    4 => Certificate { chain, roots, issuing }, 5 => Done, 6 => Vouched(record),
    30 => Lock(status), 31 => Keys(keys),
});

/// The authority as `ca status` shows it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct CaStatus {
    /// See [`Trusted::epoch`].
    pub epoch: u64,
    /// The believed roots (DER), the one in force first.
    pub roots: Vec<Bytes>,
    /// Their digests, in the same order.
    pub digests: Vec<RootDigest>,
    /// Whether the key that signs is kept outside.
    pub external: bool,
    /// The rotation under way.
    pub rotation: Option<Rotation>,
    /// Every node that has a certificate, by id. Members are those that the group names.
    pub nodes: Vec<NodeRecord>,
    /// Who must still move before the rotation settles.
    pub late: Vec<NodeId>,
    /// The leader's clock when it answered, seconds since 1970.
    pub now: i64,
}
wire_struct!(CaStatus { epoch, roots, digests, external, rotation, nodes, late, now });

impl CaStatus {
    /// Whether no certificate that the node was given is believed any more: a root was replaced without it.
    pub fn shut_out(&self, node: &NodeRecord) -> bool {
        !self.digests.contains(&node.issuer)
    }
}

/// A client or worker that has no certificate asks for one, by a token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EnrolRequest {
    /// The token's secret part.
    pub secret: Hidden,
    /// The certificate request (DER); only its public key is taken.
    pub request: Bytes,
    /// The name it wants.
    pub name: String,
}
wire_struct!(EnrolRequest { secret, request, name });

/// A node whose certificate is not believed any more asks to come back under its id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadmitRequest {
    /// The token's secret part.
    pub secret: Hidden,
    /// The certificate request (DER) with its new key.
    pub request: Bytes,
    /// Its old certificate (DER): it names the node, and its key is compared with the record's.
    pub old: Bytes,
    /// Signature of the old key over `request`, as `pki::prove` makes it.
    pub proof: Bytes,
}
wire_struct!(ReadmitRequest { secret, request, old, proof });

impl NodeRecord {
    /// A node with a certificate that rests on `issuer`; everything else is blank.
    pub fn new(id: NodeId, role: Role, name: impl Into<String>, issuer: RootDigest) -> Self {
        Self {
            id,
            role,
            name: name.into(),
            issuer,
            key: KeyDigest::default(),
            serial: Bytes::new(),
            issued: 0,
            ends: i64::MAX,
            verified: None,
            token: String::new(),
            error: String::new(),
            readmit: 0,
        }
    }
}
