//! Certificates, groups and ciphers with charon, and messages in pieces. charon 5.9 has no ML-KEM and no
//! IKE_INTERMEDIATE.

use std::fs;

use towpath_base::credentials::CertificateKey;
use towpath_base::profile::Psk;
use towpath_base::sa::EspSuite;
use towpath_crypto::x509::pem;
use towpath_ike::{Command, Policy};

use super::lab::{Case, Lab, Station, assert_same_keys};
use crate::pki::{Ca, Kind, below, leaf, root, signer, trusting};

/// What charon is given: its certificates and key, and the authority it trusts.
fn load(lab: &Lab, case: &Case, ca: &Ca, theirs: &CertificateKey) {
    let dir = lab.path("swanctl");
    let _ = fs::remove_dir_all(&dir);
    for folder in ["x509", "x509ca", "private"] {
        fs::create_dir_all(dir.join(folder)).unwrap();
    }
    let certificate = |der: &[u8]| pem::encode("CERTIFICATE", der).to_string();
    for (number, der) in theirs.chain.iter().enumerate() {
        let folder = if number == 0 { "x509" } else { "x509ca" };
        fs::write(dir.join(format!("{folder}/{number}.pem")), certificate(der)).unwrap();
    }
    fs::write(dir.join("x509ca/root.pem"), certificate(ca.der())).unwrap();
    let key = pem::encode("PRIVATE KEY", theirs.key.expose());
    fs::write(dir.join("private/key.pem"), key.as_str()).unwrap();
    let [ours, them] = case.addresses();
    let [our_net, their_net] = case.nets();
    let (ike, esp) = (case.ike, case.esp);
    let text = format!(
        "connections {{ t {{ version = 2
  local_addrs = {them}
  remote_addrs = {ours}
  proposals = {ike}
  encap = yes
  mobike = no
  local {{ auth = pubkey
    certs = 0.pem
    id = b.test }}
  remote {{ auth = pubkey
    id = a.test }}
  children {{ c {{ local_ts = {their_net}
    remote_ts = {our_net}
    esp_proposals = {esp}
    mode = tunnel }} }} }} }}
"
    );
    let file = dir.join("swanctl.conf");
    fs::write(&file, text).unwrap();
    let answer = lab.ask(&format!("--load-all --clear --file {}", file.display()));
    assert!(answer.contains("loaded connection 't'"), "{answer}");
}

fn certified(case: &Case, ca: &Ca, ours: &CertificateKey) -> Policy {
    Policy {
        psk: Psk::new(Vec::new()),
        auth: trusting(signer(ours), ca),
        ..case.policy()
    }
}

/// Establishes, compares keys, deletes. Gives the lines of the exchange.
fn agree(lab: &Lab, case: &Case, policy: Policy) -> Vec<String> {
    let mut station = Station::new(policy.clone());
    if case.we_initiate {
        let now = station.now();
        let wish = towpath_ike::Initiate {
            policy,
            ..case.wish()
        };
        station.endpoint.initiate(now, wish).unwrap();
    } else {
        lab.start("--initiate --child c --timeout 8");
    }
    station.run_until(lab, "established", |station| !station.children.is_empty());
    let child = station.only_child();
    assert_eq!(child.suite, case.suite);
    assert_same_keys(lab, &child);
    let now = station.now();
    let ike = station.endpoint.list(now).next().unwrap().id;
    station.endpoint.delete_ike(now, ike).unwrap();
    station.run_until(lab, "deleted", |station| {
        let closed = |command: &Command| matches!(command, Command::IkeClosed { .. });
        station.commands.iter().any(closed)
    });
    assert_eq!(lab.ask("--list-sas"), "");
    station.trace
}

fn cases(ike: &'static str, esp: &'static str, suite: EspSuite) -> Vec<Case> {
    let mut cases = Vec::new();
    for v6 in [false, true] {
        for we_initiate in [true, false] {
            cases.push(Case {
                ike,
                esp,
                suite,
                v6,
                we_initiate,
            });
        }
    }
    cases
}

fn plain() -> Vec<Case> {
    cases(
        "aes256gcm16-prfsha256-x25519",
        "aes256gcm16",
        EspSuite::Aes256Gcm16,
    )
}

#[test]
#[ignore = "needs root: makes namespaces and runs strongSwan's charon"]
fn charon_believes_every_kind_of_certificate_and_is_believed() {
    let lab = Lab::up("cert");
    lab.enter();
    for (our_kind, their_kind) in [
        (Kind::P256, Kind::P256),
        (Kind::P384, Kind::P384),
        (Kind::Ed25519, Kind::Ed25519),
        (Kind::Rsa, Kind::Rsa),
        (Kind::P256, Kind::Rsa),
        (Kind::Rsa, Kind::Ed25519),
    ] {
        let ca = root(Kind::P256);
        let (ours, theirs) = (leaf(&ca, "a.test", our_kind), leaf(&ca, "b.test", their_kind));
        for case in plain() {
            load(&lab, &case, &ca, &theirs);
            agree(&lab, &case, certified(&case, &ca, &ours));
            println!(
                "{our_kind:?} {their_kind:?} v6={} we_initiate={}: agreed",
                case.v6, case.we_initiate
            );
        }
    }
}

#[test]
#[ignore = "needs root: makes namespaces and runs strongSwan's charon"]
fn charon_without_rfc_7427_gets_the_older_methods() {
    let lab = Lab::up_with("old", "signature_authentication = no");
    lab.enter();
    for kind in [Kind::P256, Kind::P384] {
        let ca = root(kind);
        let (ours, theirs) = (leaf(&ca, "a.test", kind), leaf(&ca, "b.test", kind));
        for case in plain() {
            load(&lab, &case, &ca, &theirs);
            agree(&lab, &case, certified(&case, &ca, &ours));
        }
    }
}

#[test]
#[ignore = "needs root: makes namespaces and runs strongSwan's charon"]
fn a_large_chain_goes_to_charon_and_back_in_pieces() {
    let lab = Lab::up("frag");
    lab.enter();
    let ca = root(Kind::Rsa);
    let one = below(&ca, "one", Kind::Rsa);
    let two = below(&one, "two", Kind::Rsa);
    let three = below(&two, "three", Kind::Rsa);
    let credential = |name: &str| {
        let mut credential = leaf(&three, name, Kind::Rsa);
        credential
            .chain
            .extend([&three, &two, &one].map(|ca| ca.der().to_vec()));
        credential
    };
    let (ours, theirs) = (credential("a.test"), credential("b.test"));
    for case in plain() {
        load(&lab, &case, &ca, &theirs);
        let trace = agree(&lab, &case, certified(&case, &ca, &ours));
        let chains = trace.iter().filter(|line| line.contains("CERT CERT CERT CERT"));
        assert_eq!(chains.count(), 2, "{trace:#?}");
    }
    let log = lab.log();
    assert!(
        log.contains("received fragment #4") || log.contains("received fragment #3"),
        "{log}"
    );
    assert!(log.contains("splitting IKE message"), "{log}");
}

#[test]
#[ignore = "needs root: makes namespaces and runs strongSwan's charon"]
fn charon_agrees_in_every_group_and_cipher_it_has() {
    let lab = Lab::up("groups");
    lab.enter();
    for (ike, esp, suite) in [
        (
            "aes256gcm16-prfsha384-ecp384",
            "aes256-sha512",
            EspSuite::Aes256CbcSha512,
        ),
        (
            "aes128-sha256-modp3072",
            "aes128-sha384",
            EspSuite::Aes128CbcSha384,
        ),
        (
            "chacha20poly1305-prfsha256-modp4096",
            "chacha20poly1305",
            EspSuite::ChaCha20Poly1305,
        ),
        (
            "aes256ctr-sha512-x25519",
            "aes256ctr-sha256",
            EspSuite::Aes256CtrSha256,
        ),
        ("aes128ctr-sha384-ecp256", "aes128ccm16", EspSuite::Aes128Ccm16),
    ] {
        for case in cases(ike, esp, suite) {
            lab.load(&case, "swordfish");
            agree(&lab, &case, case.policy());
            println!(
                "{ike} {esp} v6={} we_initiate={}: agreed",
                case.v6, case.we_initiate
            );
        }
    }
}
