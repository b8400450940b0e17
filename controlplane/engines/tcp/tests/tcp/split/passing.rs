//! What passes through the relay once a connection is open, and how it ends.

use super::*;

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

/// The next connection begins with what this one learnt, whoever ended it, and at once.
#[test]
fn a_path_is_remembered_whichever_side_ends_first() {
    for terminal_first in [true, false] {
        for uploads in [true, false] {
            let mut relay = SplitConfig::default();
            relay.terminal.connection.algorithm = Algorithm::Radio;
            let mut lab = Lab::new(relay, config());
            lab.run(Duration::from_millis(200));
            assert_eq!(lab.relay.path(terminal()), None);
            // Something to learn from: towards the terminal, or little more than acknowledgments.
            let data = pattern(if uploads { 2_000 } else { 300_000 });
            let mut sent = lab.peer().write(&data);
            let mut got = 0;
            for _ in 0..200 {
                lab.run(Duration::from_millis(10));
                let now = lab.now;
                got += read(&mut lab.terminal, now).len();
                sent += lab.peer().write(&data[sent..]);
            }
            assert_eq!((sent, got), (data.len(), data.len()));
            let now = lab.now;
            if terminal_first {
                lab.terminal.close(now);
                lab.run(Duration::from_millis(200));
                let now = lab.now;
                lab.peer().close(now);
            } else {
                lab.peer().close(now);
                lab.run(Duration::from_millis(200));
                lab.terminal.close(lab.now);
            }
            lab.run(Duration::from_millis(200));
            // Somebody still waits for stragglers; the path is known all the same.
            assert!(!lab.relay.is_empty());
            let learnt = lab.relay.path(terminal()).expect("the path is remembered");
            let rtt = Duration::from_millis(20)..Duration::from_millis(25);
            assert!(rtt.contains(&learnt.min_rtt), "{learnt:?}");
            assert!(learnt.bandwidth > 0, "{learnt:?}");
            // It is noted once: nothing fades by waiting, parked or not.
            lab.relay.trim(lab.now, Duration::ZERO);
            lab.run(SECOND * 60);
            assert!(lab.relay.is_empty());
            assert_eq!(lab.relay.path(terminal()), Some(learnt));
        }
    }
}
