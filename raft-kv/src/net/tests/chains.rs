//! Chains as they are presented while a root is replaced: accepted by who believes only the new root and
//! by who believes only the old one, intermediates and all, and by nobody once the key was given up.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

use super::*;
use crate::net::check_chain;
use crate::pki::{
    CROSS_VALIDITY, OwnRoot, RootKey, keys_of, own_root_from_pem, split_certificates, vet, vet_cross,
};
use crate::types;

/// A root of somebody's own with `depth` intermediates, all with keys of `kind`, as the cluster has it.
struct Brought {
    authority: types::Authority,
    signs: RootKey,
}

fn params(name: &str, ca: BasicConstraints, days: u32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(ca);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let now = time_of(SystemTime::now());
    (params.not_before, params.not_after) = (now - DAY, now + DAY * days);
    params
}

fn time_of(at: SystemTime) -> time::OffsetDateTime {
    at.into()
}

fn brought(name: &str, depth: u8, kind: &'static rcgen::SignatureAlgorithm) -> Brought {
    let mut key = KeyPair::generate_for(kind).unwrap();
    let mut above = params(name, BasicConstraints::Constrained(depth + 1), 3650);
    let root = above.self_signed(&key).unwrap().der().to_vec();
    let mut chain = vec![root];
    for height in (0..depth).rev() {
        let (next, below) = (
            KeyPair::generate_for(kind).unwrap(),
            params(&format!("{name} {height}"), BasicConstraints::Constrained(height + 1), 400),
        );
        let cert = below.signed_by(&next, &Issuer::from_params(&above, &key)).unwrap();
        chain.insert(0, cert.der().to_vec());
        (key, above) = (next, below);
    }
    let pem: String = chain.iter().map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", &der[..]))).collect();
    let own: OwnRoot = own_root_from_pem(&pem, Some(&key.serialize_pem()), None).unwrap();
    vet(&own, SystemTime::now()).unwrap();
    let signs = RootKey::from_parts(&chain[0], own.key.as_ref().unwrap()).unwrap();
    let authority = types::Authority { root: own.root, via: own.via, ..types::Authority::default() };
    Brought { authority, signs }
}

/// What a node shows whose leaf is `new`'s, while `old` is in force.
fn chain(new: &Brought, old: &Brought, role: Role) -> Vec<Vec<u8>> {
    let key = NodeKey::generate();
    let (node, name) = (NodeId(1), "tester".to_owned());
    let subject = Subject { cluster: CLUSTER, node, role, name, hosts: vec![] };
    let now = SystemTime::now();
    let leaf = issue(&new.signs, &subject, &key.public(), now, LEAF_VALIDITY, &mut rand::rng()).unwrap();
    let cross = old.signs.cross_sign(new.signs.cert_der(), now, CROSS_VALIDITY).unwrap();
    let cross = vet_cross(&cross.into(), new.signs.cert_der(), &old.authority, now).unwrap();
    let via = new.authority.via.iter().map(|cert| cert.to_vec());
    let cross = split_certificates(&cross).unwrap();
    std::iter::once(leaf).chain(via).chain(cross.iter().map(|cert| cert.to_vec())).collect()
}

fn only(brought: &Brought) -> Credentials {
    Credentials { roots: vec![brought.authority.root.to_vec()], ..Credentials::default() }
}

#[test]
fn a_chain_is_accepted_under_the_new_root_alone_and_under_the_old_one_alone() {
    let kinds = [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_RSA_SHA256];
    for (old_depth, new_depth, kind) in
        [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 1), (0, 1, 2), (2, 0, 1), (3, 3, 0), (1, 3, 0)]
    {
        let (old, new) = (brought("old", old_depth, kinds[0]), brought("new", new_depth, kinds[kind]));
        let other = brought("new", new_depth, kinds[0]);
        for role in [Role::Manager, Role::Client, Role::Worker] {
            let chain = chain(&new, &old, role);
            let server = role == Role::Manager;
            check_chain(&only(&new), &chain, server).unwrap();
            check_chain(&only(&old), &chain, server).unwrap();
            check_chain(&only(&other), &chain, server).unwrap_err();
            // Without what leads to the old root, only the new one leads anywhere.
            let plain = &chain[..=usize::from(new_depth)];
            check_chain(&only(&new), plain, server).unwrap();
            check_chain(&only(&old), plain, server).unwrap_err();
        }
    }
}

#[test]
fn a_key_that_was_given_up_leads_nowhere() {
    let (old, new) = (
        brought("old", 1, &rcgen::PKCS_ECDSA_P256_SHA256),
        brought("new", 1, &rcgen::PKCS_ECDSA_P256_SHA256),
    );
    let chain = chain(&new, &old, Role::Manager);
    let signer = keys_of(&new.authority.root, &new.authority.via).unwrap()[0];
    let after_abort = Credentials { distrusted: vec![signer], ..only(&old) };
    check_chain(&only(&old), &chain, true).unwrap();
    check_chain(&after_abort, &chain, true).unwrap_err();
    // What the old root itself signed is as good as before.
    let (leaf, node) = (NodeKey::generate(), NodeId(2));
    let subject = Subject { cluster: CLUSTER, node, role: Role::Manager, name: String::new(), hosts: vec![] };
    let now = SystemTime::now();
    let leaf = issue(&old.signs, &subject, &leaf.public(), now, LEAF_VALIDITY, &mut rand::rng()).unwrap();
    let own: Vec<Vec<u8>> =
        std::iter::once(leaf).chain(old.authority.via.iter().map(|it| it.to_vec())).collect();
    check_chain(&after_abort, &own, true).unwrap();
}

#[test]
fn a_leaf_does_not_sign() {
    let old = brought("old", 0, &rcgen::PKCS_ECDSA_P256_SHA256);
    let new = brought("new", 0, &rcgen::PKCS_ECDSA_P256_SHA256);
    let mut chain = chain(&new, &old, Role::Manager);
    chain.swap(0, 1);
    check_chain(&only(&old), &chain, true).unwrap_err();
    check_chain(&only(&new), &chain, true).unwrap_err();
    check_chain(&only(&new), &[], true).unwrap_err();
}
