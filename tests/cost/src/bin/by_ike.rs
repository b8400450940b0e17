//! A terminal that speaks IKEv2 itself: IKE_SA_INIT, IKE_AUTH with a pre-shared key, ESP keys, installation.
//!
//! Arguments: the cryptography (`portable`, the default, or `aws-lc`) and the IKE proposal, by default
//! `aes256gcm16-prfsha256-x25519`, the only one of the portable one.
#![forbid(unsafe_code)]

use towpath_base::Instant;
use towpath_base::crypto::KeyGenerator;
use towpath_base::profile::{IkeId, Psk};
use towpath_base::sa::{Lifetime, Mode};
use towpath_base::testutil::SeededRng;
use towpath_cost::portable::{PROPOSAL, PortableIke};
use towpath_cost::{PEER, ROUNDS, SUITE, TERMINAL, install, on_the_terminal};
use towpath_crypto::IkeCrypto;
use towpath_ike::{Command, Config, Endpoint, Initiate, Policy};

type End<K> = Endpoint<K, SeededRng>;

fn policy(proposal: &str) -> Policy {
    Policy {
        local_id: IkeId::Fqdn("terminal.towpath.example".into()),
        remote_id: None,
        psk: Psk::new(b"a pre-shared key of some length".to_vec()),
        ike_proposals: vec![proposal.parse().expect("an IKE proposal")],
        esp_suites: vec![SUITE],
        esn: false,
        mode: Mode::Transport,
        local_ts: Vec::new(),
        remote_ts: Vec::new(),
        lifetime: Lifetime::default(),
        force_encap: false,
        auth: Default::default(),
    }
}

fn end<K: KeyGenerator>(crypto: K, seed: u64) -> End<K> {
    let config = Config {
        dpd_after: None,
        ike_rekey_after: None,
        ..Config::default()
    };
    Endpoint::new(config, crypto, SeededRng::new(seed))
}

/// One set-up; true if the terminal got its SA.
fn set_up<K: KeyGenerator + Copy>(crypto: K, round: u32, proposal: &str) -> bool {
    let now = Instant::from_secs(1);
    let mut terminal = end(crypto, u64::from(round));
    let mut peer = end(crypto, u64::from(round) + 1000);
    let wish = Initiate {
        tag: 1,
        local: TERMINAL,
        remote: PEER,
        remote_port: None,
        policy: policy(proposal),
    };
    if on_the_terminal(|| terminal.initiate(now, wish)).is_err() {
        return false;
    }
    let mut installed = false;
    loop {
        let mut quiet = true;
        while let Some(request) = on_the_terminal(|| terminal.poll_transmit()) {
            quiet = false;
            // An address in use refuses what is not for it; here everything is.
            let _ = peer.handle_datagram(now, request.source, request.destination, &request.payload);
        }
        while let Some(command) = peer.poll_command() {
            if let Command::NeedPolicy { request, .. } = command {
                peer.provide_policy(now, request, Some(policy(proposal)));
            }
        }
        while let Some(answer) = peer.poll_transmit() {
            quiet = false;
            let (source, destination) = (answer.source, answer.destination);
            let _ = on_the_terminal(|| terminal.handle_datagram(now, source, destination, &answer.payload));
        }
        installed |= on_the_terminal(|| {
            let mut installed = false;
            while let Some(command) = terminal.poll_command() {
                if let Command::ChildEstablished { child, .. } = command {
                    std::hint::black_box(install(&child));
                    installed = true;
                }
            }
            installed
        });
        if quiet {
            return installed;
        }
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let provider = arguments.next().unwrap_or_else(|| "portable".into());
    let proposal = arguments.next().unwrap_or_else(|| PROPOSAL.into());
    let done = (0..ROUNDS)
        .filter(|round| match provider.as_str() {
            "portable" => set_up(PortableIke, *round, &proposal),
            "aws-lc" => set_up(IkeCrypto, *round, &proposal),
            other => panic!("no provider {other}: portable or aws-lc"),
        })
        .count();
    assert_eq!(done, ROUNDS as usize, "every exchange succeeds");
    println!("{done} set-ups with {proposal}, {provider}");
}
