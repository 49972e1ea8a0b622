//! Proof that who comes back is who left: a signature by the key of its old certificate.
//!
//! The certificate itself proves nothing here: who has a stolen root's key can make one in any node's
//! name. Whose key it must be is known to the authority alone.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, UnparsedPublicKey,
};

use super::root::public_key_of;
use crate::error::Refusal;
use crate::types::KeyDigest;

/// What is signed begins with this, so that no other signature of the key is a proof.
const CONTEXT: &[u8] = b"raft-kv readmission 1\0";
/// The bytes of a P-256 point, at the end of its public key.
const POINT: usize = 65;
/// The bytes before it.
const HEAD: usize = 26;

fn signed(request: &[u8]) -> Vec<u8> {
    [CONTEXT, request].concat()
}

/// Signs a certificate request with the private key (PKCS #8 in DER) of the old certificate.
///
/// # Errors
/// [`Refusal::BadCertificate`] if the key can't be read.
pub fn prove(key_der: &[u8], request: &[u8]) -> Result<Vec<u8>, Refusal> {
    let unreadable = || Refusal::BadCertificate { why: "the private key can't be read".into() };
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, key_der).map_err(|_| unreadable())?;
    let proof = key.sign(&SystemRandom::new(), &signed(request)).map_err(|_| unreadable())?;
    Ok(proof.as_ref().to_vec())
}

/// The digest of the key in `old` (a certificate in DER), which has signed `request`.
///
/// # Errors
/// [`Refusal::BadCertificate`] for a certificate that can't be read or has another kind of key, and for
/// a proof that is none.
pub fn proven_key(old: &[u8], request: &[u8], proof: &[u8]) -> Result<KeyDigest, Refusal> {
    let bad = |why: &str| Refusal::BadCertificate { why: why.into() };
    let public = public_key_of(old)?;
    if public.len() != HEAD + POINT {
        return Err(bad("the old certificate's key is not of the kind P-256"));
    }
    let point = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &public[HEAD..]);
    match point.verify(&signed(request), proof) {
        Ok(()) => Ok(KeyDigest::of(&public)),
        Err(_) if crate::planted!(SkipProof) => Ok(KeyDigest::of(&public)),
        Err(_) => Err(bad("who asks does not have the key of the old certificate")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::pki::{LEAF_VALIDITY, NodeKey, RootKey, Subject, issue};
    use crate::types::{ClusterId, NodeId, Role};

    fn leaf(key: &NodeKey) -> Vec<u8> {
        let (cluster, now) = (ClusterId(1), SystemTime::now());
        let root = RootKey::generate(cluster, now);
        let (node, role) = (NodeId(2), Role::Worker);
        let subject = Subject { cluster, node, role, name: String::new(), hosts: vec![] };
        issue(&root, &subject, &key.public(), now, LEAF_VALIDITY, &mut rand::rng()).unwrap()
    }

    fn check(old: &[u8], request: &[u8], proof: &[u8], expect: Option<&NodeKey>) {
        let proven = proven_key(old, request, proof);
        assert_eq!(proven.ok(), expect.map(|key| KeyDigest::of(&key.public())));
    }

    /// Whether a node's certificate is enough to come back as it.
    fn a_certificate_alone_is_enough() -> bool {
        let (key, thief) = (NodeKey::generate(), NodeKey::generate());
        let request = thief.request();
        proven_key(&leaf(&key), &request, &prove(thief.der(), &request).unwrap()).is_ok()
    }

    #[test]
    fn the_old_key_over_this_request_and_nothing_else_is_a_proof() {
        let (key, next) = (NodeKey::generate(), NodeKey::generate());
        let (old, request, other) = (leaf(&key), next.request(), NodeKey::generate().request());
        let proof = prove(key.der(), &request).unwrap();
        check(&old, &request, &proof, Some(&key));
        check(&old, &other, &proof, None);
        check(&leaf(&next), &request, &proof, None);
        check(&old, &request, &proof[..proof.len() - 1], None);
        check(&old, &request, &[], None);
        check(&[], &request, &proof, None);
        check(&old[..old.len() / 2], &request, &proof, None);
        assert!(!a_certificate_alone_is_enough());
        assert!(prove(b"no key", &request).is_err());
    }

    #[cfg(feature = "sim")]
    #[test]
    fn a_proof_that_is_not_looked_at_is_noticed() {
        let bug = Some(crate::planted::Bug::SkipProof);
        assert!(crate::planted::with(bug, a_certificate_alone_is_enough));
    }
}
