//! Certificates made for the occasion: good ones, and every kind of bad one.

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    NameConstraints, RevokedCertParams, RsaKeySize, SanType, SerialNumber, SignatureAlgorithm, date_time_ymd,
};
use towpath_base::credentials::CertificateKey;
use towpath_base::crypto::{PeerProof, PeerVerifier, SignatureScheme, Signer, Untrusted};
use towpath_base::profile::{IkeId, Psk};
use towpath_crypto::{CertificateSigner, InvalidCredential, TrustVerifier};

type Ca = CertifiedIssuer<'static, KeyPair>;

fn key(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    if algorithm == &rcgen::PKCS_RSA_SHA256 {
        return KeyPair::generate_rsa_for(algorithm, RsaKeySize::_2048).unwrap();
    }
    KeyPair::generate_for(algorithm).unwrap()
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn root() -> Ca {
    CertifiedIssuer::self_signed(ca_params("root"), key(&rcgen::PKCS_ECDSA_P256_SHA256)).unwrap()
}

/// `a.test`, `a@b.test`, 192.0.2.1, 2001:db8::1, and the subject `O=Towpath, CN=Host A`.
fn leaf_params() -> CertificateParams {
    let mut params = CertificateParams::new(vec!["a.test".into()]).unwrap();
    params.subject_alt_names.extend([
        SanType::Rfc822Name("a@b.test".try_into().unwrap()),
        SanType::IpAddress("192.0.2.1".parse().unwrap()),
        SanType::IpAddress("2001:db8::1".parse().unwrap()),
    ]);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Towpath");
    params.distinguished_name.push(DnType::CommonName, "Host A");
    params
}

struct Leaf {
    signer: CertificateSigner,
    certificate: Vec<u8>,
}

fn leaf_of(
    params: CertificateParams,
    ca: &Issuer<'_, KeyPair>,
    algorithm: &'static SignatureAlgorithm,
) -> Leaf {
    let key = key(algorithm);
    let certificate = params.signed_by(&key, ca).unwrap().der().to_vec();
    let credential = CertificateKey {
        chain: vec![certificate.clone()],
        key: Psk::new(key.serialize_der()),
    };
    Leaf {
        signer: CertificateSigner::new(&credential).unwrap(),
        certificate,
    }
}

fn leaf(ca: &Ca) -> Leaf {
    leaf_of(leaf_params(), ca, &rcgen::PKCS_ECDSA_P256_SHA256)
}

fn trust(ca: &Ca) -> TrustVerifier {
    TrustVerifier::new(&[ca.der().to_vec()], &[]).unwrap()
}

const MESSAGE: &[u8] = b"first message, nonce, identity";

fn check(trust: &TrustVerifier, leaf: &Leaf, others: &[&[u8]], id: &str) -> Result<(), Untrusted> {
    let scheme = leaf.signer.schemes()[0];
    let signature = leaf.signer.sign(scheme, MESSAGE).unwrap();
    let certificates = [&[leaf.certificate.as_slice()], others].concat();
    trust.verify(&PeerProof {
        certificates: &certificates,
        id: &IkeId::from_text(id),
        scheme,
        message: MESSAGE,
        signature: &signature,
    })
}

#[test]
fn every_kind_of_key_signs_what_its_certificate_verifies_and_nothing_else() {
    let ca = root();
    let trust = trust(&ca);
    for algorithm in [
        &rcgen::PKCS_ECDSA_P256_SHA256,
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let leaf = leaf_of(leaf_params(), &ca, algorithm);
        for scheme in leaf.signer.schemes() {
            let signature = leaf.signer.sign(*scheme, MESSAGE).unwrap();
            let verify = |scheme, message: &[u8], signature: &[u8]| {
                trust.verify(&PeerProof {
                    certificates: &[&leaf.certificate],
                    id: &IkeId::from_text("a.test"),
                    scheme,
                    message,
                    signature,
                })
            };
            assert_eq!(verify(*scheme, MESSAGE, &signature), Ok(()), "{scheme}");
            let bad = Err(Untrusted::BadSignature);
            assert_eq!(verify(*scheme, b"other", &signature), bad);
            assert_eq!(
                verify(*scheme, MESSAGE, &[&signature[..], &[0]].concat()),
                bad,
                "trailing byte"
            );
            assert_eq!(
                verify(*scheme, MESSAGE, &signature[..signature.len() - 1]),
                bad,
                "truncated"
            );
            assert_eq!(verify(*scheme, MESSAGE, &[]), bad);
            assert_eq!(verify(*scheme, MESSAGE, &vec![0xff; 1024]), bad, "oversized");
            for at in (0..signature.len()).step_by(7) {
                let mut flipped = signature.clone();
                flipped[at] ^= 1;
                assert_eq!(verify(*scheme, MESSAGE, &flipped), bad, "{scheme} {at}");
            }
            for other in SignatureScheme::ALL.iter().filter(|other| *other != scheme) {
                assert_eq!(verify(*other, MESSAGE, &signature), bad, "{scheme} as {other}");
            }
        }
    }
}

#[test]
fn a_signature_by_another_key_than_the_certificates_is_refused() {
    let ca = root();
    let (honest, thief) = (leaf(&ca), leaf(&ca));
    let stolen = Leaf {
        certificate: honest.certificate,
        ..thief
    };
    assert_eq!(
        check(&trust(&ca), &stolen, &[], "a.test"),
        Err(Untrusted::BadSignature)
    );
}

#[test]
fn an_identity_must_stand_in_the_certificate_as_its_own_kind() {
    let ca = root();
    let (trust, leaf) = (trust(&ca), leaf(&ca));
    for id in [
        "a.test",
        "A.Test",
        "a@b.test",
        "a@B.TEST",
        "192.0.2.1",
        "2001:db8::1",
        "O=Towpath, CN=Host A",
        "O=TOWPATH, CN=host a",
    ] {
        assert_eq!(check(&trust, &leaf, &[], id), Ok(()), "{id}");
    }
    for id in [
        "b.test",
        "x.a.test",
        "test",
        "*.test",
        "email:a.test",
        "fqdn:a@b.test",
        "A@b.test",
        "192.0.2.2",
        "fqdn:192.0.2.1",
        "2001:db8::2",
        "CN=Host A",
        "O=Towpath, CN=Host B",
        "keyid:612e74657374",
        "Host A",
    ] {
        assert_eq!(
            check(&trust, &leaf, &[], id),
            Err(Untrusted::WrongIdentity),
            "{id}"
        );
    }
    // A wildcard stands for itself only.
    let mut params = leaf_params();
    params.subject_alt_names = vec![SanType::DnsName("*.test".try_into().unwrap())];
    let wild = leaf_of(params, &ca, &rcgen::PKCS_ED25519);
    assert_eq!(check(&trust, &wild, &[], "a.test"), Err(Untrusted::WrongIdentity));
}

#[test]
fn a_path_is_found_in_any_order_and_no_further_than_the_authorities_allow() {
    let ca = root();
    let trust = trust(&ca);
    let intermediate = |params, above: &Issuer<'_, KeyPair>| {
        CertifiedIssuer::signed_by(params, key(&rcgen::PKCS_ECDSA_P384_SHA384), above).unwrap()
    };
    let first: Ca = intermediate(ca_params("first"), &ca);
    let second: Ca = intermediate(ca_params("second"), &first);
    let leaf = leaf(&second);
    let (a, b): (&[u8], &[u8]) = (first.der(), second.der());
    assert_eq!(check(&trust, &leaf, &[a, b], "a.test"), Ok(()));
    assert_eq!(check(&trust, &leaf, &[b, a], "a.test"), Ok(()));
    assert_eq!(
        check(&trust, &leaf, &[b], "a.test"),
        Err(Untrusted::UnknownIssuer)
    );
    assert_eq!(check(&trust, &leaf, &[], "a.test"), Err(Untrusted::UnknownIssuer));
    // Of the same name, but another key.
    let false_root = root();
    let false_leaf = crate::leaf(&false_root);
    assert_eq!(
        check(&trust, &false_leaf, &[false_root.der()], "a.test"),
        Err(Untrusted::UnknownIssuer)
    );
    // A path length of 0 ends the chain.
    let mut params = ca_params("short");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let short: Ca = intermediate(params, &ca);
    let below: Ca = intermediate(ca_params("below"), &short);
    let deep = crate::leaf(&below);
    assert!(check(&trust, &deep, &[short.der(), below.der()], "a.test").is_err());
    assert_eq!(
        check(&trust, &crate::leaf(&short), &[short.der()], "a.test"),
        Ok(())
    );
    // A leaf is no authority, and an authority no leaf.
    let params = leaf_params();
    let pretender = CertifiedIssuer::signed_by(params, key(&rcgen::PKCS_ED25519), &*ca).unwrap();
    let child = leaf_of(leaf_params(), &pretender, &rcgen::PKCS_ED25519);
    assert!(check(&trust, &child, &[pretender.der()], "a.test").is_err());
    let mut params = leaf_params();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = leaf_of(params, &ca, &rcgen::PKCS_ED25519);
    assert_eq!(
        check(&trust, &authority, &[], "a.test"),
        Err(Untrusted::BadCertificate)
    );
}

#[test]
fn certificates_are_good_only_in_their_time_and_for_their_use() {
    let ca = root();
    let trust = trust(&ca);
    let result = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = leaf_params();
        change(&mut params);
        check(&trust, &leaf_of(params, &ca, &rcgen::PKCS_ED25519), &[], "a.test")
    };
    assert_eq!(
        result(&|p| p.not_after = date_time_ymd(2001, 1, 1)),
        Err(Untrusted::NotValidNow)
    );
    assert_eq!(
        result(&|p| p.not_before = date_time_ymd(3000, 1, 1)),
        Err(Untrusted::NotValidNow)
    );
    let usage = |usage: ExtendedKeyUsagePurpose| result(&|p| p.extended_key_usages = vec![usage.clone()]);
    assert_eq!(
        usage(ExtendedKeyUsagePurpose::Other(vec![1, 3, 6, 1, 5, 5, 7, 3, 17])),
        Ok(())
    );
    assert_eq!(usage(ExtendedKeyUsagePurpose::ServerAuth), Ok(()));
    assert_eq!(
        usage(ExtendedKeyUsagePurpose::CodeSigning),
        Err(Untrusted::BadCertificate)
    );
    let key_usage = |usage| result(&|p| p.key_usages = vec![usage]);
    assert_eq!(key_usage(KeyUsagePurpose::DigitalSignature), Ok(()));
    assert_eq!(
        key_usage(KeyUsagePurpose::KeyEncipherment),
        Err(Untrusted::BadCertificate)
    );
}

#[test]
fn name_constraints_hold_whatever_the_case() {
    let outcome = |constraints: NameConstraints, id: &str| {
        let ca = root();
        let mut params = ca_params("limited");
        params.name_constraints = Some(constraints);
        let limited: Ca =
            CertifiedIssuer::signed_by(params, key(&rcgen::PKCS_ECDSA_P256_SHA256), &*ca).unwrap();
        check(&trust(&ca), &leaf(&limited), &[limited.der()], id)
    };
    let dns = |name: &str| GeneralSubtree::DnsName(name.into());
    let permitted = |subtrees| NameConstraints {
        permitted_subtrees: subtrees,
        excluded_subtrees: vec![],
    };
    let excluded = |subtrees| NameConstraints {
        permitted_subtrees: vec![],
        excluded_subtrees: subtrees,
    };
    let bad = Err(Untrusted::NameConstraint);
    assert_eq!(outcome(permitted(vec![dns("test")]), "a.test"), Ok(()));
    assert_eq!(outcome(permitted(vec![dns("TEST")]), "a.test"), Ok(()));
    assert_eq!(outcome(permitted(vec![dns("example")]), "a.test"), bad);
    assert_eq!(outcome(excluded(vec![dns("other")]), "a.test"), Ok(()));
    assert_eq!(outcome(excluded(vec![dns("A.TEST")]), "a.test"), bad);
    assert_eq!(
        outcome(excluded(vec![dns("A.TEST")]), "192.0.2.1"),
        bad,
        "whatever name is used"
    );
    // Kinds of name that are not evaluated refuse every certificate that has one.
    assert_eq!(
        outcome(
            permitted(vec![GeneralSubtree::Rfc822Name("b.test".into())]),
            "a.test"
        ),
        bad
    );
    let mut name = rcgen::DistinguishedName::new();
    name.push(DnType::OrganizationName, "Towpath");
    assert_eq!(
        outcome(permitted(vec![GeneralSubtree::DirectoryName(name)]), "a.test"),
        bad
    );
}

fn revocation_list(ca: &Ca, serials: &[u64], next_update: (i32, u8, u8)) -> Vec<u8> {
    let (year, month, day) = next_update;
    let params = CertificateRevocationListParams {
        this_update: date_time_ymd(2000, 1, 1),
        next_update: date_time_ymd(year, month, day),
        crl_number: SerialNumber::from(1),
        issuing_distribution_point: None,
        revoked_certs: serials
            .iter()
            .map(|serial| RevokedCertParams {
                serial_number: SerialNumber::from(*serial),
                revocation_time: date_time_ymd(2001, 1, 1),
                reason_code: None,
                invalidity_date: None,
            })
            .collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    params.signed_by(ca).unwrap().der().to_vec()
}

#[test]
fn revocation_lists_speak_for_their_own_authority_only() {
    let ca = root();
    let mut params = ca_params("other");
    params.serial_number = Some(SerialNumber::from(1000));
    let other: Ca = CertifiedIssuer::signed_by(params, key(&rcgen::PKCS_ECDSA_P256_SHA256), &*ca).unwrap();
    let with_serial = |serial: u64, ca: &Ca| {
        let mut params = leaf_params();
        params.serial_number = Some(SerialNumber::from(serial));
        leaf_of(params, ca, &rcgen::PKCS_ED25519)
    };
    let trusting = |lists: &[Vec<u8>]| TrustVerifier::new(&[ca.der().to_vec()], lists).unwrap();
    let later = (3000, 1, 1);
    let list = revocation_list(&ca, &[7], later);
    let trust = trusting(std::slice::from_ref(&list));
    assert_eq!(
        check(&trust, &with_serial(7, &ca), &[], "a.test"),
        Err(Untrusted::Revoked)
    );
    assert_eq!(check(&trust, &with_serial(8, &ca), &[], "a.test"), Ok(()));
    // The same serial by another authority is another certificate.
    assert_eq!(
        check(&trust, &with_serial(7, &other), &[other.der()], "a.test"),
        Ok(())
    );
    // An authority in between is asked about as well.
    let trust = trusting(&[revocation_list(&ca, &[1000], later)]);
    assert_eq!(
        check(&trust, &with_serial(7, &other), &[other.der()], "a.test"),
        Err(Untrusted::Revoked)
    );
    let trust = trusting(&[revocation_list(&ca, &[7], (2002, 1, 1))]);
    assert_eq!(
        check(&trust, &with_serial(8, &ca), &[], "a.test"),
        Err(Untrusted::BadRevocationList),
        "expired"
    );
    // Signed by somebody else of the same name.
    let trust = trusting(&[revocation_list(&root(), &[], later)]);
    assert_eq!(
        check(&trust, &with_serial(7, &ca), &[], "a.test"),
        Err(Untrusted::BadRevocationList)
    );
}

#[test]
fn hostile_certificates_are_refused() {
    let ca = root();
    let (trust, good) = (trust(&ca), leaf(&ca));
    for len in (0..good.certificate.len()).step_by(5) {
        let cut = Leaf {
            certificate: good.certificate[..len].to_vec(),
            signer: crate::leaf(&ca).signer,
        };
        assert_eq!(
            check(&trust, &cut, &[], "a.test"),
            Err(Untrusted::BadCertificate),
            "{len}"
        );
    }
    for at in 0..good.certificate.len() {
        let mut changed = good.certificate.clone();
        changed[at] ^= 0x01;
        let scheme = good.signer.schemes()[0];
        let signature = good.signer.sign(scheme, MESSAGE).unwrap();
        let proof = PeerProof {
            certificates: &[&changed],
            id: &IkeId::from_text("a.test"),
            scheme,
            message: MESSAGE,
            signature: &signature,
        };
        assert!(trust.verify(&proof).is_err(), "{at}");
    }
    let junk = [
        vec![],
        vec![0; 100],
        vec![0x30; 4000],
        vec![0x30, 0x84, 0xff, 0xff, 0xff, 0xff],
    ];
    for other in &junk {
        // What does not parse leads nowhere, and harms no path that needs it not.
        assert_eq!(check(&trust, &good, &[other], "a.test"), Ok(()));
    }
    let none = PeerProof {
        certificates: &[],
        id: &IkeId::from_text("a.test"),
        scheme: SignatureScheme::Ed25519,
        message: MESSAGE,
        signature: &[],
    };
    assert_eq!(trust.verify(&none), Err(Untrusted::NoCertificate));
    // Many authorities of one name lead nowhere either.
    let many: Vec<Ca> = (0..8)
        .map(|_| {
            CertifiedIssuer::self_signed(ca_params("root"), key(&rcgen::PKCS_ECDSA_P256_SHA256)).unwrap()
        })
        .collect();
    let others: Vec<&[u8]> = many.iter().map(|ca| &ca.der()[..]).collect();
    let false_leaf = leaf(&root());
    assert!(check(&trust, &false_leaf, &others, "a.test").is_err());
}

#[test]
fn credentials_that_do_not_fit_together_are_named() {
    let ca = root();
    let one = key(&rcgen::PKCS_ED25519);
    let certificate = leaf_params().signed_by(&one, &*ca).unwrap().der().to_vec();
    let new = |chain: Vec<Vec<u8>>, key: Vec<u8>| {
        let key = Psk::new(key);
        CertificateSigner::new(&CertificateKey { chain, key }).err()
    };
    let secret = one.serialize_der();
    assert_eq!(new(vec![certificate.clone()], secret.clone()), None);
    assert_eq!(
        new(vec![], secret.clone()),
        Some(InvalidCredential::NoCertificate)
    );
    assert_eq!(
        new(vec![certificate.clone(), vec![1]], secret),
        Some(InvalidCredential::Certificate(1))
    );
    assert_eq!(
        new(vec![certificate.clone()], vec![1, 2]),
        Some(InvalidCredential::PrivateKey)
    );
    let other = key(&rcgen::PKCS_ECDSA_P256_SHA256).serialize_der();
    assert_eq!(
        new(vec![certificate.clone()], other),
        Some(InvalidCredential::KeyMismatch)
    );
    let bad = TrustVerifier::new(&[certificate, vec![0]], &[]).err();
    assert_eq!(bad, Some(InvalidCredential::Authority(1)));
    let bad = TrustVerifier::new(&[], &[vec![0]]).err();
    assert_eq!(bad, Some(InvalidCredential::RevocationList(0)));
}
