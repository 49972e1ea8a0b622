//! Leaf certificates: who a node is, as the cluster's authority decides it.
//!
//! A request proves that its sender holds a key, and says nothing else that counts.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rand::RngCore;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate, X509CertificationRequest, X509Extension};

use super::{BACK_DATE, Identity, RootKey, TLS_NAME, moment, name_of};
use crate::error::Refusal;
use crate::limits::{MAX_CSR_BYTES, MAX_NAME_BYTES};
use crate::types::{ClusterId, NodeId, Role};

/// How long a leaf is valid unless its issuer is told otherwise.
pub const LEAF_VALIDITY: Duration = Duration::from_secs(90 * 24 * 3600);
/// What somebody else signs is valid for at least this long: a shorter life is over before it is used.
const MIN_SIGNED_LEFT: Duration = Duration::from_secs(60);
/// The subject's field serialNumber (X.520).
const SERIAL_NUMBER: [u64; 4] = [2, 5, 4, 5];
/// P-256, as a request's public key must name it: the whole prefix of its DER form.
const P256_PREFIX: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
    0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

/// Whom a certificate is for. The authority fills it in; no part comes from a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subject {
    /// The cluster; O in the certificate.
    pub cluster: ClusterId,
    /// The node; CN in the certificate, and for a client the subject's serialNumber.
    pub node: NodeId,
    /// A client's name, which is also the user that it acts as; CN in its certificate. Nothing for
    /// other roles.
    pub name: String,
    /// What it may do; OU in the certificate.
    pub role: Role,
    /// Host names and addresses that foreign TLS clients check; may be empty. What is neither is
    /// left out.
    pub hosts: Vec<String>,
}

/// A node's own key.
pub struct NodeKey(KeyPair);

impl NodeKey {
    /// Draws a new P-256 key.
    pub fn generate() -> Self {
        Self(KeyPair::generate().expect("the system draws keys"))
    }

    /// The key that [`der`](Self::der) gave.
    ///
    /// # Errors
    /// [`Refusal::BadCertificate`] if it can't be read.
    pub fn from_der(der: &[u8]) -> Result<Self, Refusal> {
        KeyPair::try_from(der).map(Self).map_err(|_| bad("the private key can't be read"))
    }

    /// The private key, PKCS #8 in DER.
    pub fn der(&self) -> &[u8] {
        self.0.serialized_der()
    }

    /// The public key, SPKI in DER: what [`issue`] takes.
    pub fn public(&self) -> Vec<u8> {
        use rcgen::PublicKeyData;
        self.0.subject_public_key_info()
    }

    /// The request that proves possession of this key: a CSR in DER with no names in it.
    pub fn request(&self) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&self.0).expect("an empty request is always valid");
        request.der().to_vec()
    }
}

impl std::fmt::Debug for NodeKey {
    /// Shows nothing of the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NodeKey(..)")
    }
}

fn bad(why: &str) -> Refusal {
    Refusal::BadCertificate { why: why.into() }
}

/// Whether a certificate that is valid from `from` to `until` should have been replaced by `now`: less
/// than a fifth of its life is left (of 90 days: 18 days).
pub fn ends_soon(from: SystemTime, until: SystemTime, now: SystemTime) -> bool {
    let life = until.duration_since(from + BACK_DATE).unwrap_or_default();
    until.duration_since(now).unwrap_or_default() < life / 5
}

/// The public key (SPKI in DER) of a request whose signature proves that the sender holds the
/// private one. Names, roles and extensions in it are not looked at.
///
/// # Errors
/// [`Refusal::BadCertificate`] for a request that is too large, unreadable, not signed by its own
/// key, or of another kind of key than P-256.
pub fn request_key(csr_der: &[u8]) -> Result<Vec<u8>, Refusal> {
    if csr_der.len() > MAX_CSR_BYTES {
        return Err(bad("the certificate request is too large"));
    }
    let (rest, request) = X509CertificationRequest::from_der(csr_der)
        .map_err(|_| bad("the certificate request can't be read"))?;
    if !rest.is_empty() {
        return Err(bad("the certificate request has bytes after its end"));
    }
    let key = request.certification_request_info.subject_pki.raw;
    if key.len() != P256_PREFIX.len() + 65 || !key.starts_with(&P256_PREFIX) {
        return Err(bad("the certificate request's key is not of the kind P-256"));
    }
    request.verify_signature().map_err(|_| bad("the certificate request is not signed by its own key"))?;
    Ok(key.to_vec())
}

/// A certificate for `subject` over `public_key` (SPKI in DER, as [`request_key`] gives it),
/// valid for `validity` from `now` and an hour before. Its serial number is 128 bits of `random`.
///
/// # Errors
/// [`Refusal::BadCertificate`] if the public key is not a P-256 key, or a client has no name.
pub fn issue(
    root: &RootKey,
    subject: &Subject,
    public_key: &[u8],
    now: SystemTime,
    validity: Duration,
    random: &mut dyn RngCore,
) -> Result<Vec<u8>, Refusal> {
    let key = SubjectPublicKeyInfo::from_der(public_key).map_err(|_| bad("the public key can't be read"))?;
    if !public_key.starts_with(&P256_PREFIX) {
        return Err(bad("the public key is not of the kind P-256"));
    }
    let mut serial = [0; 16];
    random.fill_bytes(&mut serial);
    // A serial number is positive and has no leading zero byte.
    serial[0] = serial[0] & 0x7f | 0x40;
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.distinguished_name = DistinguishedName::new();
    let name = &mut params.distinguished_name;
    if subject.role == Role::Client {
        if subject.name.is_empty() || subject.name.len() > MAX_NAME_BYTES {
            return Err(bad("a client's certificate needs a name, and not a longer one than is allowed"));
        }
        name.push(DnType::CommonName, subject.name.as_str());
        let id = subject.node.to_string().as_str().try_into().expect("digits are printable");
        name.push(DnType::CustomDnType(SERIAL_NUMBER.to_vec()), DnValue::PrintableString(id));
    } else {
        name.push(DnType::CommonName, subject.node.to_string());
    }
    name.push(DnType::OrganizationalUnitName, subject.role.as_str());
    name.push(DnType::OrganizationName, subject.cluster.to_string());
    params.not_before = moment(now.checked_sub(BACK_DATE).unwrap_or(now));
    params.not_after = moment(now + validity);
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if subject.role == Role::Manager {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.subject_alt_names = alternative_names(&subject.hosts);
    let cert =
        params.signed_by(&key, &root.issuer()).map_err(|error| bad(&format!("it can't be made: {error}")))?;
    Ok(cert.der().to_vec())
}

/// Whether `leaf`, which somebody else signed, says what [`issue`] would have said, from `from` to
/// `until` at most; `now` is between them. Who signed it is not looked at: that is the TLS verifier's.
///
/// # Errors
/// [`Refusal::BadCertificate`] naming what differs.
pub fn check_signed(
    leaf: &[u8],
    subject: &Subject,
    public_key: &[u8],
    (from, until): (SystemTime, SystemTime),
    now: SystemTime,
) -> Result<(), Refusal> {
    if crate::planted!(TrustSignerBlindly) {
        return Ok(());
    }
    let (rest, cert) = X509Certificate::from_der(leaf).map_err(|_| bad("it can't be read"))?;
    if !rest.is_empty() {
        return Err(bad("it has bytes after its end"));
    }
    let wanted = Identity { cluster: subject.cluster, node: subject.node, role: subject.role };
    if Identity::from_cert(leaf)? != wanted || name_of(leaf).unwrap_or_default() != subject.name {
        return Err(bad("its subject is not the one that was asked for"));
    }
    if cert.public_key().raw != public_key {
        return Err(bad("its key is not the one that was asked for"));
    }
    let (begins, ends) = validity_of(leaf)?;
    if begins < floor(from) || begins > now {
        return Err(bad("it does not begin between the moment that was asked for and now"));
    }
    if ends > until || ends < (now + MIN_SIGNED_LEFT).min(floor(until)) {
        return Err(bad("it ends later than was asked for, or within a minute"));
    }
    check_usage(&cert, subject.role)?;
    let unreadable = |_| bad("it has an extension twice or unreadable");
    let names = cert.subject_alternative_name().map_err(unreadable)?;
    let names = names.map_or(&[][..], |names| names.value.general_names.as_slice());
    let asked: Vec<String> = alternative_names(&subject.hosts).iter().map(plain_name).collect();
    let found: Option<Vec<String>> = names.iter().map(plain_general_name).collect();
    match found {
        Some(found) if !found.iter().any(|name| name == TLS_NAME) => {
            Err(bad(&format!("it lacks the alternative name {TLS_NAME}")))
        }
        Some(found) if found.iter().all(|name| asked.contains(name)) => Ok(()),
        _ => Err(bad("it has an alternative name that was not asked for")),
    }
}

fn check_usage(cert: &X509Certificate<'_>, role: Role) -> Result<(), Refusal> {
    let unreadable = |_| bad("it has an extension twice or unreadable");
    let usage = cert.key_usage().map_err(unreadable)?;
    // Bit 0 is digital signature.
    if usage.is_none_or(|usage| usage.value.flags != 1) {
        return Err(bad("its keyUsage is not digitalSignature alone"));
    }
    let usage = cert.extended_key_usage().map_err(unreadable)?;
    let usage = usage.ok_or_else(|| bad("it has no extendedKeyUsage"))?.value;
    let more = usage.any
        || usage.code_signing
        || usage.email_protection
        || usage.time_stamping
        || usage.ocsp_signing
        || !usage.other.is_empty();
    if !usage.client_auth || usage.server_auth != (role == Role::Manager) || more {
        return Err(bad("its extendedKeyUsage is not clientAuth, and for a manager also serverAuth, alone"));
    }
    let unknown = |ext: &&X509Extension<'_>| {
        // Basic constraints, the two usages, alternative names.
        let known = ["2.5.29.19", "2.5.29.15", "2.5.29.37", "2.5.29.17"];
        ext.critical && !known.contains(&ext.oid.to_id_string().as_str())
    };
    if cert.extensions().iter().find(unknown).is_some() {
        return Err(bad("it has a critical extension that was not asked for"));
    }
    Ok(())
}

/// Certificates have whole seconds.
fn floor(at: SystemTime) -> SystemTime {
    let at = moment(at).unix_timestamp();
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(at).unwrap_or(0))
}

/// The names and addresses that a leaf for these hosts has, [`TLS_NAME`] first.
pub fn names_of(hosts: &[String]) -> Vec<String> {
    alternative_names(hosts).iter().map(plain_name).collect()
}

fn plain_name(name: &SanType) -> String {
    match name {
        SanType::DnsName(name) => name.to_string(),
        SanType::IpAddress(ip) => ip.to_string(),
        other => unreachable!("{other:?} is never made"),
    }
}

fn plain_general_name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|ip| IpAddr::from(ip).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|ip| IpAddr::from(ip).to_string()),
            _ => None,
        },
        _ => None,
    }
}

fn alternative_names(hosts: &[String]) -> Vec<SanType> {
    let fixed = SanType::DnsName(TLS_NAME.try_into().expect("a fixed name"));
    let mut names = vec![fixed];
    for host in hosts {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
        let name = if let Ok(ip) = bare.parse::<IpAddr>() {
            SanType::IpAddress(ip)
        } else if !host.is_empty() && host.len() <= 253 && host.chars().all(plain) {
            let Ok(dns) = host.as_str().try_into() else { continue };
            SanType::DnsName(dns)
        } else {
            continue;
        };
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// Whether a certificate has that name among its alternative ones.
pub fn has_name(cert_der: &[u8], name: &str) -> bool {
    let Ok((_, cert)) = X509Certificate::from_der(cert_der) else { return false };
    let Ok(Some(names)) = cert.subject_alternative_name() else { return false };
    names.value.general_names.iter().any(|found| plain_general_name(found).as_deref() == Some(name))
}

/// From when until when a certificate is valid: whoever holds it renews in time.
///
/// # Errors
/// [`Refusal::BadCertificate`] if it can't be read.
pub fn validity_of(cert_der: &[u8]) -> Result<(SystemTime, SystemTime), Refusal> {
    let (_, cert) = X509Certificate::from_der(cert_der).map_err(|_| bad("the certificate can't be read"))?;
    let at = |time: x509_parser::time::ASN1Time| {
        SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or(0))
    };
    Ok((at(cert.validity().not_before), at(cert.validity().not_after)))
}

#[cfg(test)]
#[path = "tests/leaf.rs"]
mod tests;
