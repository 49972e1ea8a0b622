//! What may be brought as a root, and what is refused, each by its reason.

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    GeneralSubtree, IsCa, Issuer, KeyPair, KeyUsagePurpose, NameConstraints, PublicKeyData,
};

use super::*;
use crate::types::ClusterId;

const DAY: u64 = 24 * 3600;

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// An authority that is good as a root, unless `change` spoils it.
fn params(name: &str, pathlen: Option<u8>, days: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(pathlen.map_or(BasicConstraints::Unconstrained, BasicConstraints::Constrained));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = moment(now() - BACK_DATE);
    params.not_after = moment(now() + Duration::from_secs(days * DAY));
    params
}

struct Made {
    der: Bytes,
    key: KeyPair,
    params: CertificateParams,
}

fn root_of(key: KeyPair, change: impl FnOnce(&mut CertificateParams)) -> Made {
    let mut params = params("own root", None, 3650);
    change(&mut params);
    let der = params.self_signed(&key).unwrap().der().to_vec().into();
    Made { der, key, params }
}

fn root(change: impl FnOnce(&mut CertificateParams)) -> Made {
    root_of(KeyPair::generate().unwrap(), change)
}

fn under(above: &Made, change: impl FnOnce(&mut CertificateParams)) -> Made {
    let key = KeyPair::generate().unwrap();
    let mut params = params("intermediate", Some(1), 400);
    change(&mut params);
    let issuer = Issuer::from_params(&above.params, &above.key);
    let der = params.signed_by(&key, &issuer).unwrap().der().to_vec().into();
    Made { der, key, params }
}

fn own(chain: &[&Made], key: Option<&KeyPair>) -> OwnRoot {
    let (root, via) = chain.split_last().unwrap();
    OwnRoot {
        root: root.der.clone(),
        via: via.iter().map(|made| made.der.clone()).collect(),
        key: key.map(|key| Bytes::copy_from_slice(key.serialized_der())),
        cross: None,
    }
}

#[track_caller]
fn check(own: &OwnRoot, expect: Result<(), &str>) {
    match (vet(own, now()), expect) {
        (Ok(()), Ok(())) => {}
        (Err(refusal), Err(part)) => assert!(refusal.to_string().contains(part), "{refusal}"),
        (got, expect) => panic!("{got:?} instead of {expect:?}"),
    }
}

#[test]
fn roots_of_several_kinds_sign_leaves() {
    for kind in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ECDSA_P521_SHA512,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let made = root_of(KeyPair::generate_for(kind).unwrap(), |_| {});
        let brought = own(&[&made], Some(&made.key));
        check(&brought, Ok(()));
        let signs = RootKey::from_parts(&brought.root, brought.key.as_ref().unwrap()).unwrap();
        let key = super::super::NodeKey::generate();
        let subject = super::super::Subject {
            cluster: ClusterId(1),
            node: crate::types::NodeId(2),
            role: crate::types::Role::Manager,
            name: String::new(),
            hosts: vec![],
        };
        let leaf =
            super::super::issue(&signs, &subject, &key.public(), now(), LEAF_VALIDITY, &mut rand::rng());
        let (leaf, made) = (leaf.unwrap(), made.der.clone());
        let (_, leaf) = X509Certificate::from_der(&leaf).unwrap();
        let (_, made) = X509Certificate::from_der(&made).unwrap();
        assert_eq!(leaf.issuer().as_raw(), made.subject().as_raw());
        check_signature(&leaf, &made, "the leaf").unwrap();
    }
}

#[test]
fn what_the_cluster_makes_would_pass() {
    let made = RootKey::generate(ClusterId(7), now());
    let own = OwnRoot {
        root: Bytes::copy_from_slice(made.cert_der()),
        key: Some(Bytes::copy_from_slice(made.key_der())),
        ..OwnRoot::default()
    };
    check(&own, Ok(()));
}

#[test]
fn a_root_that_is_unfit_is_refused_by_its_reason() {
    type Change = Box<dyn FnOnce(&mut CertificateParams)>;
    let cases: Vec<(Change, &str)> = vec![
        (Box::new(|it| it.is_ca = IsCa::ExplicitNoCa), "without CA:TRUE"),
        (Box::new(|it| it.is_ca = IsCa::NoCa), "without CA:TRUE"),
        (Box::new(|it| it.key_usages = vec![KeyUsagePurpose::DigitalSignature]), "keyCertSign"),
        (Box::new(|it| it.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))), "pathlen:0"),
        (Box::new(|it| it.not_after = moment(now() + Duration::from_secs(364 * DAY))), "365 days more"),
        (Box::new(|it| it.not_after = moment(now() - Duration::from_secs(DAY))), "365 days more"),
        (Box::new(|it| it.not_before = moment(now() + Duration::from_secs(DAY))), "clock"),
        (Box::new(|it| it.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]), "clientAuth"),
        (
            Box::new(|it| {
                let permitted_subtrees = vec![GeneralSubtree::DnsName("example".into())];
                let excluded_subtrees = vec![];
                it.name_constraints = Some(NameConstraints { permitted_subtrees, excluded_subtrees });
            }),
            "name constraints",
        ),
        (
            Box::new(|it| {
                let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
                extension.set_criticality(true);
                it.custom_extensions.push(extension);
            }),
            "critical extension",
        ),
        (Box::new(|it| it.distinguished_name = DistinguishedName::new()), "no subject"),
    ];
    for (change, part) in cases {
        let made = root(change);
        check(&own(&[&made], Some(&made.key)), Err(part));
        check(&own(&[&made], None), Err(part));
    }
}

/// Made with openssl, since rcgen makes nothing weak.
const WEAK: [(&str, &str); 5] = [
    (include_str!("roots/sha1.pem"), "too weak"),
    (include_str!("roots/rsa1024.pem"), "RSA key of 1024 bits"),
    (include_str!("roots/k1.pem"), "kind of key"),
    (include_str!("roots/multi.pem"), "several fields in one part"),
    (include_str!("roots/pss.pem"), ""),
];

#[test]
fn weak_kinds_are_refused() {
    for (text, part) in WEAK {
        let own = own_root_from_pem(text, None, None).unwrap();
        check(&own, if part.is_empty() { Ok(()) } else { Err(part) });
    }
}

#[test]
fn intermediates_must_lead_to_the_root() {
    let top = root(|_| {});
    let via = under(&top, |_| {});
    check(&own(&[&via, &top], Some(&via.key)), Ok(()));
    check(&own(&[&via, &top], None), Ok(()));
    check(&own(&[&top, &via], None), Err("pathlen:1"));
    let other = root(|it| it.distinguished_name.push(DnType::OrganizationName, "other"));
    check(&own(&[&via, &other], None), Err("was not issued by"));
    check(&own(&[&via], None), Err("not a root"));
    let two = under(&via, |it| it.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    check(&own(&[&two, &via, &top], None), Err("intermediate 2 has pathlen:1; it must be 2"));
    let none = under(&top, |it| it.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    check(&own(&[&none, &top], None), Err("pathlen:0"));
    let short = under(&top, |it| it.not_after = moment(now() + Duration::from_secs(89 * DAY)));
    check(&own(&[&short, &top], None), Err("90 days more"));
    // Another root of the same name did not sign it.
    let twin = root(|_| {});
    check(&own(&[&via, &twin], None), Err("signature"));
    check(&own(&[&top, &top], None), Err("same key"));
    let deep = vec![&via, &via, &via, &via, &top];
    check(&own(&deep, None), Err("more than"));
}

#[test]
fn the_key_must_belong_to_the_signing_certificate() {
    let top = root(|_| {});
    let via = under(&top, |_| {});
    check(&own(&[&via, &top], Some(&top.key)), Err("belongs to another"));
    let rubbish = OwnRoot { key: Some(Bytes::from_static(b"rubbish")), ..own(&[&top], None) };
    check(&rubbish, Err("can't be read"));
    let cut = OwnRoot { root: top.der.slice(..top.der.len() - 1), ..own(&[&top], None) };
    check(&cut, Err("can't be read"));
    let more = OwnRoot { root: [&top.der[..], &[0]].concat().into(), ..own(&[&top], None) };
    check(&more, Err("bytes after its end"));
}

#[test]
fn files_are_read_strictly() {
    let top = root(|_| {});
    let via = under(&top, |_| {});
    let block = |tag: &str, der: &[u8]| pem::encode(&pem::Pem::new(tag, der));
    let (upper, lower) = (block("CERTIFICATE", &top.der), block("CERTIFICATE", &via.der));
    let key = block("PRIVATE KEY", via.key.serialized_der());
    let chain = lower.clone() + &upper;
    let read = own_root_from_pem(&chain, Some(&key), Some(&chain)).unwrap();
    assert_eq!(
        read,
        OwnRoot {
            cross: Some([&via.der[..], &top.der].concat().into()),
            ..own(&[&via, &top], Some(&via.key))
        }
    );
    assert_eq!(split_certificates(read.cross.as_ref().unwrap()).unwrap(), [via.der.clone(), top.der.clone()]);
    let refused = |cert: &str, key: Option<&str>, part: &str| {
        let refusal = own_root_from_pem(cert, key, None).unwrap_err().to_string();
        assert!(refusal.contains(part) && !refusal.contains("MIG"), "{refusal}");
    };
    refused("", None, "does not hold");
    refused("-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n", None, "does not hold");
    refused(&(chain.clone() + &key), None, "private key too");
    refused(&upper.repeat(5), None, "more than 4");
    refused(&upper, Some(&upper), "one private key");
    refused(&upper, Some(&key.repeat(2)), "one private key");
    refused(&upper, Some(&block("EC PRIVATE KEY", b"x")), "openssl pkcs8 -topk8");
    refused(&upper, Some(&block("ENCRYPTED PRIVATE KEY", b"x")), "encrypted");
    assert!(split_certificates(&Bytes::new()).is_err());
    assert!(split_certificates(&Bytes::from_static(b"x")).is_err());
    assert!(split_certificates(&top.der.repeat(9).into()).is_err());
}

#[test]
fn a_cross_certificate_is_about_that_key_and_does_not_outlive_the_memory_of_it() {
    let (old, new) = (
        root(|it| it.is_ca = IsCa::Ca(BasicConstraints::Constrained(2))),
        root(|it| {
            it.distinguished_name.push(DnType::OrganizationName, "new");
        }),
    );
    let old_via = under(&old, |_| {});
    let days = |days: u64| Duration::from_secs(days * DAY);
    let cross = |by: &Made, change: &dyn Fn(&mut CertificateParams)| -> Bytes {
        let mut params = new.params.clone();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.not_after = moment(now() + days(90));
        change(&mut params);
        let key = rcgen::SubjectPublicKeyInfo::from_der(&new.key.subject_public_key_info()).unwrap();
        params.signed_by(&key, &Issuer::from_params(&by.params, &by.key)).unwrap().der().to_vec().into()
    };
    let plain = Authority { root: old.der.clone(), ..Authority::default() };
    let with_via = Authority { via: vec![old_via.der.clone()], ..plain.clone() };
    let check = |cross: &Bytes, in_force: &Authority, expect: Result<usize, &str>| match (
        vet_cross(cross, &new.der, in_force, now()),
        expect,
    ) {
        (Ok(whole), Ok(count)) => assert_eq!(split_certificates(&whole).unwrap().len(), count),
        (Err(refusal), Err(part)) => assert!(refusal.to_string().contains(part), "{refusal}"),
        (got, expect) => panic!("{got:?} instead of {expect:?}"),
    };
    check(&cross(&old, &|_| {}), &plain, Ok(1));
    check(&cross(&old, &|_| {}), &with_via, Ok(1));
    // The intermediate of the root in force is put behind it where it is needed.
    check(&cross(&old_via, &|_| {}), &with_via, Ok(2));
    check(&[cross(&old_via, &|_| {}), old_via.der.clone()].concat().into(), &with_via, Ok(2));
    check(&cross(&old_via, &|_| {}), &plain, Err("does not lead to"));
    check(&cross(&new, &|_| {}), &plain, Err("does not lead to"));
    check(&new.der, &plain, Err("longer than is allowed"));
    check(&cross(&old, &|it| it.not_after = moment(now() + days(91))), &plain, Err("longer than is allowed"));
    check(&cross(&old, &|it| it.not_after = moment(now() + days(1) / 2)), &plain, Err("1 days more"));
    check(&cross(&old, &|it| it.is_ca = IsCa::ExplicitNoCa), &plain, Err("CA:TRUE"));
    let renamed = |it: &mut CertificateParams| it.distinguished_name.push(DnType::OrganizationName, "other");
    check(&cross(&old, &renamed), &plain, Err("not about the signing certificate"));
    check(&old.der, &plain, Err("not about the signing certificate"));
    // A root of the old one's name with another key.
    let twin = Authority { root: root(|_| {}).der, ..Authority::default() };
    check(&cross(&old, &|_| {}), &twin, Err("signature"));
    #[cfg(feature = "sim")]
    crate::planted::with(Some(crate::planted::Bug::CrossOutlives), || {
        let long = cross(&old, &|it| it.not_after = moment(now() + days(91)));
        assert!(vet_cross(&long, &new.der, &plain, now()).is_ok());
    });
}

#[cfg(feature = "sim")]
#[test]
fn a_weak_root_that_is_taken_is_found_out() {
    let weak = own_root_from_pem(WEAK[0].0, None, None).unwrap();
    crate::planted::with(Some(crate::planted::Bug::TakeWeakRoot), || check(&weak, Ok(())));
}

#[test]
fn leaves_end_with_what_is_above_them() {
    let top = root(|_| {});
    let via = under(&top, |_| {});
    let authority = Authority { root: top.der.clone(), via: vec![via.der.clone()], ..Authority::default() };
    assert_eq!(end_of(&authority).unwrap(), now() + Duration::from_secs(400 * DAY));
    assert_eq!(keys_of(&authority.root, &authority.via).unwrap().len(), 2);
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        failure_persistence: None, ..proptest::prelude::ProptestConfig::default()
    })]

    /// Whatever the files hold, they are read or refused.
    #[test]
    fn bent_certificates_are_refused_and_nothing_more(at in 0usize..2000, to in proptest::prelude::any::<u8>(), cut in 0usize..2000) {
        use std::sync::OnceLock;
        static ROOT: OnceLock<(Bytes, Vec<u8>)> = OnceLock::new();
        let (der, key) = ROOT.get_or_init(|| {
            let made = root(|_| {});
            (made.der.clone(), made.key.serialized_der().to_vec())
        });
        let mut bent = der.to_vec();
        let at = at % bent.len();
        bent[at] = to;
        bent.truncate(bent.len() - cut.saturating_sub(1500).min(bent.len()));
        let signed = |der: &[u8]| {
            X509Certificate::from_der(der).ok().map(|(_, cert)| cert.tbs_certificate.as_ref().to_vec())
        };
        let same = signed(&bent) == signed(der);
        let own = OwnRoot { root: bent.into(), key: Some(key.clone().into()), ..OwnRoot::default() };
        let vetted = vet(&own, now());
        // What was signed was not changed, or the signature is not its own any more.
        proptest::prop_assert!(vetted.is_err() || same, "{:?}", vetted);
    }
}
