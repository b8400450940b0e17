//! Manual keying through a real gateway that is killed and started again: what leaves it never repeats a nonce.
//!
//! ```text
//!   ta: sealed by the test ──► gw (towpath: open, seal) ──► peer: opened by the test
//!       segment keys                 SIGKILL, restart           peer's keys
//! ```
//!
//! The test plays both ends with the engine's own halves, so that it sees every sequence number and IV.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use towpath_base::packet::PacketBuf;
use towpath_base::sa::{ChildSa, EspKeys, EspSuite, Lifetime, Mode, Selectors};
use towpath_base::selector::TrafficSelector;
use towpath_base::testutil::SeededRng;
use towpath_base::{Instant, Spi};
use towpath_ipsec::soft::{SoftEsp, SoftTransform};
use towpath_ipsec::{InboundSa, OutboundSa, locate, wrapped};
use xtask::lab::{Family, Frame, Node, PeerKind};
use xtask::proof::stack::Stack;
use xtask::proof::stack_for_test_with;

use xtask::sh::Cmd;

use crate::{LIMIT, ping};

const NOW: Instant = Instant::from_secs(1);
const PERMISSIONS: &str = "[permissions]\ncapture = true\nshow_keys = true\n";

pub(crate) fn keys(suite: EspSuite, fill: u8) -> EspKeys {
    let material: Vec<u8> = (0..suite.key_material_len()).map(|i| fill ^ i as u8).collect();
    EspKeys::split(suite, &material).expect("the suite's own length")
}

fn hex(keys: &EspKeys) -> String {
    let bytes = [keys.cipher.expose(), keys.integrity.expose()].concat();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The SA seen from the terminal, with these keys towards it and from it.
pub(crate) fn child(
    family: Family,
    suite: EspSuite,
    spi: u32,
    keys_in: EspKeys,
    keys_out: EspKeys,
) -> ChildSa {
    let (local, remote) = (Node::Ta.addr(family), Node::Peer.addr(family));
    ChildSa {
        local,
        remote,
        suite,
        mode: Mode::Transport,
        esn: false,
        encap: None,
        spi_in: Spi(spi),
        spi_out: Spi(spi + 1),
        keys_in,
        keys_out,
        local_ts: Selectors::one(TrafficSelector::host(local)),
        remote_ts: Selectors::one(TrafficSelector::host(remote)),
        lifetime: Lifetime::default(),
    }
}

/// A plain UDP packet.
pub(crate) fn plain(family: Family, body: &[u8]) -> Vec<u8> {
    let ends = [Node::Ta, Node::Peer].map(|node| SocketAddr::new(node.addr(family), 7777));
    let mut udp = [7777u16.to_be_bytes(), 7777u16.to_be_bytes()].concat();
    udp.extend_from_slice(&(body.len() as u16 + 8).to_be_bytes());
    udp.extend_from_slice(&[0, 0]);
    udp.extend_from_slice(body);
    match (ends[0].ip(), ends[1].ip()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
            packet.extend_from_slice(&source.octets());
            packet.extend_from_slice(&destination.octets());
            packet.extend_from_slice(&udp);
            let len = (packet.len() as u16).to_be_bytes();
            packet[2..4].copy_from_slice(&len);
            let sum = towpath_common::wire::checksum(&packet[..20]).to_be_bytes();
            packet[10..12].copy_from_slice(&sum);
            packet
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend_from_slice(&(udp.len() as u16).to_be_bytes());
            packet.extend_from_slice(&[17, 64]);
            packet.extend_from_slice(&source.octets());
            packet.extend_from_slice(&destination.octets());
            // A checksum is not optional over IPv6, but nobody between the ends looks at it.
            packet.extend_from_slice(&udp);
            packet
        }
        _ => unreachable!("one family"),
    }
}

/// Puts something around the packet in a frame.
pub(crate) type Enclose<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;

/// Both ends of the SA, and what the peer's side of the wire has shown.
pub(crate) struct Ends {
    family: Family,
    ethernet: Vec<u8>,
    terminal: OutboundSa<SoftTransform>,
    peer: InboundSa<SoftTransform>,
    spi: Spi,
    rng: SeededRng,
    sent: u32,
    /// Sequence number and IV of every packet at the peer.
    seen: Vec<(u32, u64)>,
}

impl Ends {
    pub(crate) fn new(stack: &Stack, family: Family, terminal: &ChildSa, peer: &ChildSa) -> Self {
        let capture = stack.lab.capture(Node::Ta, "eth0").expect("tcpdump starts");
        assert!(ping(
            &stack.lab,
            Node::Ta,
            &Node::Ta.gateway(family).to_string(),
            1
        ));
        let frames = capture.stop().expect("the capture is readable");
        let own = frames.iter().find(|frame| {
            let seen = frame.seen();
            seen.is_some_and(|seen| seen.src == Node::Ta.addr(family) && seen.dst == Node::Ta.gateway(family))
        });
        Self {
            family,
            ethernet: own.expect("an echo request").bytes[..14].to_vec(),
            terminal: OutboundSa::new(&SoftEsp, NOW, terminal).expect("keys fit"),
            peer: InboundSa::new(&SoftEsp, NOW, &peer.mirrored()).expect("keys fit"),
            spi: peer.spi_out,
            rng: SeededRng::new(7),
            sent: 0,
            seen: Vec::new(),
        }
    }

    /// One plain packet, sealed and framed.
    fn seal(&mut self, packet: &[u8]) -> Frame {
        self.sent += 1;
        let mut buffer = [0; 512];
        buffer[128..128 + packet.len()].copy_from_slice(packet);
        let mut sealed = PacketBuf::new(&mut buffer, 128, packet.len()).expect("it fits");
        self.terminal
            .seal(NOW, &mut sealed, &mut self.rng)
            .expect("it is sealed");
        Frame {
            at: Duration::from_millis(u64::from(self.sent) * 5),
            bytes: [&self.ethernet, sealed.bytes()].concat(),
        }
    }

    pub(crate) fn frames(&mut self, count: u32) -> Vec<Frame> {
        (0..count)
            .map(|_| {
                let body = format!("packet {:08}", self.sent + 1);
                self.seal(&plain(self.family, body.as_bytes()))
            })
            .collect()
    }

    /// Sends `count` packets; returns how many the peer opened.
    fn send(&mut self, stack: &Stack, count: u32) -> usize {
        self.send_inside(stack, count, None)
    }

    /// As [`Ends::send`], with something around every packet, which is still there at the peer.
    pub(crate) fn send_inside(&mut self, stack: &Stack, count: u32, around: Option<Enclose<'_>>) -> usize {
        let frames = self.frames(count);
        self.pass(stack, frames, around)
    }

    /// Sends these frames, which may have been sent before.
    fn pass(&mut self, stack: &Stack, mut frames: Vec<Frame>, around: Option<Enclose<'_>>) -> usize {
        let capture = stack.lab.capture(Node::Peer, "eth0").expect("tcpdump starts");
        if let Some(enclose) = around {
            for frame in &mut frames {
                frame.bytes = enclose(&frame.bytes);
            }
        }
        stack.lab.inject(Node::Ta, &frames).expect("tcpreplay runs");
        std::thread::sleep(Duration::from_millis(400));
        let frames = capture.stop().expect("the capture is readable");
        let mut opened = 0;
        for frame in frames {
            let mut packet = frame.bytes.get(14..).unwrap_or_default();
            if around.is_some() {
                let Some((_, inner)) = wrapped::unwrap(packet) else {
                    continue;
                };
                packet = &packet[inner];
            }
            let Ok(at) = locate::esp(packet) else { continue };
            if at.spi != self.spi {
                continue;
            }
            let iv = packet[at.esp_at + 8..at.esp_at + 16].try_into().expect("8 bytes");
            self.seen.push((at.sequence, u64::from_be_bytes(iv)));
            let mut buffer = [0; 2048];
            buffer[..packet.len()].copy_from_slice(packet);
            let mut packet = PacketBuf::new(&mut buffer, 0, packet.len()).expect("it fits");
            if self.peer.open(NOW, &mut packet).is_ok() {
                opened += 1;
                let bytes = packet.bytes();
                assert!(
                    bytes.windows(7).any(|window| window == b"packet "),
                    "what arrived is what was sent"
                );
            }
        }
        opened
    }

    pub(crate) fn distinct(&self) {
        let ivs: HashSet<u64> = self.seen.iter().map(|(_, iv)| *iv).collect();
        assert_eq!(ivs.len(), self.seen.len(), "an IV twice: {:?}", self.seen);
    }
}

pub(crate) fn add(stack: &Stack, name: &str, sa: &ChildSa, keys: &[(&str, &EspKeys)]) {
    let (peer, terminal) = (sa.remote.to_string(), sa.local.to_string());
    let (spi_in, spi_out) = (sa.spi_in.to_string(), sa.spi_out.to_string());
    let mut args = vec![
        "sa",
        "add",
        name,
        "--subscriber",
        "ta",
        "--terminal",
        &terminal,
        "--peer",
        &peer,
    ];
    args.extend([
        "--spi-in",
        &spi_in,
        "--spi-out",
        &spi_out,
        "--suite",
        sa.suite.name(),
        "--mode",
        sa.mode.name(),
    ]);
    let encap = sa
        .encap
        .map(|udp| format!("{}:{}", udp.local_port, udp.remote_port));
    args.extend(encap.iter().flat_map(|ports| ["--encap", ports]));
    let keys: Vec<String> = keys
        .iter()
        .map(|(name, keys)| format!("{name}={}", hex(keys)))
        .collect();
    args.extend(keys.iter().flat_map(|key| ["--key", key.as_str()]));
    stack.cli(&args).expect("the SA is added");
}

pub(crate) fn segments(stack: &Stack, family: Family, spi: u32, fill: u8) -> Ends {
    let [terminal, peer] = add_segments(stack, family, spi, fill, Mode::Transport);
    Ends::new(stack, family, &terminal, &peer)
}

/// Adds an SA with segment keys; returns what the terminal has of it, and the peer.
fn add_segments(stack: &Stack, family: Family, spi: u32, fill: u8, mode: Mode) -> [ChildSa; 2] {
    add_changed(stack, family, spi, fill, |sa| sa.mode = mode)
}

/// As [`segments`], changed by `change` on both segments.
pub(crate) fn add_changed(
    stack: &Stack,
    family: Family,
    spi: u32,
    fill: u8,
    change: impl Fn(&mut ChildSa),
) -> [ChildSa; 2] {
    let suite = EspSuite::Aes256Gcm16;
    let [peer_in, peer_out, segment_in, segment_out] = [0, 1, 2, 3].map(|n| keys(suite, fill + n));
    let of = |keys_in: &EspKeys, keys_out: &EspKeys| {
        let mut sa = child(family, suite, spi, keys_in.clone(), keys_out.clone());
        change(&mut sa);
        sa
    };
    let (terminal, peer) = (of(&segment_in, &segment_out), of(&peer_in, &peer_out));
    let given = [
        ("peer_in", &peer_in),
        ("peer_out", &peer_out),
        ("segment_in", &segment_in),
        ("segment_out", &segment_out),
    ];
    add(stack, &format!("segments-{family}-{spi:x}"), &peer, &given);
    [terminal, peer]
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn a_wildcard_sa_takes_both_encapsulations() {
    let stack = stack_for_test_with("wildcard", PeerKind::Libipsec, PERMISSIONS).expect("lab and towpath");
    for (family, spi, fill) in [(Family::V4, 0xa000_0050, 0x10), (Family::V6, 0xa000_0060, 0x60)] {
        let given = add_segments(&stack, family, spi, fill, Mode::Wildcard);
        for (round, mode) in [Mode::Transport, Mode::Tunnel, Mode::Transport]
            .into_iter()
            .enumerate()
        {
            let [terminal, peer] = given.clone();
            let mut ends = Ends::new(&stack, family, &ChildSa { mode, ..terminal }, &peer);
            ends.terminal.skip_to(round as u64 * 100);
            let opened = ends.send(&stack, 10);
            assert_eq!(opened, 10, "{family} {mode}:\n{}", stack.tail("towpath", 20));
        }
    }
    stack.stop();
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn a_manual_sa_survives_kill_9_and_no_nonce_is_used_twice() {
    let mut stack = stack_for_test_with("manual", PeerKind::Libipsec, PERMISSIONS).expect("lab and towpath");
    let mut all = [
        segments(&stack, Family::V4, 0xa000_0010, 0x10),
        segments(&stack, Family::V6, 0xa000_0020, 0x60),
    ];
    let mut sent = [const { Vec::new() }; 2];
    for life in 0..3u32 {
        for (ends, sent) in all.iter_mut().zip(&mut sent) {
            let before = ends.seen.len();
            let frames = ends.frames(20);
            assert_eq!(
                ends.pass(&stack, frames.clone(), None),
                20,
                "{} life {life}:\n{}",
                ends.family,
                stack.tail("towpath", 20)
            );
            // What any life accepted is accepted by none again.
            sent.extend(frames);
            assert_eq!(
                ends.pass(&stack, sent.clone(), None),
                0,
                "{} life {life}",
                ends.family
            );
            let lowest = ends.seen[before..].iter().map(|(sequence, _)| *sequence).min();
            // A block for each start: the counter jumped over what the one before may have used.
            assert!(lowest > Some(life * 65536), "life {life}: {lowest:?}");
            ends.distinct();
        }
        stack.kill_daemon();
        stack.start_daemon().expect("the daemon starts again");
        for (ends, sent) in all.iter_mut().zip(&sent) {
            assert_eq!(
                ends.pass(&stack, sent.clone(), None),
                0,
                "{} after life {life}",
                ends.family
            );
        }
    }
    let shown = stack
        .cli(&["sa", "list", "--manual"])
        .expect("the SAs are listed")
        .to_string();
    assert!(
        shown.contains("segments-") && !shown.contains(&hex(&keys(EspSuite::Aes256Gcm16, 0x11))),
        "{shown}"
    );
    stack.stop();
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn shared_keys_are_used_only_under_proof_and_in_the_other_half_also_after_kill_9() {
    let mut stack = stack_for_test_with("shared", PeerKind::Libipsec, PERMISSIONS).expect("lab and towpath");
    let suite = EspSuite::Aes128Gcm16;
    let (keys_in, keys_out) = (keys(suite, 0x30), keys(suite, 0x31));
    let sa = child(Family::V4, suite, 0xa000_0030, keys_in.clone(), keys_out.clone());
    add(&stack, "shared", &sa, &[("in", &keys_in), ("out", &keys_out)]);
    let mut ends = Ends::new(&stack, Family::V4, &sa, &sa);

    // The endpoint counts from 1 in the lower half: watched, and passed on bit for bit.
    assert_eq!(ends.send(&stack, 8), 8);
    assert!(
        ends.seen.iter().all(|(sequence, iv)| *iv == u64::from(*sequence)),
        "{:?}",
        ends.seen
    );
    for life in 0..3 {
        let before = ends.seen.len();
        assert_eq!(
            ends.send(&stack, 20),
            20,
            "life {life}:\n{}",
            stack.tail("towpath", 20)
        );
        let ours = ends.seen[before..].iter().all(|(_, iv)| iv >> 63 == 1);
        assert!(
            ours,
            "the gateway sends from the upper half: {:?}",
            &ends.seen[before..]
        );
        ends.distinct();
        stack.kill_daemon();
        stack.start_daemon().expect("the daemon starts again");
    }
    stack.stop();
}

/// Runs tshark on `file`.
fn tshark(file: &std::path::Path, options: &[String]) -> String {
    let out = Command::new("tshark")
        .arg("-r")
        .arg(file)
        .args(options)
        .output()
        .expect("tshark is installed (`cargo xtask setup`)");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

#[test]
#[ignore = "needs root: network namespaces and XDP"]
fn a_capture_shows_the_packets_inside_and_exported_keys_open_those_outside() {
    let stack = stack_for_test_with("capture", PeerKind::Libipsec, PERMISSIONS).expect("lab and towpath");
    let mut ends = segments(&stack, Family::V4, 0xa000_0040, 0x20);
    let directory = std::env::temp_dir();
    for (name, options) in [("plain", &["--decrypted"][..]), ("core", &[][..])] {
        let file = directory.join(format!("towpath-capture-{}-{name}.pcapng", std::process::id()));
        let path = file.display().to_string();
        let mut args = vec![
            "capture",
            "--sa",
            "a0000041",
            "-w",
            &path,
            "-n",
            "5",
            "--seconds",
            "15",
        ];
        args.extend(options);
        let summary = std::thread::scope(|scope| {
            let capturing = scope.spawn(|| stack.cli(&args));
            std::thread::sleep(Duration::from_secs(1));
            assert_eq!(ends.send(&stack, 5), 5);
            capturing
                .join()
                .expect("it does not panic")
                .expect("the capture ends")
        });
        assert_eq!(
            (summary["packets"].as_u64(), summary["lost"].as_u64()),
            (Some(5), Some(0))
        );
        let mut options = vec!["-V".to_owned()];
        if name == "core" {
            let keys = stack
                .cli(&["sa", "export-wireshark", "--spi", "a0000041"])
                .expect("keys are exported");
            let outward = keys
                .as_array()
                .and_then(|keys| keys.iter().find(|key| key["spi"] == 0xa000_0041_u32))
                .expect("the outward key");
            let sa = format!(
                "uat:esp_sa:\"IPv4\",\"*\",\"*\",\"0xa0000041\",\"AES-GCM with 16 octet ICV [RFC4106]\",\"0x{}\",\"NULL\",\"\",\
                 \"32-bit\",\"\"",
                outward["cipher"].as_str().expect("hex")
            );
            options.extend(["-o", "esp.enable_encryption_decode:TRUE", "-o", &sa].map(String::from));
        }
        let shown = tshark(&file, &options);
        let inside = shown.matches("Src Port: 7777").count() + shown.matches("Source Port: 7777").count();
        assert!(inside >= 5, "{name}: {inside}\n{shown}");
        println!("{name}: tshark sees {inside} lines of the packets inside");
        let _ = std::fs::remove_file(&file);
    }
    stack.stop();
}

/// An echo request from terminal A to the peer, with correct checksums.
fn echo(family: Family, number: u16) -> Vec<u8> {
    let kind = if family == Family::V4 { 8 } else { 128 };
    let mut icmp = vec![kind, 0, 0, 0, 0x77, 0x77];
    icmp.extend_from_slice(&number.to_be_bytes());
    icmp.extend_from_slice(b"manual keys, a real kernel");
    let ends = [Node::Ta.addr(family), Node::Peer.addr(family)];
    let mut packet = plain(family, &icmp);
    // The same header around ICMP instead of UDP.
    let header = if family == Family::V4 { 20 } else { 40 };
    packet.truncate(header);
    let mut summed = Vec::new();
    match ends {
        [IpAddr::V6(source), IpAddr::V6(destination)] => {
            packet[4..6].copy_from_slice(&(icmp.len() as u16).to_be_bytes());
            packet[6] = 58;
            summed.extend_from_slice(&source.octets());
            summed.extend_from_slice(&destination.octets());
            summed.extend_from_slice(&(icmp.len() as u32).to_be_bytes());
            summed.extend_from_slice(&[0, 0, 0, 58]);
        }
        _ => {
            packet[2..4].copy_from_slice(&((header + icmp.len()) as u16).to_be_bytes());
            packet[9] = 1;
            packet[10..12].fill(0);
            let sum = towpath_common::wire::checksum(&packet).to_be_bytes();
            packet[10..12].copy_from_slice(&sum);
        }
    }
    summed.extend_from_slice(&icmp);
    let sum = towpath_common::wire::checksum(&summed).to_be_bytes();
    icmp[2..4].copy_from_slice(&sum);
    packet.extend_from_slice(&icmp);
    packet
}

/// Manual keys as the peer's kernel takes them. Its shell reads the line, hence the quotes.
fn teach_kernel(stack: &Stack, sa: &ChildSa) {
    let hex = |key: &towpath_base::Key| {
        let digits: String = key.expose().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("0x{digits}")
    };
    let ends = [
        ("in", sa.local, sa.remote, sa.spi_out, &sa.keys_out),
        ("out", sa.remote, sa.local, sa.spi_in, &sa.keys_in),
    ];
    for (direction, source, destination, spi, keys) in ends {
        let (source, destination, spi) = (source.to_string(), destination.to_string(), format!("0x{spi}"));
        let (cipher, integrity) = (hex(&keys.cipher), hex(&keys.integrity));
        let mut state = vec![
            "xfrm",
            "state",
            "add",
            "src",
            &source,
            "dst",
            &destination,
            "proto",
            "esp",
            "spi",
        ];
        state.extend([spi.as_str(), "reqid", "77", "mode", "transport"]);
        if sa.suite.is_aead() {
            state.extend(["aead", "'rfc4106(gcm(aes))'", &cipher, "128"]);
        } else {
            state.extend([
                "auth-trunc",
                "'hmac(sha256)'",
                &integrity,
                "128",
                "enc",
                "'cbc(aes)'",
                &cipher,
            ]);
        }
        let mut policy = vec![
            "xfrm",
            "policy",
            "update",
            "src",
            &source,
            "dst",
            &destination,
            "dir",
            direction,
        ];
        policy.extend([
            "priority",
            "1",
            "tmpl",
            "src",
            &source,
            "dst",
            &destination,
            "proto",
            "esp",
        ]);
        policy.extend(["reqid", "77", "mode", "transport"]);
        for args in [state, policy] {
            let out = stack
                .lab
                .exec(Node::Peer, &Cmd::new("ip").args(&args), LIMIT)
                .expect("ip runs");
            assert!(out.ok(), "{args:?}: {}", out.all());
        }
    }
}

#[test]
#[ignore = "needs root: network namespaces, XDP and a guest kernel"]
fn a_real_kernel_answers_pings_under_manual_keys_with_the_gateway_in_between() {
    let stack = stack_for_test_with("manualk", PeerKind::Kernel, PERMISSIONS).expect("lab and towpath");
    let cases = [
        (Family::V4, EspSuite::Aes256Gcm16, 0xa000_0050),
        (Family::V6, EspSuite::Aes128CbcSha256, 0xa000_0060),
    ];
    for (family, suite, spi) in cases {
        let fill = spi as u8;
        let [peer_in, peer_out, segment_in, segment_out] = [0, 1, 2, 3].map(|n| keys(suite, fill + n));
        let peer = child(family, suite, spi, peer_in.clone(), peer_out.clone());
        let terminal = child(family, suite, spi, segment_in.clone(), segment_out.clone());
        let given = [
            ("peer_in", &peer_in),
            ("peer_out", &peer_out),
            ("segment_in", &segment_in),
            ("segment_out", &segment_out),
        ];
        add(&stack, &format!("kernel-{family}"), &peer, &given);
        let mut ends = Ends::new(&stack, family, &terminal, &peer);
        teach_kernel(&stack, &peer);
        let requests: Vec<Frame> = (1..=10).map(|number| ends.seal(&echo(family, number))).collect();
        let capture = stack.lab.capture(Node::Ta, "eth0").expect("tcpdump starts");
        stack.lab.inject(Node::Ta, &requests).expect("tcpreplay runs");
        std::thread::sleep(Duration::from_secs(1));
        let mut back: InboundSa<SoftTransform> = InboundSa::new(&SoftEsp, NOW, &terminal).expect("keys fit");
        let frames = capture.stop().expect("the capture is readable");
        let answers = frames.iter().filter(|frame| {
            let packet = frame.bytes.get(14..).unwrap_or_default();
            let mut buffer = [0; 2048];
            buffer[..packet.len()].copy_from_slice(packet);
            let ours = locate::esp(packet).is_ok_and(|at| at.spi == terminal.spi_in);
            let mut packet = PacketBuf::new(&mut buffer, 0, packet.len()).expect("it fits");
            ours && back.open(NOW, &mut packet).is_ok()
                && packet.bytes().ends_with(b"manual keys, a real kernel")
        });
        assert_eq!(
            answers.count(),
            10,
            "{family} {suite}:\n{}",
            stack.tail("towpath", 20)
        );
        println!("{family} {suite}: 10 of 10 answered");
    }
    stack.stop();
}
