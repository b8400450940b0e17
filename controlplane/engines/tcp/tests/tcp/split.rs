//! The split relay between two hosts.
//!
//! ```text
//!   terminal 10.0.0.1 ──── relay ──── peer 192.0.2.9
//!                    10 ms       10 ms
//! ```

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::Duration;

use crate::common::{config, mirrored, pattern, read};
use towpath_base::Instant;
use towpath_tcp::packet::{IpHeader, TcpPacket};
use towpath_tcp::relay::split::{Handshake, Opening, SplitConfig, SplitRelay};
use towpath_tcp::relay::{FlowKey, Side, Verdict};
use towpath_tcp::segment::{Flags, Header};
use towpath_tcp::{Algorithm, Closed, Config, Ecn, Endpoint, IsnSecret, RestoreError, SeqNum, State};

const DELAY: Duration = Duration::from_millis(10);

fn terminal() -> IpAddr {
    [10, 0, 0, 1].into()
}

fn peer() -> IpAddr {
    [192, 0, 2, 9].into()
}

fn key() -> FlowKey {
    FlowKey {
        terminal: (terminal(), 1000),
        network: (peer(), 2000),
    }
}

/// A packet on one of the two wires: arrives at the relay or at a host.
struct Flying {
    at: Instant,
    side: Side,
    to_relay: bool,
    bytes: Vec<u8>,
}

struct Lab {
    relay: SplitRelay,
    terminal: Endpoint,
    /// `None`: nobody answers there.
    peer: Option<Endpoint>,
    now: Instant,
    wire: VecDeque<Flying>,
    /// Packets the relay said to forward untouched.
    passed: Vec<(Side, Vec<u8>)>,
    /// Longest packet that survives between relay and peer.
    mtu: usize,
    sent_to_peer: Vec<Vec<u8>>,
}

fn packet(from: Side, endpoint: &mut Endpoint, now: Instant) -> Option<Vec<u8>> {
    let (source, destination) = if from == Side::Terminal {
        (terminal(), peer())
    } else {
        (peer(), terminal())
    };
    let mut ip = IpHeader {
        source,
        destination,
        dscp: 46,
        ecn: Ecn::NotEct,
        ttl: 64,
    };
    let mut buffer = vec![0; 2048];
    let outgoing = endpoint.poll_transmit(now, &mut buffer[20..])?;
    ip.ecn = outgoing.ecn;
    let len = ip.finish(&mut buffer, outgoing.len)?;
    buffer.truncate(len);
    Some(buffer)
}

fn bare(from: Side, header: Header) -> Vec<u8> {
    let (source, destination) = if from == Side::Terminal {
        (terminal(), peer())
    } else {
        (peer(), terminal())
    };
    let ip = IpHeader {
        source,
        destination,
        dscp: 0,
        ecn: Ecn::NotEct,
        ttl: 64,
    };
    let mut buffer = vec![0; 200];
    let len = header.write(&mut buffer[20..]).unwrap();
    let len = ip.finish(&mut buffer, len).unwrap();
    buffer.truncate(len);
    buffer
}

impl Lab {
    fn new(relay: SplitConfig, host: Config) -> Self {
        let now = Instant::from_secs(1);
        Self {
            relay: SplitRelay::new(relay, IsnSecret([1, 2])),
            terminal: Endpoint::connect(now, host.clone(), SeqNum(9)),
            peer: Some(Endpoint::listen(now, mirrored(&host), SeqNum(70))),
            now,
            wire: VecDeque::new(),
            passed: Vec::new(),
            mtu: 1500,
            sent_to_peer: Vec::new(),
        }
    }

    fn open() -> Self {
        let mut lab = Self::new(SplitConfig::default(), config());
        lab.run(Duration::from_millis(200));
        assert_eq!(lab.states(), (State::Established, State::Established));
        lab
    }

    fn states(&self) -> (State, State) {
        (
            self.terminal.state(),
            self.peer.as_ref().map_or(State::Closed, Endpoint::state),
        )
    }

    fn peer(&mut self) -> &mut Endpoint {
        self.peer.as_mut().unwrap()
    }

    fn send(&mut self) {
        let at = self.now + DELAY;
        while let Some(bytes) = packet(Side::Terminal, &mut self.terminal, self.now) {
            self.wire.push_back(Flying {
                at,
                side: Side::Terminal,
                to_relay: true,
                bytes,
            });
        }
        while let Some(bytes) = self
            .peer
            .as_mut()
            .and_then(|peer| packet(Side::Network, peer, self.now))
        {
            self.wire.push_back(Flying {
                at,
                side: Side::Network,
                to_relay: true,
                bytes,
            });
        }
        let mut buffer = [0; 2048];
        while let Some(transmit) = self.relay.poll_transmit(self.now, &mut buffer) {
            let bytes = buffer[..transmit.len].to_vec();
            if transmit.to == Side::Network {
                self.sent_to_peer.push(bytes.clone());
            }
            if transmit.to == Side::Terminal || bytes.len() <= self.mtu {
                self.wire.push_back(Flying {
                    at,
                    side: transmit.to,
                    to_relay: false,
                    bytes,
                });
            }
        }
    }

    fn deliver(&mut self, flying: &Flying) {
        if flying.to_relay {
            match self.relay.handle_input(self.now, flying.side, &flying.bytes) {
                Verdict::Pass => self.passed.push((flying.side, flying.bytes.clone())),
                verdict => assert_eq!(verdict, Verdict::Consumed),
            }
            return;
        }
        let packet = TcpPacket::parse(&flying.bytes).unwrap();
        let (from, to) = if flying.side == Side::Terminal {
            (peer(), terminal())
        } else {
            (terminal(), peer())
        };
        assert_eq!(
            (packet.source, packet.destination),
            (from, to),
            "the relay shows itself"
        );
        if flying.side == Side::Terminal {
            self.terminal.handle_input(self.now, &packet.segment, packet.ecn);
        } else if let Some(peer) = &mut self.peer {
            peer.handle_input(self.now, &packet.segment, packet.ecn);
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        self.send();
        loop {
            let wire = self.wire.iter().map(|flying| flying.at);
            let hosts = [Some(&self.terminal), self.peer.as_ref()].into_iter().flatten();
            let timers = hosts.filter_map(Endpoint::poll_timeout).map(|(at, _)| at);
            let next = wire
                .chain(timers)
                .chain(self.relay.poll_timeout().map(|(at, _)| at))
                .min();
            let Some(next) = next.filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(next);
            self.terminal.handle_timeout(self.now);
            if let Some(peer) = &mut self.peer {
                peer.handle_timeout(self.now);
            }
            self.relay.handle_timeout(self.now);
            while let Some(index) = self.wire.iter().position(|flying| flying.at <= self.now) {
                let flying = self.wire.remove(index).unwrap();
                self.deliver(&flying);
            }
            self.send();
        }
        self.now = end;
    }

    /// Runs for `time` in small steps while the peer reads.
    fn run_reading(&mut self, time: Duration) -> Vec<u8> {
        let end = self.now + time;
        let mut got = Vec::new();
        while self.now < end {
            self.run(Duration::from_millis(10));
            let now = self.now;
            got.extend(read(self.peer(), now));
        }
        got
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_far_side_is_opened_first_and_nobody_sees_the_relay() {
    let mut lab = Lab::new(SplitConfig::default(), config());
    // Four trips of 10 ms: SYN, SYN, SYN-ACK, SYN-ACK.
    lab.run(Duration::from_millis(35));
    assert_eq!(lab.states(), (State::SynSent, State::SynReceived));
    lab.run(Duration::from_millis(10));
    assert_eq!(lab.states(), (State::Established, State::Established));
    let syn = TcpPacket::parse(&lab.sent_to_peer[0]).unwrap();
    assert_eq!((syn.dscp, syn.ttl), (46, 63));
    assert_eq!(lab.relay.len(), 1);
}

#[test]
fn early_answers_the_opener_after_one_round_trip() {
    let early = SplitConfig {
        handshake: Handshake::Early,
        ..SplitConfig::default()
    };
    let mut lab = Lab::new(early, config());
    lab.run(Duration::from_millis(25));
    assert_eq!(lab.terminal.state(), State::Established);
}

#[test]
fn a_refused_connection_looks_refused() {
    let mut lab = Lab::new(SplitConfig::default(), config());
    lab.peer = None;
    lab.run(Duration::from_millis(25));
    let syn = TcpPacket::parse(&lab.sent_to_peer[0]).unwrap();
    let reset = bare(Side::Network, syn.segment.reset().unwrap());
    assert_eq!(
        lab.relay.handle_input(lab.now, Side::Network, &reset),
        Verdict::Consumed
    );
    lab.run(Duration::from_millis(25));
    assert_eq!(lab.terminal.closed(), Some(Closed::Refused));
    assert!(lab.relay.is_empty());
}

#[test]
fn an_unreachable_peer_looks_unreachable_and_leaves_nothing_behind() {
    let mut lab = Lab::new(
        SplitConfig::default(),
        Config {
            syn_retries: 2,
            ..config()
        },
    );
    lab.peer = None;
    lab.run(SECOND * 400);
    assert_eq!(lab.terminal.closed(), Some(Closed::TimedOut));
    assert!(lab.relay.is_empty());
    assert_eq!(lab.relay.poll_timeout(), None);
}

#[test]
fn a_reset_passes_in_both_directions() {
    for from_terminal in [true, false] {
        let mut lab = Lab::open();
        if from_terminal {
            lab.terminal.abort()
        } else {
            lab.peer().abort()
        }
        lab.run(SECOND);
        let other = if from_terminal {
            lab.peer.as_ref().unwrap()
        } else {
            &lab.terminal
        };
        assert_eq!(
            other.closed(),
            Some(Closed::Reset),
            "from terminal: {from_terminal}"
        );
        lab.run(SECOND * 60);
        assert!(lab.relay.is_empty());
    }
}

#[test]
fn half_a_connection_stays_open_through_the_relay() {
    let mut lab = Lab::open();
    lab.terminal.write(b"request");
    lab.terminal.close(lab.now);
    lab.run(SECOND);
    assert_eq!(lab.states(), (State::FinWait2, State::CloseWait));
    let now = lab.now;
    assert_eq!(read(lab.peer(), now), b"request");
    lab.peer().write(b"answer");
    lab.peer().close(now);
    lab.run(SECOND);
    assert_eq!(read(&mut lab.terminal, lab.now), b"answer");
    assert_eq!(lab.states(), (State::TimeWait, State::Closed));
    lab.run(SECOND * 60);
    assert!(lab.relay.is_empty());
    assert_eq!(lab.relay.poll_timeout(), None);
}

#[test]
fn urgent_data_keeps_its_place() {
    let mut lab = Lab::open();
    lab.terminal.write(b"stop it now");
    lab.terminal.set_urgent(5);
    lab.run(SECOND);
    assert_eq!(lab.peer().urgent_received(), Some(5));
}

#[test]
fn a_peer_that_does_not_read_stops_the_terminal_and_loses_nothing() {
    let mut lab = Lab::open();
    let data = pattern(30 << 20);
    let mut written = lab.terminal.write(&data);
    for _ in 0..60 {
        lab.run(SECOND);
        written += lab.terminal.write(&data[written..]);
    }
    // Every buffer on the way is full, and bounded.
    let held: usize = [Side::Terminal, Side::Network]
        .iter()
        .filter_map(|side| lab.relay.view(&key(), *side))
        .map(|view| view.queued + view.unread)
        .sum();
    assert!((1 << 18..16 << 20).contains(&held), "{held}");
    assert!(written < 28 << 20, "{written}");
    assert_eq!(lab.states(), (State::Established, State::Established));
    let mut got = Vec::new();
    while got.len() < data.len() && lab.now < Instant::from_secs(400) {
        got.extend(lab.run_reading(Duration::from_millis(100)));
        written += lab.terminal.write(&data[written..]);
    }
    assert!(got == data, "{} bytes", got.len());
}

#[test]
fn what_the_relay_did_not_see_begin_passes_untouched() {
    let mut relay = SplitRelay::new(SplitConfig::default(), IsnSecret([1, 2]));
    let header = Header {
        source_port: 1,
        destination_port: 2,
        flags: Flags::ACK,
        ..Header::default()
    };
    let bytes = bare(Side::Terminal, header);
    assert_eq!(
        relay.handle_input(Instant::ZERO, Side::Terminal, &bytes),
        Verdict::Pass
    );
    let mut broken = bytes;
    broken[25] ^= 1;
    assert_eq!(
        relay.handle_input(Instant::ZERO, Side::Terminal, &broken),
        Verdict::Drop
    );
    assert!(relay.is_empty());
}

#[test]
fn a_flood_of_openings_fills_the_bound_and_then_passes() {
    let bounded = SplitConfig {
        max_half_open: 100,
        ..SplitConfig::default()
    };
    let mut relay = SplitRelay::new(bounded, IsnSecret([1, 2]));
    let mut verdicts = [0; 2];
    let mut buffer = [0; 2048];
    for port in 0..1000 {
        let syn = Header {
            source_port: port,
            destination_port: 2,
            flags: Flags::SYN,
            ..Header::default()
        };
        let verdict = relay.handle_input(Instant::ZERO, Side::Network, &bare(Side::Network, syn));
        verdicts[usize::from(verdict == Verdict::Pass)] += 1;
        while relay.poll_transmit(Instant::ZERO, &mut buffer).is_some() {}
    }
    assert_eq!(
        (verdicts, relay.len(), relay.stats().over_limit),
        ([100, 900], 100, 900)
    );
    let mut now = Instant::ZERO;
    while let Some((at, _)) = relay.poll_timeout() {
        now = at;
        relay.handle_timeout(now);
        while relay.poll_transmit(now, &mut buffer).is_some() {}
    }
    assert!(
        relay.is_empty() && now < Instant::from_secs(300),
        "{} at {now:?}",
        relay.len()
    );
}

/// A SYN of another terminal's flood.
fn flood_syn(port: u16) -> Vec<u8> {
    let syn = Header {
        source_port: port,
        destination_port: 2,
        flags: Flags::SYN,
        ..Header::default()
    };
    bare(Side::Terminal, syn)
}

#[test]
fn who_floods_pushes_out_its_own_openings_and_nobody_elses() {
    let bounded = SplitConfig {
        max_half_open_per_tag: 50,
        ..SplitConfig::default()
    };
    let mut lab = Lab::new(bounded, config());
    let mut buffer = [0; 2048];
    let mut largest = 0;
    // A thousand SYNs a millisecond from the path 7, while a connection opens on another.
    for port in 0..45_000_u16 {
        let verdict = lab
            .relay
            .handle_tagged(lab.now, Side::Terminal, &flood_syn(port), 7, |_| {
                Some(Opening::default())
            });
        assert_eq!(verdict, Verdict::Consumed);
        // Nobody answers those.
        while lab.relay.poll_transmit(lab.now, &mut buffer).is_some() {}
        if port % 1000 == 999 {
            lab.run(Duration::from_millis(1));
            largest = largest.max(lab.relay.len());
        }
    }
    assert_eq!(lab.states(), (State::Established, State::Established));
    // The relay has not heard the last step of the handshake yet.
    assert!(largest <= 51 && lab.relay.half_open() <= 51, "{largest}");
    assert_eq!(lab.relay.stats().pushed_out, 45_000 - 50);
    assert_eq!(lab.relay.stats().over_limit, 0);
}

#[test]
fn early_waits_for_the_far_side_while_a_path_is_flooded() {
    let early = SplitConfig {
        handshake: Handshake::Early,
        max_half_open_per_tag: 50,
        ..SplitConfig::default()
    };
    let mut relay = SplitRelay::new(early, IsnSecret([1, 2]));
    let mut buffer = [0; 2048];
    let mut answered = 0;
    for port in 0..40 {
        relay.handle_input(Instant::ZERO, Side::Terminal, &flood_syn(port));
        while let Some(transmit) = relay.poll_transmit(Instant::ZERO, &mut buffer) {
            answered += usize::from(transmit.to == Side::Terminal);
        }
    }
    assert_eq!((answered, relay.half_open()), (25, 40));
}

#[test]
fn a_connection_without_a_word_is_reset_at_last() {
    let idle = SplitConfig {
        idle_timeout: SECOND * 100,
        ..SplitConfig::default()
    };
    let mut lab = Lab::new(idle, config());
    lab.run(SECOND * 90);
    assert_eq!(lab.states(), (State::Established, State::Established));
    lab.run(SECOND * 20);
    assert_eq!(
        (lab.terminal.closed(), lab.peer().closed()),
        (Some(Closed::Reset), Some(Closed::Reset))
    );
    lab.run(SECOND * 60);
    assert!(lab.relay.is_empty());
}

#[test]
fn a_smaller_path_mtu_behind_the_relay_takes_effect_in_mid_flow() {
    let mut lab = Lab::open();
    let data = pattern(400_000);
    lab.terminal.write(&data);
    let mut got = lab.run_reading(Duration::from_millis(80));
    lab.mtu = 1000;
    lab.relay.path_mtu(lab.now, &key(), Side::Network, 1000);
    got.extend(lab.run_reading(SECOND * 3));
    assert!(got == data, "{} bytes", got.len());
    let view = lab.relay.view(&key(), Side::Network).unwrap();
    assert_eq!(view.stats.timeouts, 0);
}

#[test]
fn a_path_that_swallows_long_packets_is_found_out_and_searched() {
    let mut lab = Lab::open();
    let data = pattern(8 << 20);
    let mut written = lab.terminal.write(&data);
    // Nobody reads: data waits in the relay, cut for 1400 bytes.
    lab.run(SECOND * 2);
    lab.mtu = 1200;
    let narrowed = lab.now;
    let mut got = Vec::new();
    while got.len() < data.len() && lab.now < narrowed + SECOND * 20 {
        got.extend(lab.run_reading(Duration::from_millis(100)));
        written += lab.terminal.write(&data[written..]);
    }
    assert!(got == data, "{} bytes", got.len());
    let view = lab.relay.view(&key(), Side::Network).unwrap();
    // The longest would be 1180; the transfer ends before the search does.
    assert!((1100..=1180).contains(&view.mss), "{}", view.mss);
    assert!(view.stats.timeouts <= 3, "{}", view.stats.timeouts);
}

#[test]
fn after_an_outage_segments_are_as_long_as_before() {
    let mut lab = Lab::open();
    let data = pattern(3 << 20);
    let mut written = lab.terminal.write(&data);
    let mut got = lab.run_reading(Duration::from_millis(60));
    let before = lab.relay.view(&key(), Side::Network).unwrap().mss;
    lab.mtu = 0;
    got.extend(lab.run_reading(SECOND * 2));
    let during = lab.relay.view(&key(), Side::Network).unwrap().mss;
    lab.mtu = 1500;
    while got.len() < data.len() && lab.now < Instant::from_secs(30) {
        got.extend(lab.run_reading(Duration::from_millis(100)));
        written += lab.terminal.write(&data[written..]);
    }
    assert!(got == data, "{} bytes", got.len());
    let after = lab.relay.view(&key(), Side::Network).unwrap().mss;
    assert!(during <= 1024 && after == before, "{before} {during} {after}");
}

#[test]
fn a_new_connection_on_the_same_ports_takes_the_place_of_a_finished_one() {
    let mut lab = Lab::open();
    lab.terminal.close(lab.now);
    let now = lab.now;
    lab.peer().close(now);
    lab.run(SECOND);
    lab.terminal = Endpoint::connect(lab.now, config(), SeqNum(1 << 20));
    lab.peer = Some(Endpoint::listen(lab.now, mirrored(&config()), SeqNum(1 << 21)));
    lab.run(SECOND);
    assert_eq!(lab.states(), (State::Established, State::Established));
    assert_eq!(lab.relay.len(), 1);
}

#[test]
fn a_refusal_after_an_early_answer_is_a_reset() {
    let early = SplitConfig {
        handshake: Handshake::Early,
        ..SplitConfig::default()
    };
    let mut lab = Lab::new(early, config());
    lab.peer = None;
    lab.run(Duration::from_millis(45));
    assert_eq!(lab.terminal.state(), State::Established);
    let syn = TcpPacket::parse(&lab.sent_to_peer[0]).unwrap();
    let reset = bare(Side::Network, syn.segment.reset().unwrap());
    lab.relay.handle_input(lab.now, Side::Network, &reset);
    lab.run(SECOND);
    assert_eq!(lab.terminal.closed(), Some(Closed::Reset));
}

#[test]
fn the_next_connection_to_a_terminal_starts_where_the_last_one_was() {
    let mut radio = SplitConfig::default();
    radio.terminal.connection.algorithm = Algorithm::Radio;
    let mut lab = Lab::new(radio, config());
    lab.run(Duration::from_millis(200));
    let data = pattern(3_000_000);
    lab.peer().write(&data);
    for _ in 0..200 {
        lab.run(Duration::from_millis(20));
        read(&mut lab.terminal, lab.now);
    }
    let now = lab.now;
    lab.peer().close(now);
    lab.terminal.close(now);
    lab.run(SECOND);
    lab.terminal = Endpoint::connect(lab.now, config(), SeqNum(1 << 20));
    lab.peer = Some(Endpoint::listen(lab.now, mirrored(&config()), SeqNum(1 << 21)));
    lab.run(SECOND);
    let window = lab.relay.view(&key(), Side::Terminal).unwrap().window;
    assert!(window > 40 * 1348, "{window}");
}

#[test]
fn an_idle_connection_is_parked_in_a_kibibyte_and_wakes_when_needed() {
    let mut lab = Lab::open();
    lab.terminal.write(&pattern(100_000));
    assert_eq!(lab.run_reading(SECOND).len(), 100_000);
    let before = lab.relay.memory(&key()).unwrap();
    assert_eq!(lab.relay.trim(lab.now, SECOND * 10), 0);
    lab.run(SECOND * 10);
    assert_eq!(lab.relay.trim(lab.now, SECOND * 10), 1);
    let parked = lab.relay.memory(&key()).unwrap();
    println!("{before} bytes alive, {parked} parked");
    assert!(parked <= 1024, "{parked}");
    assert_eq!(
        lab.relay.view(&key(), Side::Network).unwrap().state,
        State::Established
    );
    lab.terminal.write(b"still there?");
    assert_eq!(lab.run_reading(SECOND), b"still there?");
}

#[test]
fn a_connection_moves_to_another_relay_in_mid_flow() {
    let mut lab = Lab::open();
    let data = pattern(2_000_000);
    lab.terminal.write(&data);
    let mut got = Vec::new();
    for _ in 0..40 {
        got.extend(lab.run_reading(Duration::from_millis(20)));
        let bytes = lab.relay.snapshot(lab.now, &key()).unwrap();
        let mut other = SplitRelay::new(SplitConfig::default(), IsnSecret([3, 4]));
        assert_eq!(other.restore(lab.now, &bytes), Ok(key()));
        assert_eq!(
            other.restore(lab.now, &bytes),
            Err(RestoreError::Invalid("no room for the connection"))
        );
        lab.relay = other;
    }
    got.extend(lab.run_reading(SECOND * 10));
    assert!(got == data, "{} bytes", got.len());
}

#[test]
fn bytes_that_are_no_flow_are_refused() {
    let mut lab = Lab::open();
    lab.terminal.write(&pattern(50_000));
    lab.run(Duration::from_millis(25));
    let good = lab.relay.snapshot(lab.now, &key()).unwrap();
    let mut state = 5_u64;
    let mut buffer = [0; 2048];
    for _ in 0..1_000 {
        let mut bad = good.clone();
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = (state >> 33) as usize % bad.len();
        bad[at] ^= 1 << (state >> 20 & 7);
        let mut relay = SplitRelay::new(SplitConfig::default(), IsnSecret([1, 2]));
        if relay.restore(lab.now, &bad).is_ok() {
            let mut now = lab.now;
            for _ in 0..20 {
                for _ in 0..20 {
                    if relay.poll_transmit(now, &mut buffer).is_none() {
                        break;
                    }
                }
                let Some((at, _)) = relay.poll_timeout() else {
                    break;
                };
                now = now.max(at);
                relay.handle_timeout(now);
            }
        }
    }
}
