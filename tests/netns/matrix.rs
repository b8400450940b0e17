//! Every authentication method, kind of identity and Diffie-Hellman group that strongSwan 5.9 has, through terminal,
//! gateway, keyserver and registry; either side starts, both address families. (That version has no ML-KEM.)
//!
//! The peer has an address for each case, and so a connection and a policy of its own:
//!
//! ```text
//!   ta 10.77.1.2 ---- gw ---- peer 10.77.9.64, 10.77.9.65, ...
//!      fd77:1::2                   fd77:9::40, fd77:9::41, ...
//! ```

use std::net::IpAddr;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use towpath_tests::pki::Kind;
use xtask::lab::state::wait_for;
use xtask::lab::{Conn, Family, Lab, Node, PeerKind, Suite};
use xtask::proof::stack::Stack;
use xtask::proof::stack_in;
use xtask::sh::Cmd;

use crate::LIMIT;
use crate::certificates::{Credential, clear_peer, name};

/// What a case's SAs take to be gone: a Delete, a message to the gateway, one to the terminal. Far more than that.
const PATIENCE: Duration = Duration::from_secs(30);

/// What charon calls the methods.
const SHARED: &str = "pre-shared key";
const P256: &str = "ECDSA_WITH_SHA256_DER";
const P384: &str = "ECDSA_WITH_SHA384_DER";
const ED25519: &str = "ED25519";
const PSS: &str = "RSA_EMSA_PSS_SHA2_256_SALT_32";
const PKCS1: &str = "RSA_EMSA_PKCS1_SHA2_256";

const X25519: &str = "aes256gcm16-prfsha256-x25519";

/// How the two are called.
#[derive(Clone, Copy, PartialEq)]
enum Ids {
    /// A mailbox and a host name.
    Names,
    /// Their addresses.
    Addresses,
    /// Opaque bytes.
    Opaque,
    /// Distinguished names.
    Distinguished,
}

/// How they prove it.
#[derive(Clone, Copy)]
enum Proof {
    /// A pre-shared key.
    Shared,
    /// A pre-shared key, and a post-quantum one.
    Quantum,
    /// Certificates, `depth` authorities below the root; what charon is told to sign with.
    Certificates {
        kinds: [Kind; 2],
        depth: usize,
        sign: &'static str,
    },
    /// The terminal by a pre-shared key, the peer by a certificate.
    Mixed(Kind),
}

struct Case {
    title: &'static str,
    ids: Ids,
    proof: Proof,
    /// What charon says the terminal and it itself used.
    methods: [&'static str; 2],
    ike: &'static str,
    /// Part of the short test.
    short: bool,
}

const fn certificates(kind: Kind) -> Proof {
    Proof::Certificates {
        kinds: [kind; 2],
        depth: 0,
        sign: "pubkey",
    }
}

const fn case(title: &'static str, ids: Ids, proof: Proof, methods: [&'static str; 2]) -> Case {
    Case {
        title,
        ids,
        proof,
        methods,
        ike: X25519,
        short: false,
    }
}

const fn group(title: &'static str, ike: &'static str) -> Case {
    Case {
        ike,
        ..case(title, Ids::Names, Proof::Shared, [SHARED; 2])
    }
}

const fn short(case: Case) -> Case {
    Case { short: true, ..case }
}

const PKCS1_SIGNED: Proof = Proof::Certificates {
    kinds: [Kind::Rsa; 2],
    depth: 0,
    sign: "ike:rsa-sha256",
};
const PSS_SIGNED: Proof = Proof::Certificates {
    kinds: [Kind::Rsa; 2],
    depth: 0,
    sign: "ike:rsa/pss-sha256",
};
const UNLIKE: Proof = Proof::Certificates {
    kinds: [Kind::P384, Kind::Ed25519],
    depth: 1,
    sign: "pubkey",
};
const CHAIN: Proof = Proof::Certificates {
    kinds: [Kind::Rsa; 2],
    depth: 4,
    sign: "pubkey",
};

const CASES: [Case; 19] = [
    group("X25519", X25519),
    group("P-256", "aes256-sha256-ecp256"),
    group("P-384", "aes256gcm16-prfsha384-ecp384"),
    group("MODP-2048", "aes128-sha256-modp2048"),
    group("MODP-3072", "aes256-sha384-modp3072"),
    short(group("MODP-4096", "aes256-sha512-modp4096")),
    case("addresses", Ids::Addresses, Proof::Shared, [SHARED; 2]),
    short(case("key IDs", Ids::Opaque, Proof::Shared, [SHARED; 2])),
    case(
        "distinguished names",
        Ids::Distinguished,
        Proof::Shared,
        [SHARED; 2],
    ),
    short(case("post-quantum key", Ids::Names, Proof::Quantum, [SHARED; 2])),
    case("ECDSA P-256", Ids::Names, certificates(Kind::P256), [P256; 2]),
    case(
        "ECDSA P-384, distinguished names",
        Ids::Distinguished,
        certificates(Kind::P384),
        [P384; 2],
    ),
    case(
        "ECDSA P-256, addresses",
        Ids::Addresses,
        certificates(Kind::P256),
        [P256; 2],
    ),
    case("Ed25519", Ids::Names, certificates(Kind::Ed25519), [ED25519; 2]),
    // We sign as RFC 8247 §3.2.1 prefers, and believe both.
    case("RSA, PKCS #1", Ids::Names, PKCS1_SIGNED, [PSS, PKCS1]),
    case("RSA, PSS, large chain", Ids::Names, CHAIN, [PSS, PKCS1]),
    short(case("RSA, PSS", Ids::Names, PSS_SIGNED, [PSS; 2])),
    short(case(
        "P-384 and Ed25519",
        Ids::Distinguished,
        UNLIKE,
        [P384, ED25519],
    )),
    case(
        "key and certificate",
        Ids::Names,
        Proof::Mixed(Kind::Ed25519),
        [SHARED, ED25519],
    ),
];

fn all() -> impl Iterator<Item = (usize, &'static Case)> {
    CASES.iter().enumerate()
}

fn address(family: Family, number: usize) -> IpAddr {
    let host = 64 + u8::try_from(number).expect("few cases");
    match family {
        Family::V4 => IpAddr::from([10, 77, 9, host]),
        Family::V6 => IpAddr::from([0xfd77, 9, 0, 0, 0, 0, 0, host.into()]),
    }
}

fn conn_name(number: usize, family: Family) -> String {
    let tag = if family == Family::V4 { "v4" } else { "v6" };
    format!("case{number}-{tag}")
}

/// The names of terminal and peer as charon reads them.
fn identities(ids: Ids, family: Family, number: usize) -> [String; 2] {
    match ids {
        Ids::Names => [Node::Ta, Node::Peer].map(|node| node.identity().to_owned()),
        Ids::Addresses => [Node::Ta.addr(family), address(family, number)].map(|at| at.to_string()),
        Ids::Opaque => ["keyid:terminal-a", "keyid:the-peer"].map(str::to_owned),
        Ids::Distinguished => ["O=Towpath, CN=terminal", "O=Towpath, CN=peer"].map(str::to_owned),
    }
}

/// The same name as we read it: opaque bytes in hexadecimal.
fn ours(identity: &str) -> String {
    match identity.strip_prefix("keyid:") {
        Some(bytes) => bytes
            .bytes()
            .fold("keyid:".to_owned(), |text, byte| format!("{text}{byte:02x}")),
        None => identity.to_owned(),
    }
}

const PPK: &str = "a key of 32 bytes that nobody has";

/// The certificates of every case that has some.
static CREDENTIALS: LazyLock<Vec<Option<Credential>>> = LazyLock::new(|| {
    let of = |(number, case): (usize, &Case)| {
        let (kinds, depth) = match case.proof {
            Proof::Certificates { kinds, depth, .. } => (kinds, depth),
            Proof::Mixed(kind) => ([kind; 2], 0),
            Proof::Shared | Proof::Quantum => return None,
        };
        let names = |index: usize| match case.ids {
            Ids::Distinguished => Vec::new(),
            _ => {
                let mut names = Family::ALL.map(|family| identities(case.ids, family, number)[index].clone());
                names.sort();
                let kept = if names[0] == names[1] { 1 } else { 2 };
                names[..kept].iter().map(|text| name(text)).collect()
            }
        };
        Some(Credential::new(kinds, depth, names(0), names(1)))
    };
    all().map(of).collect()
});

fn shared_key(number: usize, ids: Ids) -> String {
    // charon finds a key by the names alone.
    match ids {
        Ids::Names => "lab-only, of names".to_owned(),
        _ => format!("lab-only, of case {number}"),
    }
}

/// The subscriber's policy of one case.
fn policy(family: Family, number: usize, case: &Case) -> Value {
    let [terminal, peer] = identities(case.ids, family, number);
    let mut policy = json!({
        "peer": format!("{}/{}", address(family, number), family.host_bits()),
        "local_id": ours(&terminal),
        "remote_id": ours(&peer),
        "ike_proposals": [case.ike],
        "esp_suites": ["aes256gcm16"],
        "mode": "tunnel",
        "class": "full",
    });
    let credential = CREDENTIALS[number].as_ref();
    let given = |proves, believes| credential.map(|given| given.of_subscriber(proves, believes));
    let key = shared_key(number, case.ids);
    match case.proof {
        Proof::Shared => policy["psk"] = key.into(),
        Proof::Quantum => {
            let hex: String = PPK.bytes().map(|byte| format!("{byte:02x}")).collect();
            policy["psk"] = key.into();
            policy["credential"] = json!({"ppk_id": "lab", "ppk_hex": hex, "ppk_required": true});
        }
        Proof::Certificates { .. } => policy["credential"] = given(true, true).into(),
        Proof::Mixed(_) => {
            policy["psk"] = key.into();
            policy["credential"] = given(false, true).into();
        }
    }
    policy
}

/// Terminal A has a policy for every case.
fn provide(terminal: Node, record: &mut Value) {
    if terminal != Node::Ta {
        return;
    }
    let cases = all().flat_map(|(number, case)| Family::ALL.map(|family| policy(family, number, case)));
    record["peers"] = cases.collect();
    record["protect"] = json!(["10.77.9.64/26", "fd77:9::40/122"]);
}

/// The peer's connection of one case.
fn conn(family: Family, number: usize, case: &Case) -> Conn {
    let [terminal, peer] = identities(case.ids, family, number);
    let base = Conn::of_peer(PeerKind::Libipsec, Node::Ta, family, Suite::Gcm);
    let base = Conn {
        name: conn_name(number, family),
        local: (address(family, number), peer),
        remote: (base.remote.0, terminal),
        psk: shared_key(number, case.ids),
        ike: Some(case.ike.to_owned()),
        ..base
    };
    let file = format!("{number}.pem");
    match case.proof {
        Proof::Shared => base,
        Proof::Quantum => Conn {
            ppk: Some(("lab".to_owned(), PPK.to_owned())),
            ..base
        },
        Proof::Certificates { sign, .. } => Conn {
            local_auth: sign.to_owned(),
            ..base.certified(&file)
        },
        Proof::Mixed(_) => Conn {
            local_auth: "pubkey".to_owned(),
            certificate: Some(file),
            ..base
        },
    }
}

fn pings(stack: &Stack, from: Node, source: IpAddr, to: IpAddr) -> bool {
    let (source, to) = (source.to_string(), to.to_string());
    let cmd = Cmd::new("ping").args(["-c", "1", "-W", "5", "-q", "-I", &source, &to]);
    stack.lab.exec(from, &cmd, LIMIT).is_ok_and(|out| out.ok())
}

/// One case in one family, started by one side; how long the exchange took, or what went wrong.
fn run(
    stack: &Stack,
    number: usize,
    case: &Case,
    family: Family,
    peer_starts: bool,
) -> Result<Duration, String> {
    let (terminal, target) = (Node::Ta.addr(family), address(family, number));
    let charon = stack.lab.peer();
    let logged = charon.log().len();
    let since = Instant::now();
    if peer_starts {
        let out = charon.initiate(&conn_name(number, family), LIMIT);
        let out = out.map_err(|error| format!("{error:#}"))?;
        if !out.ok() {
            return Err(format!("not established: {}", out.all()));
        }
    } else if !pings(stack, Node::Ta, terminal, target) {
        return Err("the terminal's first packet is not answered".to_owned());
    }
    let took = since.elapsed();
    for (from, source, to) in [(Node::Ta, terminal, target), (Node::Peer, target, terminal)] {
        if !wait_for(PATIENCE, || pings(stack, from, source, to)) {
            return Err(format!("no answer from {to} to {source}"));
        }
    }
    let sas = charon.list_sas().map_err(|error| format!("{error:#}"))?;
    let [sa] = &sas[..] else {
        return Err(format!("charon has {} IKE SAs: {sas:?}", sas.len()));
    };
    if sa.state != "ESTABLISHED" || sa.initiator != peer_starts || sa.name != conn_name(number, family) {
        return Err(format!("charon has {sa:?}"));
    }
    let log = charon.log();
    let log = log.get(logged..).unwrap_or_default();
    let [by_terminal, by_peer] = case.methods;
    for said in [
        format!("with {by_terminal} successful"),
        format!("(myself) with {by_peer}"),
    ] {
        if !log.contains(&said) {
            return Err(format!("charon does not say {said:?}"));
        }
    }
    let pieces = log.contains("EF(");
    let large = matches!(case.proof, Proof::Certificates { depth: 4, .. });
    if large && !pieces {
        return Err("the large chain came in one piece".to_owned());
    }
    if matches!(case.proof, Proof::Quantum) && !log.contains("PPK") {
        return Err("charon does not speak of the post-quantum key".to_owned());
    }
    Ok(took)
}

/// Nothing is left of a case, however it went.
fn clear(stack: &Stack) -> Result<(), String> {
    let charon = stack.lab.peer();
    for sa in charon.list_sas().map_err(|error| format!("{error:#}"))? {
        charon
            .terminate(&sa.name, LIMIT)
            .map_err(|error| format!("{error:#}"))?;
    }
    let gone = || stack.sas().is_ok_and(|sas| sas.is_empty());
    if wait_for(PATIENCE, gone) {
        Ok(())
    } else {
        Err("SAs are left".to_owned())
    }
}

/// Runs what `wanted` chooses, all of it whatever fails.
fn show(name: &str, wanted: impl Fn(usize, &Case, Family, bool) -> bool) {
    let lab = Lab::ephemeral(&xtask::root(), name, PeerKind::Libipsec).expect("the lab comes up");
    let add: String = Family::ALL
        .iter()
        .flat_map(|family| all().map(|(number, _)| (*family, address(*family, number))))
        .map(|(family, at)| match family {
            Family::V4 => format!("ip addr add {at}/24 dev eth0\n"),
            Family::V6 => format!("ip addr add {at}/64 dev eth0 nodad\n"),
        })
        .collect();
    let out = lab.exec(Node::Peer, &Cmd::new("sh").args(["-ec", &add]), LIMIT);
    assert!(out.is_ok_and(|out| out.ok()), "no addresses");
    let stack = stack_in(lab, "", provide).expect("towpath comes up");
    let charon = stack.lab.peer();
    clear_peer(charon.dir());
    for (number, credential) in CREDENTIALS.iter().enumerate() {
        if let Some(credential) = credential {
            credential.give_peer(charon.dir(), &number.to_string());
        }
    }
    let conns = Family::ALL.map(|family| all().map(move |(number, case)| conn(family, number, case)));
    charon
        .load_conns(&conns.into_iter().flatten().collect::<Vec<_>>())
        .expect("the peer takes its connections");
    let (mut ran, mut failures) = (0, Vec::new());
    for (number, case) in all() {
        for family in Family::ALL {
            for peer_starts in [false, true] {
                if !wanted(number, case, family, peer_starts) {
                    continue;
                }
                ran += 1;
                let logged = charon.log().len();
                let outcome = run(&stack, number, case, family, peer_starts);
                let outcome = outcome.and_then(|took| clear(&stack).map(|()| took));
                let by = if peer_starts { "peer" } else { "terminal" };
                let line = format!("{}, {family}, {by} starts", case.title);
                match outcome {
                    Ok(took) => println!("{line}: {} ms", took.as_millis()),
                    Err(error) => {
                        println!("{line}: FAILED: {error}");
                        let log = charon.log();
                        let log = log.get(logged..).unwrap_or_default();
                        println!("{log}\n{}", stack.tail("towpath", 12));
                        failures.push(line);
                        let _ = charon.forget();
                        let _ = clear(&stack);
                    }
                }
            }
        }
    }
    println!("{ran} exchanges, {} failed", failures.len());
    assert!(ran > 0 && failures.is_empty(), "{failures:#?}");
    stack.stop();
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn long_every_method_identity_and_group_that_the_peer_has() {
    show("ikematrix", |_, _, _, _| true);
}

/// What no other test shows, each in one family and from one side.
#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn the_rarer_methods_identities_and_groups() {
    show("ikerare", |number, case, family, peer_starts| {
        let v6 = family == Family::V6;
        case.short && v6 == (number % 2 == 0) && peer_starts == (number % 4 < 2)
    });
}
