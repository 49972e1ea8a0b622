//! Who a certificate speaks for, and the files a node proves itself with.

use std::time::SystemTime;

use x509_parser::oid_registry::OID_X509_SERIALNUMBER;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::error::Refusal;
use crate::types::{ClusterId, NodeId, Role};

/// Who somebody is. By itself it proves nothing: only `net` turns a verified handshake into one
/// that counts.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Identity {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// Its id; for a member its raft id.
    pub node: NodeId,
    /// What it may do.
    pub role: Role,
}

fn bad<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::BadCertificate { why: why.into() })
}

impl Identity {
    /// Reads the identity from a leaf that the cluster's authority made. Strict: exactly one of
    /// each field, nothing else in the subject, no leniency in spelling, no authority.
    ///
    /// # Errors
    /// [`Refusal::BadCertificate`] naming the field.
    pub fn from_cert(cert_der: &[u8]) -> Result<Self, Refusal> {
        let Ok((rest, cert)) = X509Certificate::from_der(cert_der) else {
            return bad("it can't be read");
        };
        if !rest.is_empty() {
            return bad("it has bytes after its end");
        }
        if cert.is_ca() {
            return bad("it is an authority's, not a node's");
        }
        let subject = cert.subject();
        let one = |mut values: Vec<&str>, field: &str| match values.len() {
            1 => Ok(values.remove(0).to_owned()),
            _ => bad(format!("its subject does not have exactly one {field}")),
        };
        let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            attribute.as_str().unwrap_or("").to_owned()
        };
        let serials: Vec<String> = subject.iter_by_oid(&OID_X509_SERIALNUMBER).map(text).collect();
        let names: Vec<String> = subject.iter_common_name().map(text).collect();
        let units: Vec<String> = subject.iter_organizational_unit().map(text).collect();
        let organizations: Vec<String> = subject.iter_organization().map(text).collect();
        let name = one(names.iter().map(String::as_str).collect(), "CN")?;
        let role = one(units.iter().map(String::as_str).collect(), "OU")?;
        let cluster = one(organizations.iter().map(String::as_str).collect(), "O")?;
        let Some(role) = Role::parse(&role) else {
            return bad("its OU is not a role that this version knows");
        };
        // A client has a name besides its id; nobody else has.
        let (node, fields) = match role {
            Role::Client if name.is_empty() => return bad("its CN, the client's name, is empty"),
            Role::Client => {
                let serial = one(serials.iter().map(String::as_str).collect(), "serialNumber")?;
                (hex_id(&serial, "serialNumber, the client's id,")?, 4)
            }
            Role::Manager | Role::Worker => (hex_id(&name, "CN, the node's id,")?, 3),
        };
        if subject.iter_attributes().count() != fields {
            return bad("its subject has fields that its role does not have");
        }
        let cluster = ClusterId(hex_id(&cluster, "O, the cluster's id,")?);
        Ok(Self { cluster, node: NodeId(node), role })
    }
}

/// The client's name in a leaf that [`Identity::from_cert`] accepts: the user that it acts as where
/// permissions count. `None` for every other role and for what is no such leaf.
pub fn name_of(cert_der: &[u8]) -> Option<String> {
    let identity = Identity::from_cert(cert_der).ok()?;
    let (_, cert) = X509Certificate::from_der(cert_der).ok()?;
    let name = cert.subject().iter_common_name().next()?.as_str().ok()?;
    (identity.role == Role::Client).then(|| name.to_owned())
}

fn hex_id(text: &str, field: &str) -> Result<u64, Refusal> {
    let plain = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    match u64::from_str_radix(text, 16) {
        Ok(id) if id != 0 && text.len() == 16 && text.chars().all(plain) => Ok(id),
        _ => bad(format!("its {field} is not 16 hexadecimal digits")),
    }
}

/// What a node proves itself with, and what it believes others by. All in DER.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Credentials {
    /// The leaf first, then whatever leads from it to a root (cross certificates); roots not
    /// included.
    pub chain: Vec<Vec<u8>>,
    /// The leaf's private key, PKCS #8.
    pub key: Vec<u8>,
    /// The roots that are believed; one, or more while a root is being replaced.
    pub roots: Vec<Vec<u8>>,
    /// Keys that may not lead to a root any more. Not in files: whoever follows the cluster knows.
    pub distrusted: Vec<crate::types::KeyDigest>,
}

impl std::fmt::Debug for Credentials {
    /// Shows who it is; never the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("identity", &self.identity()).finish_non_exhaustive()
    }
}

/// [`Credentials`] as three files in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct PemFiles {
    /// The roots.
    pub cacert: String,
    /// The chain, leaf first.
    pub cert: String,
    /// The private key: for its owner's eyes alone.
    pub key: String,
}

impl Credentials {
    /// Whom the leaf names.
    ///
    /// # Errors
    /// [`Refusal::BadCertificate`] if there is no leaf or it can't be read.
    pub fn identity(&self) -> Result<Identity, Refusal> {
        match self.chain.first() {
            Some(leaf) => Identity::from_cert(leaf),
            None => bad("there is no certificate"),
        }
    }

    /// Checks that the leaf is valid at `now`; `renew` says what to do where it is not any more.
    ///
    /// # Errors
    /// [`Refusal::BadCertificate`] with the date.
    pub fn check_date(&self, now: SystemTime, renew: &str) -> Result<(), Refusal> {
        let Some(leaf) = self.chain.first() else { return bad("there is no certificate in the file") };
        let (from, until) = super::validity_of(leaf)?;
        if now >= until {
            return bad(format!("it expired on {}; {renew}", super::moment(until).date()));
        }
        if now < from {
            let why = "is this machine's clock right?";
            return bad(format!("it is valid only from {} on; {why}", super::moment(from).date()));
        }
        Ok(())
    }

    /// The three files.
    pub fn to_pem(&self) -> PemFiles {
        let blocks = |tag: &str, all: &[Vec<u8>]| -> String {
            all.iter().map(|der| pem::encode(&pem::Pem::new(tag, der.clone()))).collect()
        };
        PemFiles {
            cacert: blocks("CERTIFICATE", &self.roots),
            cert: blocks("CERTIFICATE", &self.chain),
            key: blocks("PRIVATE KEY", std::slice::from_ref(&self.key)),
        }
    }

    /// Reads the three files and checks that they belong together: the key to the leaf, and a
    /// leaf that names somebody. Whether a root signed it is for the other side to say.
    ///
    /// # Errors
    /// [`Refusal::BadCertificate`] naming the file and what is wrong in it.
    pub fn from_pem(files: &PemFiles) -> Result<Self, Refusal> {
        let roots = certificates(&files.cacert, "cacert")?;
        let chain = certificates(&files.cert, "cert")?;
        let key = Self::key_from_pem(&files.key)?;
        let credentials = Self { chain, key, roots, distrusted: Vec::new() };
        credentials.check()?;
        Ok(credentials)
    }

    /// The one private key (PKCS #8 in DER) in a PEM file.
    ///
    /// # Errors
    /// [`Refusal::BadCertificate`] if there is none, or more.
    pub fn key_from_pem(text: &str) -> Result<Vec<u8>, Refusal> {
        match pem::parse_many(text).unwrap_or_default().as_slice() {
            [key] if key.tag() == "PRIVATE KEY" => Ok(key.contents().to_vec()),
            _ => bad("the key file does not hold one private key (PKCS #8 in PEM)"),
        }
    }

    /// Whether leaf and key belong together and the leaf names somebody.
    ///
    /// # Errors
    /// [`Refusal::BadCertificate`] if not.
    pub fn check(&self) -> Result<Identity, Refusal> {
        let identity = self.identity()?;
        let key = super::NodeKey::from_der(&self.key)?;
        let (_, leaf) = X509Certificate::from_der(&self.chain[0]).expect("read just above");
        if leaf.public_key().raw != key.public() {
            return bad("the private key belongs to another certificate");
        }
        Ok(identity)
    }
}

fn certificates(text: &str, file: &str) -> Result<Vec<Vec<u8>>, Refusal> {
    let blocks = pem::parse_many(text).unwrap_or_default();
    if blocks.is_empty() || blocks.iter().any(|block| block.tag() != "CERTIFICATE") {
        return bad(format!("the {file} file does not hold certificates in PEM"));
    }
    Ok(blocks.into_iter().map(pem::Pem::into_contents).collect())
}
