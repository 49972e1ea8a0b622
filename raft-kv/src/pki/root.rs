//! The cluster's root of trust: a self-signed certificate and its key.

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{BACK_DATE, moment};
use crate::error::Refusal;
use crate::types::{ClusterId, KeyDigest, RootDigest};

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
        Ok(Self { cert: cert_der.to_vec(), key })
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
