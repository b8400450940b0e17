//! How connections begin through the relay, and which do not.

use super::*;

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

/// What the first SYN among `packets` says of the sender's clock.
fn clock_of_syn(packets: &[Vec<u8>]) -> u32 {
    let syn = packets
        .iter()
        .map(|bytes| TcpPacket::parse(bytes).unwrap().segment.header)
        .find(|header| header.flags.has(Flags::SYN))
        .unwrap();
    syn.options.timestamps.unwrap().value
}

#[test]
fn the_clock_goes_on_from_one_connection_to_the_next_between_the_same_ports() {
    // Whoever remembers the last one in TIME-WAIT refuses a SYN with an earlier timestamp.
    let mut lab = Lab::open();
    let mut clock = clock_of_syn(&lab.sent_to_peer);
    for round in 1..20 {
        let now = lab.now;
        lab.terminal.close(now);
        lab.peer().close(now);
        lab.run(SECOND);
        lab.sent_to_peer.clear();
        lab.terminal = Endpoint::connect(lab.now, config(), SeqNum(round << 20));
        lab.peer = Some(Endpoint::listen(
            lab.now,
            mirrored(&config()),
            SeqNum(round << 21),
        ));
        lab.run(SECOND);
        assert_eq!(lab.states(), (State::Established, State::Established));
        let next = clock_of_syn(&lab.sent_to_peer);
        let elapsed = next.wrapping_sub(clock);
        assert!((1..10_000).contains(&elapsed), "round {round}: {elapsed} ms");
        clock = next;
    }
}
