//! The cluster's root of trust: a self-signed certificate and its key.

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SerialNumber, SubjectPublicKeyInfo,
};
use x509_parser::asn1_rs::Tag;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{BACK_DATE, moment};
use crate::error::Refusal;
use crate::types::{ClusterId, KeyDigest, RootDigest};

/// How long a new root's certificate by the old one is valid: no leaf of the old one outlives it.
pub const CROSS_VALIDITY: Duration = super::LEAF_VALIDITY;
const ROOT_VALIDITY: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 has 32 bytes")
}

impl RootDigest {
    /// The digest of `cert_der`.
    pub fn of(cert_der: &[u8]) -> Self {
        Self(sha256(cert_der))
    }
}

impl KeyDigest {
    /// The digest of a public key, SPKI in DER.
    pub fn of(spki_der: &[u8]) -> Self {
        Self(sha256(spki_der))
    }
}

/// A root certificate together with its key: whoever has it can make any identity of the cluster.
pub struct RootKey {
    cert: Vec<u8>,
    key: KeyPair,
}

impl RootKey {
    /// Makes a new root of `cluster`: P-256, self-signed, valid for 20 years from `now`.
    pub fn generate(cluster: ClusterId, now: SystemTime) -> Self {
        let key = KeyPair::generate().expect("the system draws keys");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "raft-kv root");
        params.distinguished_name.push(DnType::OrganizationName, cluster.to_string());
        params.not_before = moment(now.checked_sub(BACK_DATE).unwrap_or(now));
        params.not_after = moment(now + ROOT_VALIDITY);
        // It signs leaves, and other roots across when one replaces another.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params.self_signed(&key).expect("fixed fields are always valid");
        Self { cert: cert.der().to_vec(), key }
    }

    /// The root that [`cert_der`](Self::cert_der) and [`key_der`](Self::key_der) gave.
    ///
    /// # Errors
    /// [`Refusal::BadCertificate`] if either can't be read or they do not belong together.
    pub fn from_parts(cert_der: &[u8], key_der: &[u8]) -> Result<Self, Refusal> {
        let bad = |why: &str| Refusal::BadCertificate { why: why.into() };
        let key = KeyPair::try_from(key_der).map_err(|_| bad("the root's key can't be read"))?;
        let (rest, cert) = X509Certificate::from_der(cert_der).map_err(|_| bad("the root can't be read"))?;
        if !rest.is_empty() || !cert.is_ca() {
            return Err(bad("it is not a root certificate"));
        }
        if cert.public_key().raw != key.subject_public_key_info() {
            return Err(bad("the root's key belongs to another certificate"));
        }
        if cert.subject().iter().any(|part| part.iter().count() != 1) {
            return Err(bad("the root's subject has a form that can't be repeated in what it signs"));
        }
        let issuer = Issuer::from_ca_cert_der(&cert_der.into(), &key);
        if issuer.is_err() {
            return Err(bad("the root has a part that can't be used here"));
        }
        Ok(Self { cert: cert_der.to_vec(), key })
    }

    /// A certificate of `other`, an authority's, by this one: who believes only this root believes
    /// what `other` signs, with this certificate behind it.
    ///
    /// # Errors
    /// [`Refusal::BadCertificate`] if `other` can't be read.
    pub fn cross_sign(&self, other: &[u8], now: SystemTime, validity: Duration) -> Result<Vec<u8>, Refusal> {
        let bad = |why: String| Refusal::BadCertificate { why };
        let mut params = CertificateParams::default();
        params.distinguished_name = subject_of(other)?;
        let key = SubjectPublicKeyInfo::from_der(&public_key_of(other)?)
            .map_err(|error| bad(format!("the other root's key can't be used: {error}")))?;
        let mut serial: [u8; 16] = rand::random();
        serial[0] = serial[0] & 0x7f | 0x40;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        params.not_before = moment(now.checked_sub(BACK_DATE).unwrap_or(now));
        params.not_after = moment(now + validity);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(&key, &self.issuer()).map_err(|error| bad(error.to_string()))?;
        let der = cert.der().to_vec();
        // Chains are built by names, byte for byte.
        let same =
            |cert: &[u8]| X509Certificate::from_der(cert).ok().map(|(_, it)| it.subject().as_raw().to_vec());
        if same(&der) != same(other) || public_key_of(&der)? != public_key_of(other)? {
            return Err(bad("the new root's subject or key can't be repeated as it is".into()));
        }
        Ok(der)
    }

    /// The request for a certificate of this authority by another: a CSR in DER with its subject.
    ///
    /// # Errors
    /// [`Refusal::BadCertificate`] if its subject can't be repeated.
    pub fn cross_request(&self) -> Result<Vec<u8>, Refusal> {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject_of(&self.cert)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let request = params.serialize_request(&self.key);
        let request = request.map_err(|error| Refusal::BadCertificate { why: error.to_string() })?;
        Ok(request.der().to_vec())
    }

    /// The certificate, in DER.
    pub fn cert_der(&self) -> &[u8] {
        &self.cert
    }

    /// The private key, PKCS #8 in DER.
    pub fn key_der(&self) -> &[u8] {
        self.key.serialized_der()
    }

    /// What a join token pins.
    pub fn digest(&self) -> RootDigest {
        RootDigest::of(&self.cert)
    }

    /// The side of it that signs.
    pub(super) fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_ca_cert_der(&self.cert.as_slice().into(), &self.key)
            .expect("checked when this root was made or read")
    }
}

/// The subject of a certificate, to be written again as it is.
fn subject_of(cert_der: &[u8]) -> Result<DistinguishedName, Refusal> {
    let bad = || Refusal::BadCertificate {
        why: "the new root's subject has a form that can't be certified here; give its key as certified by \
              the root in force along with it"
            .into(),
    };
    let (_, cert) = X509Certificate::from_der(cert_der).map_err(|_| bad())?;
    let mut name = DistinguishedName::new();
    for attribute in cert.subject().iter_attributes() {
        let oid: Vec<u64> = attribute.attr_type().iter().ok_or_else(bad)?.collect();
        let text = attribute.as_str().map_err(|_| bad())?;
        let value = match attribute.attr_value().tag() {
            Tag::Utf8String => DnValue::Utf8String(text.to_owned()),
            Tag::PrintableString => DnValue::PrintableString(text.try_into().map_err(|_| bad())?),
            Tag::Ia5String => DnValue::Ia5String(text.try_into().map_err(|_| bad())?),
            _ => return Err(bad()),
        };
        let kind = DnType::from_oid(&oid);
        if name.get(&kind).is_some() {
            return Err(bad());
        }
        name.push(kind, value);
    }
    Ok(name)
}

pub(super) fn public_key_of(cert_der: &[u8]) -> Result<Vec<u8>, Refusal> {
    let (_, cert) = X509Certificate::from_der(cert_der)
        .map_err(|_| Refusal::BadCertificate { why: "it can't be read".into() })?;
    Ok(cert.public_key().raw.to_vec())
}

/// The digest of a certificate's public key.
///
/// # Errors
/// [`Refusal::BadCertificate`] if it can't be read.
pub fn key_of(cert_der: &[u8]) -> Result<KeyDigest, Refusal> {
    public_key_of(cert_der).map(|key| KeyDigest::of(&key))
}

/// A certificate's serial number.
///
/// # Errors
/// [`Refusal::BadCertificate`] if it can't be read.
pub fn serial_of(cert_der: &[u8]) -> Result<Vec<u8>, Refusal> {
    let (_, cert) = X509Certificate::from_der(cert_der)
        .map_err(|_| Refusal::BadCertificate { why: "it can't be read".into() })?;
    Ok(cert.raw_serial().to_vec())
}

impl fmt::Debug for RootKey {
    /// Shows the digest; never the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RootKey").field(&self.digest()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_comes_back_from_its_parts_and_only_from_its_own() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let root = RootKey::generate(ClusterId(7), now);
        let again = RootKey::from_parts(root.cert_der(), root.key_der()).unwrap();
        assert_eq!(again.digest(), root.digest());
        let other = RootKey::generate(ClusterId(7), now);
        assert!(RootKey::from_parts(root.cert_der(), other.key_der()).is_err());
        assert!(RootKey::from_parts(b"rubbish", root.key_der()).is_err());
        assert!(RootKey::from_parts(root.cert_der(), b"rubbish").is_err());
        assert!(!format!("{root:?}").contains("key"));
    }
}
