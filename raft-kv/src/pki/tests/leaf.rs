//! The authority decides what a certificate says, whatever a request asks for.

use rand::SeedableRng;
use rand::rngs::StdRng;
use rcgen::{BasicConstraints, CustomExtension, PublicKeyData};

use super::*;
use crate::pki::{Credentials, Identity, name_of};

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

const NOW: u64 = 1_800_000_000;

fn subject(role: Role) -> Subject {
    Subject {
        cluster: ClusterId(0xc1),
        node: NodeId(0xa1),
        role,
        name: "alice".into(),
        hosts: vec!["10.0.0.1".into(), "[::1]".into(), "kv.example".into(), "no t\0".into(), "".into()],
    }
}

fn make(role: Role, key: &[u8], seed: u64) -> Vec<u8> {
    let root = RootKey::generate(ClusterId(0xc1), at(NOW));
    let mut random = StdRng::seed_from_u64(seed);
    issue(&root, &subject(role), key, at(NOW), LEAF_VALIDITY, &mut random).unwrap()
}

#[test]
fn a_leaf_says_what_the_authority_decided() {
    for role in [Role::Manager, Role::Client, Role::Worker] {
        let key = NodeKey::generate();
        let der = make(role, &request_key(&key.request()).unwrap(), 1);
        let expect = Identity { cluster: ClusterId(0xc1), node: NodeId(0xa1), role };
        assert_eq!(Identity::from_cert(&der).unwrap(), expect);
        assert_eq!(name_of(&der), (role == Role::Client).then(|| "alice".to_owned()));
        assert_eq!(validity_of(&der).unwrap(), (at(NOW - 3600), at(NOW + 90 * 86400)));
        let (_, cert) = X509Certificate::from_der(&der).unwrap();
        let usage = cert.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && usage.server_auth == (role == Role::Manager));
        let names = &cert.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert_eq!(names.len(), 4, "{names:?}");
        assert_eq!(cert.public_key().raw, key.public());
    }
}

#[test]
fn serial_numbers_differ_and_have_128_bits() {
    let key = NodeKey::generate().public();
    let serial = |seed| {
        let der = make(Role::Client, &key, seed);
        X509Certificate::from_der(&der).unwrap().1.raw_serial().to_vec()
    };
    assert_ne!(serial(1), serial(2));
    assert_eq!(serial(3).len(), 16);
}

fn hostile(change: impl FnOnce(&mut CertificateParams)) -> (KeyPair, Vec<u8>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    change(&mut params);
    let der = params.serialize_request(&key).unwrap().der().to_vec();
    (key, der)
}

#[test]
fn nothing_but_the_key_comes_from_a_request() {
    let requests = [
        hostile(|params| {
            params.distinguished_name.push(DnType::CommonName, "00000000000000ff");
            params.distinguished_name.push(DnType::OrganizationalUnitName, "manager");
            params.distinguished_name.push(DnType::OrganizationName, "00000000000000c2");
        }),
        hostile(|params| {
            for uri in ["spiffe://a/manager", "spiffe://b/manager"] {
                params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
            }
            params.subject_alt_names.push(SanType::DnsName("root".try_into().unwrap()));
        }),
        hostile(|params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any];
        }),
        hostile(|params| {
            let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
            extension.set_criticality(true);
            params.custom_extensions.push(extension);
        }),
    ];
    for (key, request) in requests {
        let public = request_key(&request).unwrap();
        assert_eq!(public, key.subject_public_key_info());
        let (asked, plain) =
            (make(Role::Worker, &public, 1), make(Role::Worker, &NodeKey::generate().public(), 1));
        let expect = Identity { cluster: ClusterId(0xc1), node: NodeId(0xa1), role: Role::Worker };
        assert_eq!(Identity::from_cert(&asked).unwrap(), expect);
        let (_, asked) = X509Certificate::from_der(&asked).unwrap();
        let (_, plain) = X509Certificate::from_der(&plain).unwrap();
        assert_eq!(asked.subject(), plain.subject());
        let ids = |cert: &X509Certificate<'_>| -> Vec<String> {
            cert.extensions().iter().map(|ext| ext.oid.to_string()).collect()
        };
        assert_eq!(ids(&asked), ids(&plain));
        assert_eq!(
            format!("{:?}", asked.subject_alternative_name()),
            format!("{:?}", plain.subject_alternative_name()),
        );
    }
}

#[test]
fn requests_that_prove_nothing_are_refused() {
    let good = NodeKey::generate().request();
    assert!(request_key(b"").is_err());
    assert!(request_key(&[good.clone(), vec![0]].concat()).is_err());
    assert!(request_key(&vec![0x30; MAX_CSR_BYTES + 1]).is_err());
    let (_, huge) = hostile(|params| {
        for n in 0..2000 {
            params.subject_alt_names.push(SanType::DnsName(format!("h{n}").try_into().unwrap()));
        }
    });
    assert!(request_key(&huge).is_err());
    let other_kind = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let other_kind = CertificateParams::default().serialize_request(&other_kind).unwrap();
    assert!(request_key(other_kind.der()).is_err());
    // Each flipped bit is noticed, or changes nothing that is used.
    let key = request_key(&good).unwrap();
    for bit in 0..good.len() * 8 {
        let mut bent = good.clone();
        bent[bit / 8] ^= 1 << (bit % 8);
        if let Ok(public) = request_key(&bent) {
            assert_eq!(public, key, "bit {bit}");
        }
    }
}

#[test]
fn an_identity_is_read_strictly() {
    let root = RootKey::generate(ClusterId(0xc1), at(NOW));
    assert!(Identity::from_cert(root.cert_der()).is_err());
    assert!(Identity::from_cert(b"x").is_err());
    let key = KeyPair::generate().unwrap();
    let check = |names: &[(DnType, &str)], good: bool| {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in names {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let cert = params.signed_by(&key, &root.issuer()).unwrap();
        assert_eq!(Identity::from_cert(cert.der()).is_ok(), good, "{names:?}");
    };
    use DnType::{CommonName as CN, CountryName as C, OrganizationName as O, OrganizationalUnitName as OU};
    let (node, cluster) = ("00000000000000a1", "00000000000000c1");
    check(&[(CN, node), (OU, "manager"), (O, cluster)], true);
    check(&[(CN, node), (OU, "Manager"), (O, cluster)], false);
    check(&[(CN, node), (OU, "root"), (O, cluster)], false);
    check(&[(CN, node), (O, cluster)], false);
    check(&[(CN, "a1"), (OU, "manager"), (O, cluster)], false);
    check(&[(CN, "00000000000000A1"), (OU, "manager"), (O, cluster)], false);
    check(&[(CN, "+0000000000000a1"), (OU, "manager"), (O, cluster)], false);
    check(&[(CN, "0000000000000000"), (OU, "manager"), (O, cluster)], false);
    check(&[(CN, node), (OU, "manager"), (O, "x")], false);
    check(&[(CN, node), (OU, "manager"), (O, cluster), (C, "CH")], false);
    let id = || DnType::CustomDnType(SERIAL_NUMBER.to_vec());
    check(&[(CN, "alice"), (id(), node), (OU, "client"), (O, cluster)], true);
    check(&[(CN, node), (OU, "client"), (O, cluster)], false);
    check(&[(CN, ""), (id(), node), (OU, "client"), (O, cluster)], false);
    check(&[(CN, "alice"), (id(), "a1"), (OU, "client"), (O, cluster)], false);
    check(&[(CN, "alice"), (id(), node), (OU, "client"), (O, cluster), (C, "CH")], false);
    check(&[(CN, node), (id(), node), (OU, "manager"), (O, cluster)], false);
    check(&[(CN, "alice"), (id(), node), (OU, "worker"), (O, cluster)], false);
}

#[test]
fn credentials_come_back_from_their_files() {
    let root = RootKey::generate(ClusterId(0xc1), at(NOW));
    let key = NodeKey::generate();
    let mut random = StdRng::seed_from_u64(1);
    let leaf = issue(&root, &subject(Role::Client), &key.public(), at(NOW), LEAF_VALIDITY, &mut random);
    let credentials = Credentials {
        chain: vec![leaf.unwrap()],
        key: key.der().to_vec(),
        roots: vec![root.cert_der().to_vec()],
        ..Default::default()
    };
    let files = credentials.to_pem();
    assert_eq!(Credentials::from_pem(&files).unwrap(), credentials);
    let other = NodeKey::generate();
    let foreign = Credentials { key: other.der().to_vec(), ..credentials.clone() };
    assert!(Credentials::from_pem(&foreign.to_pem()).is_err());
    let swapped = crate::pki::PemFiles { cert: files.key.clone(), ..files.clone() };
    assert!(Credentials::from_pem(&swapped).is_err());
    assert!(Credentials::from_pem(&crate::pki::PemFiles { cacert: String::new(), ..files }).is_err());
}
