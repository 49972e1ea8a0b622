//! A root that its owner brings: read from PEM, and vetted before a cluster rests on it.
//!
//! Whatever is accepted here can sign leaves, and be replaced later: nothing is taken that would leave
//! a cluster without a way out. Signatures of a kind that can't be verified here are left to the TLS
//! verifier, which is asked about a whole chain before anything of it is used.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use x509_parser::error::X509Error;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::public_key::PublicKey;

use super::root::{CROSS_VALIDITY, RootKey};
use super::{BACK_DATE, LEAF_VALIDITY, moment};
use crate::error::Refusal;
use crate::limits::{MAX_CERTIFICATE_BYTES, MAX_INTERMEDIATES};
use crate::types::{Authority, KeyDigest, OwnRoot};

/// How long a root that is brought must still be valid.
pub const MIN_ROOT_LEFT: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long an intermediate that is brought must still be valid: a leaf's whole life.
pub const MIN_INTERMEDIATE_LEFT: Duration = LEAF_VALIDITY;
/// How long a root's certificate by the one that it replaces must still be valid.
const MIN_CROSS_LEFT: Duration = Duration::from_secs(24 * 3600);

/// Signatures with SHA-256 or better: RSA (PKCS #1 and PSS), ECDSA, Ed25519.
const SIGNATURES: [&str; 8] = [
    "1.2.840.113549.1.1.11",
    "1.2.840.113549.1.1.12",
    "1.2.840.113549.1.1.13",
    "1.2.840.113549.1.1.10",
    "1.2.840.10045.4.3.2",
    "1.2.840.10045.4.3.3",
    "1.2.840.10045.4.3.4",
    ED25519,
];
const ED25519: &str = "1.3.101.112";
/// P-256, P-384, P-521.
const CURVES: [&str; 3] = ["1.2.840.10045.3.1.7", "1.3.132.0.34", "1.3.132.0.35"];
/// Critical extensions that are understood: basic constraints, key usage, extended key usage.
const CRITICAL: [&str; 3] = ["2.5.29.19", "2.5.29.15", "2.5.29.37"];

fn bad<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::BadCertificate { why: why.into() })
}

/// Reads a root from PEM. `cert` holds the certificate that signs, then each one's issuer, the root
/// last; a root alone signs by itself. `key` belongs to the first of them (PKCS #8, not encrypted);
/// `cross` is that key as certified by the root in force, with what leads from there to that root.
/// Nothing is vetted yet: that is [`vet`]'s.
///
/// # Errors
/// [`Refusal::BadCertificate`] naming the part that can't be read.
pub fn own_root_from_pem(cert: &str, key: Option<&str>, cross: Option<&str>) -> Result<OwnRoot, Refusal> {
    let mut via = certificates(cert, "root")?;
    let root = via.pop().expect("never none");
    let cross = cross.map(|text| certificates(text, "cross certificate")).transpose()?;
    Ok(OwnRoot {
        root,
        via,
        key: key.map(private_key).transpose()?,
        cross: cross.map(|all| all.concat().into()),
    })
}

fn certificates(text: &str, what: &str) -> Result<Vec<Bytes>, Refusal> {
    let blocks = pem::parse_many(text).unwrap_or_default();
    if blocks.iter().any(|block| block.tag().ends_with("PRIVATE KEY")) {
        return bad(format!("the file of the {what} holds a private key too; give it on its own"));
    }
    if blocks.is_empty() || blocks.iter().any(|block| block.tag() != "CERTIFICATE") {
        return bad(format!("the file of the {what} does not hold certificates in PEM"));
    }
    if blocks.len() > MAX_INTERMEDIATES + 1 {
        return bad(format!("the file of the {what} holds more than {} certificates", MAX_INTERMEDIATES + 1));
    }
    Ok(blocks.into_iter().map(|block| block.into_contents().into()).collect())
}

fn private_key(text: &str) -> Result<Bytes, Refusal> {
    let blocks = pem::parse_many(text).unwrap_or_default();
    let keys: Vec<_> = blocks.into_iter().filter(|block| block.tag().ends_with("PRIVATE KEY")).collect();
    match keys.as_slice() {
        [key] if key.tag() == "PRIVATE KEY" => Ok(key.contents().to_vec().into()),
        [key] if key.tag() == "ENCRYPTED PRIVATE KEY" => {
            bad("the key is encrypted; decrypt it with `openssl pkcs8 -in FILE -out PLAIN`")
        }
        [_] => {
            bad("the key is not PKCS #8; convert it with `openssl pkcs8 -topk8 -nocrypt -in FILE -out PLAIN`")
        }
        _ => bad("the file of the key does not hold one private key in PEM"),
    }
}

/// The certificates that follow each other in `der`.
///
/// # Errors
/// [`Refusal::BadCertificate`] if it is anything else, or none.
pub fn split_certificates(der: &Bytes) -> Result<Vec<Bytes>, Refusal> {
    let mut all = Vec::new();
    let mut rest = der.as_ref();
    while !rest.is_empty() && all.len() <= MAX_INTERMEDIATES {
        let Ok((after, _)) = X509Certificate::from_der(rest) else {
            return bad("a certificate can't be read");
        };
        all.push(der.slice_ref(&rest[..rest.len() - after.len()]));
        rest = after;
    }
    if !rest.is_empty() || all.is_empty() {
        return bad("there is no certificate, or there are too many");
    }
    Ok(all)
}

/// Whether a cluster may rest on `own` from `now` on, its cross certificate apart: every certificate
/// is an authority's that may sign, is of a strong kind, lasts, and leads to the next one; and the
/// key, where there is one, belongs to the first.
///
/// # Errors
/// [`Refusal::BadCertificate`] naming the certificate, what is wrong with it and the way out.
pub fn vet(own: &OwnRoot, now: SystemTime) -> Result<(), Refusal> {
    if own.via.len() > MAX_INTERMEDIATES {
        return bad(format!("there are more than {MAX_INTERMEDIATES} intermediates"));
    }
    let ders: Vec<&Bytes> = own.via.iter().chain([&own.root]).collect();
    let mut parsed = Vec::new();
    for (height, der) in ders.iter().enumerate() {
        let name = if height == own.via.len() {
            "the root".to_owned()
        } else {
            format!("intermediate {}", height + 1)
        };
        let left = if height == own.via.len() { MIN_ROOT_LEFT } else { MIN_INTERMEDIATE_LEFT };
        let cert = authority(der, &name)?;
        check_dates(&cert, &name, now, left)?;
        check_path(&cert, &name, height + 1)?;
        parsed.push((name, cert));
    }
    for pair in parsed.windows(2) {
        let [(name, cert), (above, issuer)] = pair else { unreachable!("windows of two") };
        if cert.issuer().as_raw() != issuer.subject().as_raw() {
            return bad(format!(
                "{name} was not issued by {above}, which follows it; give the signing certificate first, then \
                 each one's issuer, the root last"
            ));
        }
        check_signature(cert, issuer, name)?;
    }
    let (name, root) = parsed.last().expect("never none");
    if root.issuer().as_raw() != root.subject().as_raw() {
        return bad("the last certificate is not a root: it was issued by another one, which must follow it");
    }
    check_signature(root, root, name)?;
    let keys: std::collections::BTreeSet<_> = parsed.iter().map(|(_, cert)| cert.public_key().raw).collect();
    if keys.len() != parsed.len() {
        return bad("two of its certificates have the same key");
    }
    match &own.key {
        Some(key) => RootKey::from_parts(ders[0], key).map(drop),
        None => Ok(()),
    }
}

/// Reads the certificate of an authority and checks what does not depend on its place or the time.
fn authority<'a>(der: &'a [u8], name: &str) -> Result<X509Certificate<'a>, Refusal> {
    if der.len() > MAX_CERTIFICATE_BYTES {
        return bad(format!("{name} is larger than {MAX_CERTIFICATE_BYTES} bytes"));
    }
    let Ok((rest, cert)) = X509Certificate::from_der(der) else {
        return bad(format!("{name} can't be read"));
    };
    if !rest.is_empty() {
        return bad(format!("{name} has bytes after its end"));
    }
    if !cert.is_ca() {
        return bad(format!("{name} is not an authority's certificate (basicConstraints without CA:TRUE)"));
    }
    let unreadable =
        || Refusal::BadCertificate { why: format!("{name} has an extension twice or unreadable") };
    if let Some(usage) = cert.key_usage().map_err(|_| unreadable())?
        && !usage.value.key_cert_sign()
    {
        return bad(format!("{name} may not sign certificates (keyUsage without keyCertSign)"));
    }
    if let Some(usage) = cert.extended_key_usage().map_err(|_| unreadable())?
        && !(usage.value.client_auth && usage.value.server_auth)
    {
        return bad(format!(
            "{name} has an extendedKeyUsage without clientAuth and serverAuth; leave it out, or give both"
        ));
    }
    if cert.name_constraints().map_err(|_| unreadable())?.is_some() {
        return bad(format!("{name} has name constraints, which are not supported; make one without"));
    }
    let unknown = cert
        .extensions()
        .iter()
        .find(|ext| ext.critical && !CRITICAL.contains(&ext.oid.to_id_string().as_str()));
    if let Some(extension) = unknown {
        return bad(format!("{name} has the critical extension {}, which is not understood", extension.oid));
    }
    check_subject(&cert, name)?;
    check_strength(&cert, name)?;
    Ok(cert)
}

fn check_subject(cert: &X509Certificate<'_>, name: &str) -> Result<(), Refusal> {
    let mut seen = std::collections::BTreeSet::new();
    for part in cert.subject().iter() {
        let kinds: Vec<String> = part.iter().map(|field| field.attr_type().to_id_string()).collect();
        let [kind] = kinds.as_slice() else {
            return bad(format!("{name} has a subject with several fields in one part; give it a plain one"));
        };
        if !seen.insert(kind.clone()) {
            return bad(format!("{name} has a subject with the field {kind} twice; give it a plain one"));
        }
    }
    if seen.is_empty() {
        return bad(format!("{name} has no subject; give it one, such as a CN"));
    }
    Ok(())
}

fn check_strength(cert: &X509Certificate<'_>, name: &str) -> Result<(), Refusal> {
    let signature = cert.signature_algorithm.algorithm.to_id_string();
    if !SIGNATURES.contains(&signature.as_str()) && !crate::planted!(TakeWeakRoot) {
        return bad(format!(
            "{name} is signed in a way that is too weak or not known ({signature}); SHA-256 or better is needed"
        ));
    }
    let parameters = cert.public_key().algorithm.parameters.as_ref();
    let curve = parameters.and_then(|it| it.as_oid().ok()).map(|curve| curve.to_id_string());
    match cert.public_key().parsed() {
        Ok(PublicKey::RSA(key)) if (2048..=8192).contains(&key.key_size()) => Ok(()),
        Ok(PublicKey::RSA(key)) => {
            bad(format!("{name} has an RSA key of {} bits; give one of 2048 to 8192", key.key_size()))
        }
        Ok(PublicKey::EC(_)) if curve.is_some_and(|curve| CURVES.contains(&curve.as_str())) => Ok(()),
        _ if cert.public_key().algorithm.algorithm.to_id_string() == ED25519 => Ok(()),
        _ => bad(format!("{name} has a kind of key that is not supported; give P-256, P-384 or RSA")),
    }
}

fn check_dates(
    cert: &X509Certificate<'_>,
    name: &str,
    now: SystemTime,
    left: Duration,
) -> Result<(), Refusal> {
    let at = |date: SystemTime| moment(date).unix_timestamp();
    let (from, until) = (cert.validity().not_before, cert.validity().not_after);
    if from.timestamp() > at(now) {
        return bad(format!("{name} is valid only from {from} on; is this machine's clock right?"));
    }
    if until.timestamp() < at(now + left) {
        let days = left.as_secs() / (24 * 3600);
        return bad(format!("{name} ends on {until}; it must be valid for {days} days more"));
    }
    Ok(())
}

/// `below`: how many authorities there may be under it, the certificate of a next root included.
fn check_path(cert: &X509Certificate<'_>, name: &str, below: usize) -> Result<(), Refusal> {
    let constraints =
        cert.basic_constraints().ok().flatten().and_then(|found| found.value.path_len_constraint);
    match constraints {
        Some(length) if (length as usize) < below => bad(format!(
            "{name} has pathlen:{length}; it must be {below} or more, or none: it signs a next root across \
             when it is replaced"
        )),
        _ => Ok(()),
    }
}

fn check_signature(cert: &X509Certificate<'_>, by: &X509Certificate<'_>, name: &str) -> Result<(), Refusal> {
    match cert.verify_signature(Some(by.public_key())) {
        // Of a kind that only the TLS verifier knows.
        Ok(()) | Err(X509Error::SignatureUnsupportedAlgorithm) => Ok(()),
        Err(_) => bad(format!("{name} has a signature that is not its issuer's")),
    }
}

/// What stands between leaves of `signing` (DER) and the root of `in_force`, vetted: `cross`, and
/// intermediates of `in_force` where they are needed and not in it.
///
/// # Errors
/// [`Refusal::BadCertificate`] if it certifies something else, does not lead to that root, ends too soon, or
/// would be valid longer than a root that was given up is remembered.
pub fn vet_cross(
    cross: &Bytes,
    signing: &[u8],
    in_force: &Authority,
    now: SystemTime,
) -> Result<Bytes, Refusal> {
    let mut all = split_certificates(cross)?;
    let name = "the cross certificate";
    let first = all[0].clone();
    let (first, signing) = (authority(&first, name)?, authority(signing, "the signing certificate")?);
    if first.subject().as_raw() != signing.subject().as_raw() || first.public_key() != signing.public_key() {
        return bad(format!(
            "{name} is not about the signing certificate: its subject and key must be the same"
        ));
    }
    check_dates(&first, name, now, MIN_CROSS_LEFT)?;
    let latest = moment(now + CROSS_VALIDITY + BACK_DATE).unix_timestamp();
    if first.validity().not_after.timestamp() > latest && !crate::planted!(CrossOutlives) {
        let days = CROSS_VALIDITY.as_secs() / (24 * 3600);
        return bad(format!("{name} is valid for more than {days} days, which is longer than is allowed"));
    }
    // Intermediates of the root in force follow where the last one given does not reach it by itself.
    let (_, root) = X509Certificate::from_der(&in_force.root).map_err(|_| unreadable())?;
    for via in &in_force.via {
        let last = all.last().expect("never none").clone();
        let (_, last) = X509Certificate::from_der(&last).map_err(|_| unreadable())?;
        let (_, next) = X509Certificate::from_der(via).map_err(|_| unreadable())?;
        if last.issuer().as_raw() != root.subject().as_raw()
            && last.issuer().as_raw() == next.subject().as_raw()
        {
            all.push(via.clone());
        }
    }
    for pair in all.windows(2) {
        let (_, cert) = X509Certificate::from_der(&pair[0]).map_err(|_| unreadable())?;
        let (_, by) = X509Certificate::from_der(&pair[1]).map_err(|_| unreadable())?;
        check_signature(&cert, &by, name)?;
    }
    let (_, last) = X509Certificate::from_der(all.last().expect("never none")).map_err(|_| unreadable())?;
    if last.issuer().as_raw() != root.subject().as_raw() {
        return bad(format!("{name} does not lead to the root in force"));
    }
    check_signature(&last, &root, name)?;
    let whole: Bytes = all.concat().into();
    if whole.len() > MAX_CERTIFICATE_BYTES {
        return bad(format!(
            "{name} and what leads to the root are larger than {MAX_CERTIFICATE_BYTES} bytes"
        ));
    }
    Ok(whole)
}

fn unreadable() -> Refusal {
    Refusal::BadCertificate { why: "a certificate of the root in force can't be read".into() }
}

/// The keys of the root of `own` and of everything under it.
///
/// # Errors
/// [`Refusal::BadCertificate`] for one that can't be read.
pub fn keys_of<'a>(root: &'a Bytes, via: &'a [Bytes]) -> Result<Vec<KeyDigest>, Refusal> {
    via.iter().chain([root]).map(|cert| super::key_of(cert)).collect()
}

/// Until when leaves under `authority` can be valid: the first of its certificates to end.
///
/// # Errors
/// [`Refusal::BadCertificate`] for one that can't be read.
pub fn end_of(authority: &Authority) -> Result<SystemTime, Refusal> {
    let mut end = super::validity_of(&authority.root)?.1;
    for via in &authority.via {
        end = end.min(super::validity_of(via)?.1);
    }
    Ok(end)
}

#[cfg(test)]
#[path = "tests/own.rs"]
mod tests;
