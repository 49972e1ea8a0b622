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

/// A leaf as the subject's own authority would make it, with `change` made to it.
fn signed_elsewhere(role: Role, key: &NodeKey, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let subject = subject(role);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let name = &mut params.distinguished_name;
    if role == Role::Client {
        name.push(DnType::CommonName, subject.name.as_str());
        name.push(DnType::CustomDnType(SERIAL_NUMBER.to_vec()), subject.node.to_string());
    } else {
        name.push(DnType::CommonName, subject.node.to_string());
    }
    name.push(DnType::OrganizationalUnitName, role.as_str());
    name.push(DnType::OrganizationName, subject.cluster.to_string());
    (params.not_before, params.not_after) = (moment(at(NOW)), moment(at(NOW + 86_400)));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if role == Role::Manager {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
    }
    params.subject_alt_names = alternative_names(&subject.hosts);
    change(&mut params);
    let public = SubjectPublicKeyInfo::from_der(&key.public()).unwrap();
    let root = RootKey::generate(ClusterId(0xc1), at(NOW));
    params.signed_by(&public, &root.issuer()).unwrap().der().to_vec()
}

fn check_answer(leaf: &[u8], role: Role, key: &NodeKey) -> Result<(), Refusal> {
    let asked = (at(NOW - 3600), at(NOW + 90 * 86_400));
    // A client's name alone is in its certificate.
    let name = if role == Role::Client { "alice".into() } else { String::new() };
    check_signed(leaf, &Subject { name, ..subject(role) }, &key.public(), asked, at(NOW + 1))
}

#[test]
fn an_answer_of_somebody_else_is_compared_with_what_was_asked_for() {
    type Change = Box<dyn FnOnce(&mut CertificateParams)>;
    use DnType::{CommonName as CN, CountryName as C, OrganizationName as O, OrganizationalUnitName as OU};
    let renamed = |kind: DnType, value: &'static str| -> Change {
        Box::new(move |it| {
            it.distinguished_name.remove(kind.clone());
            it.distinguished_name.push(kind, value);
        })
    };
    let dated = |from: u64, until: u64| -> Change {
        Box::new(move |it| (it.not_before, it.not_after) = (moment(at(from)), moment(at(until))))
    };
    let used =
        |usages: Vec<ExtendedKeyUsagePurpose>| -> Change { Box::new(|it| it.extended_key_usages = usages) };
    use ExtendedKeyUsagePurpose::{Any, ClientAuth, CodeSigning, ServerAuth};
    let cases: Vec<(Change, &str)> = vec![
        (Box::new(|it| it.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), "authority's"),
        (renamed(CN, "00000000000000a2"), "subject"),
        (renamed(O, "00000000000000c2"), "subject"),
        (renamed(OU, "client"), "serialNumber"),
        (renamed(OU, "worker"), "subject"),
        (renamed(C, "CH"), "fields"),
        (dated(NOW - 3601, NOW + 86_400), "begin"),
        (dated(NOW + 2, NOW + 86_400), "begin"),
        (dated(NOW, NOW + 90 * 86_400 + 1), "ends later"),
        (dated(NOW, NOW + 30), "within a minute"),
        (used(vec![]), "no extendedKeyUsage"),
        (used(vec![ClientAuth]), "extendedKeyUsage"),
        (used(vec![ServerAuth]), "extendedKeyUsage"),
        (used(vec![ClientAuth, ServerAuth, Any]), "extendedKeyUsage"),
        (used(vec![ClientAuth, ServerAuth, CodeSigning]), "extendedKeyUsage"),
        (
            used(vec![ClientAuth, ServerAuth, ExtendedKeyUsagePurpose::Other(vec![1, 2, 3])]),
            "extendedKeyUsage",
        ),
        (Box::new(|it| it.key_usages.push(KeyUsagePurpose::KeyCertSign)), "keyUsage"),
        (Box::new(|it| it.key_usages.clear()), "keyUsage"),
        (Box::new(|it| it.subject_alt_names.clear()), "lacks"),
        (
            Box::new(|it| it.subject_alt_names.push(SanType::DnsName("more".try_into().unwrap()))),
            "alternative name that was not",
        ),
        (
            Box::new(|it| it.subject_alt_names.push(SanType::URI("spiffe://x".try_into().unwrap()))),
            "alternative name that was not",
        ),
        (
            Box::new(|it| {
                let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
                extension.set_criticality(true);
                it.custom_extensions.push(extension);
            }),
            "critical extension",
        ),
    ];
    let key = NodeKey::generate();
    for role in [Role::Manager, Role::Client, Role::Worker] {
        let good = signed_elsewhere(role, &key, |_| {});
        check_answer(&good, role, &key).unwrap();
        // Fewer names do no harm.
        check_answer(&signed_elsewhere(role, &key, |it| it.subject_alt_names.truncate(1)), role, &key)
            .unwrap();
        check_answer(&good, role, &NodeKey::generate()).unwrap_err();
        for other in [Role::Manager, Role::Client, Role::Worker] {
            assert_eq!(check_answer(&good, other, &key).is_ok(), other == role);
        }
    }
    for (change, part) in cases {
        let leaf = signed_elsewhere(Role::Manager, &key, change);
        let refusal = check_answer(&leaf, Role::Manager, &key).unwrap_err().to_string();
        assert!(refusal.contains(part), "{part}: {refusal}");
        #[cfg(feature = "sim")]
        crate::planted::with(Some(crate::planted::Bug::TrustSignerBlindly), || {
            check_answer(&leaf, Role::Manager, &key).unwrap();
        });
    }
    let renamed = signed_elsewhere(Role::Client, &key, |it| {
        it.distinguished_name.remove(CN);
        it.distinguished_name.push(CN, "root");
    });
    assert!(check_answer(&renamed, Role::Client, &key).is_err());
    check_answer(b"rubbish", Role::Manager, &key).unwrap_err();
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        cases: 64, failure_persistence: None, ..proptest::prelude::ProptestConfig::default()
    })]

    /// Whatever a request asks for, a certificate is what the authority decided, or there is none.
    #[test]
    fn a_request_yields_what_the_authority_decided_or_nothing(
        names in proptest::collection::vec("[ -~]{0,40}", 0..6),
        uris in proptest::collection::vec("[a-z]{1,8}://[a-z/]{0,20}", 0..6),
        dns in proptest::collection::vec("[a-z0-9.*-]{1,30}", 0..40),
        extension in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..2000),
        authority in proptest::prelude::any::<bool>(),
        bent in proptest::option::of((0usize..10_000, proptest::prelude::any::<u8>())),
        role in proptest::sample::select(vec![Role::Manager, Role::Client, Role::Worker]),
    ) {
        let (key, mut request) = hostile(|params| {
            let kinds = [
                DnType::CommonName,
                DnType::OrganizationalUnitName,
                DnType::OrganizationName,
                DnType::CustomDnType(SERIAL_NUMBER.to_vec()),
                DnType::CountryName,
                DnType::LocalityName,
            ];
            for (kind, name) in kinds.into_iter().zip(names) {
                params.distinguished_name.push(kind, name);
            }
            let uris = uris.iter().filter_map(|uri| uri.as_str().try_into().ok()).map(SanType::URI);
            params.subject_alt_names.extend(uris);
            let dns = dns.iter().filter_map(|dns| dns.as_str().try_into().ok()).map(SanType::DnsName);
            params.subject_alt_names.extend(dns);
            params.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 99], extension));
            if authority {
                params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
                params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            }
        });
        if let Some((index, to)) = bent {
            let index = index % request.len();
            request[index] = to;
        }
        let Ok(public) = request_key(&request) else { return Ok(()) };
        proptest::prop_assert_eq!(&public, &key.subject_public_key_info());
        let leaf = make(role, &public, 1);
        let plain = NodeKey::generate();
        let (asked, decided) = (leaf.clone(), make(role, &plain.public(), 1));
        let (_, asked) = X509Certificate::from_der(&asked).unwrap();
        let (_, decided) = X509Certificate::from_der(&decided).unwrap();
        let expect = Identity { cluster: ClusterId(0xc1), node: NodeId(0xa1), role };
        proptest::prop_assert_eq!(Identity::from_cert(&leaf).unwrap(), expect);
        proptest::prop_assert_eq!(asked.subject().as_raw(), decided.subject().as_raw());
        proptest::prop_assert_eq!(asked.validity(), decided.validity());
        proptest::prop_assert_eq!(asked.extensions().len(), decided.extensions().len());
        for (one, other) in asked.extensions().iter().zip(decided.extensions()) {
            proptest::prop_assert_eq!(&one.oid, &other.oid);
            proptest::prop_assert_eq!(one.critical, other.critical);
            // The key identifiers alone differ: each leaf here has a key and an authority of its own.
            if !["2.5.29.14", "2.5.29.35"].contains(&one.oid.to_id_string().as_str()) {
                proptest::prop_assert_eq!(one.value, other.value);
            }
        }
    }
}
