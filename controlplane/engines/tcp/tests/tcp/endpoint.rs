//! One connection, rule by rule.
//!
//! ```text
//!   A ──10 ms──▶ B
//!     ◀──10 ms──
//! ```

use std::time::Duration;

use crate::common::{Pair, config, mirrored, pattern, read};
use towpath_base::Instant;
use towpath_tcp::endpoint::{Disposition, Refusal};
use towpath_tcp::segment::{Flags, Header, Segment, Timestamps};
use towpath_tcp::{Closed, Command, Config, Ecn, Endpoint, KeepAlive, RestoreError, SeqNum, State};

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn flags_of(bytes: &[u8]) -> Flags {
    Segment::parse(bytes).unwrap().header.flags
}

/// A segment of B's, as A expects it.
fn from_b(pair: &mut Pair, flags: Flags) -> Header {
    try_from_b(pair, flags).expect("a segment")
}

fn try_from_b(pair: &mut Pair, flags: Flags) -> Option<Header> {
    // What A would acknowledge next is where B's numbers stand.
    let mut probe = pair.a.clone();
    let mut buffer = [0; 2048];
    probe.write(b"x");
    let outgoing = probe.poll_transmit(pair.now, &mut buffer)?;
    let header = Segment::parse(&buffer[..outgoing.len]).unwrap().header;
    Some(Header {
        source_port: 2000,
        destination_port: 1000,
        seq: header.ack,
        ack: header.seq,
        flags,
        window: 1000,
        options: towpath_tcp::segment::Options {
            timestamps: header.options.timestamps.map(|t| Timestamps {
                value: t.echo + 1,
                echo: t.value,
            }),
            ..Default::default()
        },
        ..Header::default()
    })
}

#[test]
fn a_handshake_negotiates_every_option_and_both_ends_learn_of_it() {
    let mut pair = Pair::connected(config());
    assert_eq!(
        (pair.a.state(), pair.b.state()),
        (State::Established, State::Established)
    );
    assert_eq!(pair.a.poll_command(), Some(Command::Connected));
    assert_eq!(pair.b.poll_command(), Some(Command::Connected));
    assert_eq!(pair.a.smoothed_rtt(), Some(ms(20)));
}

#[test]
fn two_ends_that_open_at_once_make_one_connection() {
    let config = config();
    let mut pair = Pair::new(config.clone());
    pair.b = Endpoint::connect(pair.now, mirrored(&config), SeqNum(77));
    pair.run(ms(200));
    assert_eq!(
        (pair.a.state(), pair.b.state()),
        (State::Established, State::Established)
    );
    pair.a.write(b"left");
    pair.b.write(b"right");
    pair.run(ms(200));
    assert_eq!(read(&mut pair.b, pair.now), b"left");
    assert_eq!(read(&mut pair.a, pair.now), b"right");
}

#[test]
fn two_ends_that_close_at_once_both_wait() {
    let mut pair = Pair::connected(config());
    pair.a.close(pair.now);
    pair.b.close(pair.now);
    pair.run(ms(100));
    assert_eq!(
        (pair.a.state(), pair.b.state()),
        (State::TimeWait, State::TimeWait)
    );
    pair.run(Duration::from_secs(61));
    assert_eq!(
        (pair.a.closed(), pair.b.closed()),
        (Some(Closed::Finished), Some(Closed::Finished))
    );
    assert_eq!((pair.a.state(), pair.b.state()), (State::Closed, State::Closed));
}

#[test]
fn half_a_connection_stays_open_after_the_other_half_closed() {
    let mut pair = Pair::connected(config());
    pair.a.write(b"request");
    pair.a.close(pair.now);
    pair.run(ms(100));
    assert_eq!(
        (pair.a.state(), pair.b.state()),
        (State::FinWait2, State::CloseWait)
    );
    assert_eq!(read(&mut pair.b, pair.now), b"request");
    assert!(pair.b.is_finished());
    let answer = pattern(200_000);
    let mut got = Vec::new();
    assert_eq!(pair.b.write(&answer), answer.len());
    pair.b.close(pair.now);
    for _ in 0..100 {
        pair.run(ms(20));
        got.extend(read(&mut pair.a, pair.now));
    }
    assert!(got == answer);
    assert_eq!((pair.a.state(), pair.b.state()), (State::TimeWait, State::Closed));
}

#[test]
fn a_refused_connection_says_so() {
    let mut pair = Pair::new(config());
    let syn = pair.next_of_a().unwrap();
    let reset = Segment {
        header: syn,
        payload: &[],
    }
    .reset()
    .unwrap();
    assert_eq!(pair.inject_to_a(reset, &[]), Disposition::Accepted);
    assert_eq!(pair.a.closed(), Some(Closed::Refused));
}

#[test]
fn a_peer_that_still_knows_an_earlier_connection_is_reset_and_the_next_syn_gets_through() {
    let mut pair = Pair::new(config());
    let syn = pair.next_of_a().unwrap();
    assert!(syn.flags.has(Flags::SYN));
    let stale = Header {
        source_port: 2000,
        destination_port: 1000,
        seq: SeqNum(77),
        ack: SeqNum(12_345),
        flags: Flags::ACK,
        ..Header::default()
    };
    assert_eq!(
        pair.inject_to_a(stale, &[]),
        Disposition::Refused(Refusal::BadAck)
    );
    let reset = pair.next_of_a().unwrap();
    assert_eq!((reset.flags, reset.seq), (Flags::RST, SeqNum(12_345)));
    assert!(pair.next_of_a().is_none());
    pair.run(Duration::from_secs(3));
    assert_eq!(pair.a.state(), State::Established);
}

#[test]
fn a_peer_that_never_answers_times_out() {
    let mut pair = Pair::new(Config {
        syn_retries: 3,
        ..config()
    });
    let mut syns = 0;
    pair.run_with(Duration::from_secs(60), &mut |_| {
        syns += 1;
        false
    });
    assert_eq!(syns, 4);
    assert_eq!(pair.a.closed(), Some(Closed::TimedOut));
}

// -- RFC 5961 ------------------------------------------------------------------------------------------

#[test]
fn a_reset_counts_only_at_the_exact_number_and_is_challenged_inside_the_window() {
    let mut pair = Pair::connected(config());
    let reset = from_b(&mut pair, Flags::RST.with(Flags::ACK));
    let inside = Header {
        seq: reset.seq + 100,
        ..reset
    };
    assert_eq!(
        pair.inject_to_a(inside, &[]),
        Disposition::Refused(Refusal::Challenged)
    );
    assert_eq!(pair.next_of_a().map(|header| header.flags), Some(Flags::ACK));
    let outside = Header {
        seq: reset.seq - 1,
        ..reset
    };
    assert_eq!(
        pair.inject_to_a(outside, &[]),
        Disposition::Refused(Refusal::OutsideWindow)
    );
    assert_eq!(pair.next_of_a(), None);
    assert_eq!(pair.inject_to_a(reset, &[]), Disposition::Accepted);
    assert_eq!(pair.a.closed(), Some(Closed::Reset));
}

#[test]
fn a_syn_inside_a_connection_is_challenged() {
    let mut pair = Pair::connected(config());
    let syn = from_b(&mut pair, Flags::SYN);
    assert_eq!(
        pair.inject_to_a(syn, &[]),
        Disposition::Refused(Refusal::Challenged)
    );
    assert_eq!(pair.next_of_a().map(|header| header.flags), Some(Flags::ACK));
    assert_eq!(pair.a.state(), State::Established);
}

#[test]
fn challenges_are_rationed() {
    let mut pair = Pair::connected(config());
    let reset = from_b(&mut pair, Flags::RST);
    let inside = Header {
        seq: reset.seq + 100,
        ..reset
    };
    let mut answers = 0;
    for _ in 0..100 {
        pair.inject_to_a(inside, &[]);
        answers += u32::from(pair.next_of_a().is_some());
    }
    assert_eq!(answers, 10);
}

#[test]
fn an_acknowledgment_of_what_was_never_sent_is_refused() {
    let mut pair = Pair::connected(config());
    let header = from_b(&mut pair, Flags::ACK);
    let ahead = Header {
        ack: header.ack + 1,
        ..header
    };
    assert_eq!(
        pair.inject_to_a(ahead, b"data"),
        Disposition::Refused(Refusal::BadAck)
    );
    assert_eq!(pair.a.readable_len(), 0);
}

#[test]
fn a_segment_with_an_old_timestamp_is_refused() {
    let mut pair = Pair::connected(config());
    let mut header = from_b(&mut pair, Flags::ACK);
    let timestamps = header.options.timestamps.unwrap();
    header.options.timestamps = Some(Timestamps {
        value: timestamps.value.wrapping_sub(1000),
        ..timestamps
    });
    assert_eq!(
        pair.inject_to_a(header, b"old"),
        Disposition::Refused(Refusal::OldTimestamp)
    );
    assert_eq!(pair.a.readable_len(), 0);
}

// -- windows -------------------------------------------------------------------------------------------

#[test]
fn a_closed_window_is_probed_until_it_opens_and_nothing_is_lost() {
    let config = Config {
        receive_initial: 4_000,
        receive_limit: 4_000,
        retries: 5,
        ..config()
    };
    let mut pair = Pair::connected(config);
    let data = pattern(20_000);
    assert_eq!(pair.a.write(&data), data.len());
    // Longer than the retries would last if an answered probe counted as a failure.
    let mut probes = 0;
    pair.run_with(Duration::from_secs(600), &mut |flying| {
        probes += u32::from(flying.to_b);
        true
    });
    assert_eq!(pair.a.state(), State::Established);
    assert_eq!(pair.b.readable_len(), 4_000);
    assert!((9..60).contains(&probes), "{probes}");
    let mut got = Vec::new();
    for _ in 0..50 {
        got.extend(read(&mut pair.b, pair.now));
        pair.run(ms(100));
    }
    assert!(got == data, "{} bytes of {}", got.len(), data.len());
}

#[test]
fn a_lost_window_update_does_not_stall_the_connection() {
    let mut pair = Pair::connected(Config {
        receive_initial: 4_000,
        receive_limit: 4_000,
        ..config()
    });
    pair.a.write(&pattern(8_000));
    pair.run(Duration::from_secs(2));
    read(&mut pair.b, pair.now);
    let mut first = true;
    pair.run_with(Duration::from_secs(30), &mut |flying| {
        flying.to_b || !core::mem::take(&mut first)
    });
    assert_eq!(pair.b.readable_len(), 4_000);
}

#[test]
fn urgent_data_is_announced_at_the_same_place() {
    let mut pair = Pair::connected(config());
    pair.a.write(b"interrupt!");
    pair.a.set_urgent(5);
    pair.run(ms(50));
    assert_eq!(pair.b.urgent_received(), Some(5));
    assert_eq!(read(&mut pair.b, pair.now), b"interrupt!");
}

#[test]
fn keep_alive_notices_a_peer_that_is_gone() {
    let keep_alive = KeepAlive {
        idle: Duration::from_secs(10),
        interval: Duration::from_secs(1),
        probes: 3,
    };
    let mut pair = Pair::connected(Config {
        keep_alive: Some(keep_alive),
        ..config()
    });
    pair.run(Duration::from_secs(60));
    assert_eq!(pair.a.state(), State::Established);
    pair.run_with(Duration::from_secs(30), &mut |_| false);
    assert_eq!(pair.a.closed(), Some(Closed::TimedOut));
}

// -- loss ----------------------------------------------------------------------------------------------

/// Drops the data segments of A whose running numbers are listed; returns what B read.
fn transfer_losing(pair: &mut Pair, data: &[u8], lost: &[usize], time: Duration) -> Vec<u8> {
    pair.a.write(data);
    let (mut count, mut got) = (0, Vec::new());
    let end = pair.now + time;
    while pair.now < end {
        pair.run_with(ms(10), &mut |flying| {
            let is_data = flying.to_b && flying.bytes.len() > 60;
            count += usize::from(is_data);
            !(is_data && lost.contains(&(count - 1)))
        });
        got.extend(read(&mut pair.b, pair.now));
    }
    got
}

#[test]
fn one_lost_segment_is_repaired_without_a_timeout() {
    let mut pair = Pair::connected(config());
    let data = pattern(14_480);
    assert!(transfer_losing(&mut pair, &data, &[3], ms(300)) == data);
    let stats = pair.a.stats();
    assert_eq!((stats.retransmits, stats.timeouts), (1, 0));
}

#[test]
fn a_lost_tail_is_repaired_by_a_probe() {
    let mut pair = Pair::connected(config());
    let data = pattern(14_480);
    let got = transfer_losing(&mut pair, &data, &[8, 9], ms(190));
    assert!(got == data);
    let stats = pair.a.stats();
    assert_eq!((stats.tail_probes, stats.retransmits, stats.timeouts), (1, 2, 0));
}

#[test]
fn a_lost_retransmission_is_repaired_without_a_timeout() {
    let mut pair = Pair::connected(config());
    let data = pattern(60_000);
    // Number 10 to 19 carry the second window and the first retransmission of number 3.
    let mut drops = 2;
    let (mut victim, mut got) = (None, Vec::new());
    pair.a.write(&data);
    for _ in 0..60 {
        pair.run_with(ms(10), &mut |flying| {
            let seq = Segment::parse(&flying.bytes).unwrap().header.seq;
            if flying.to_b && flying.bytes.len() > 60 && drops > 0 {
                let third = SeqNum(u32::MAX - 100) + 1 + 3 * 1448;
                if seq == *victim.get_or_insert(third) {
                    drops -= 1;
                    return false;
                }
            }
            true
        });
        got.extend(read(&mut pair.b, pair.now));
    }
    assert!(got == data, "{} bytes of {}", got.len(), data.len());
    assert_eq!((pair.a.stats().retransmits, pair.a.stats().timeouts), (2, 0));
}

#[test]
fn a_delay_that_looks_like_a_loss_is_recognised_and_undone() {
    let mut pair = Pair::connected(config());
    let mut got = Vec::new();
    for _ in 0..20 {
        pair.a.write(&pattern(10_000));
        pair.run(ms(60));
        got.extend(read(&mut pair.b, pair.now));
    }
    let window = pair.a.controller().window();
    // The wire stands still for a second: the timer expires although nothing is lost.
    pair.a.write(&pattern(10_000));
    let hold = pair.now + Duration::from_secs(1);
    pair.run_with(ms(900), &mut |flying| {
        flying.at = flying.at.max(hold);
        true
    });
    assert!(pair.a.stats().timeouts >= 1);
    pair.run(Duration::from_secs(2));
    assert!(pair.a.stats().undos >= 1);
    assert!(
        pair.a.controller().window() >= window,
        "{} < {window}",
        pair.a.controller().window()
    );
}

#[test]
fn without_sack_three_duplicates_repair_a_loss() {
    let mut pair = Pair::connected(Config {
        sack: false,
        ..config()
    });
    let data = pattern(14_480);
    assert!(transfer_losing(&mut pair, &data, &[2], ms(190)) == data);
    assert_eq!((pair.a.stats().retransmits, pair.a.stats().timeouts), (1, 0));
}

#[test]
fn a_path_that_swallows_long_segments_is_found_out() {
    let mut pair = Pair::connected(config());
    let data = pattern(30_000);
    pair.a.write(&data);
    let mut got = Vec::new();
    for _ in 0..100 {
        pair.run_with(ms(200), &mut |flying| flying.bytes.len() <= 1300);
        got.extend(read(&mut pair.b, pair.now));
    }
    assert!(got == data, "{} bytes of {}", got.len(), data.len());
}

#[test]
fn a_smaller_path_mtu_takes_effect_in_mid_flow() {
    let mut pair = Pair::connected(config());
    let data = pattern(100_000);
    pair.a.write(&data);
    pair.run(ms(15));
    pair.a.set_path_mss(1000);
    let mut got = Vec::new();
    for _ in 0..50 {
        pair.run_with(ms(20), &mut |flying| flying.bytes.len() <= 1020);
        got.extend(read(&mut pair.b, pair.now));
    }
    assert!(got == data, "{} bytes of {}", got.len(), data.len());
    assert_eq!(pair.a.stats().timeouts, 0);
}

// -- ECN -----------------------------------------------------------------------------------------------

#[test]
fn a_congestion_mark_comes_back_and_is_confirmed() {
    let mut pair = Pair::connected(Config {
        ecn: true,
        ..config()
    });
    pair.a.write(&pattern(60_000));
    let window = pair.a.controller().window();
    let (mut marked, mut echoes, mut confirmed) = (false, 0, false);
    for _ in 0..20 {
        pair.run_with(ms(10), &mut |flying| {
            let flags = flags_of(&flying.bytes);
            if flying.to_b && flying.ecn == Ecn::Ect0 && !marked {
                marked = true;
                flying.ecn = Ecn::Ce;
            }
            echoes += u32::from(!flying.to_b && flags.has(Flags::ECE));
            confirmed |= flying.to_b && flags.has(Flags::CWR);
            true
        });
        read(&mut pair.b, pair.now);
    }
    assert!(marked && echoes > 0 && confirmed);
    assert!(
        pair.a.controller().threshold() < window * 2,
        "{}",
        pair.a.controller().threshold()
    );
    assert_eq!(pair.a.stats().retransmits, 0);
}

// -- snapshot ------------------------------------------------------------------------------------------

#[test]
fn a_connection_moves_to_a_machine_with_another_clock_in_mid_flow() {
    let mut pair = Pair::connected(config());
    let data = pattern(300_000);
    pair.a.write(&data);
    let (mut got, mut count) = (Vec::new(), 0);
    for round in 0..200_u64 {
        pair.run_with(ms(5), &mut |_| {
            count += 1;
            count % 13 != 0
        });
        got.extend(read(&mut pair.b, pair.now));
        if round % 3 == 0 {
            // To a machine whose clock is days ahead, and back.
            let there = Instant::from_secs(500_000 + round);
            let moved = Endpoint::restore(there, &pair.a.snapshot(pair.now)).unwrap();
            pair.a = Endpoint::restore(pair.now, &moved.snapshot(there)).unwrap();
        }
    }
    assert!(got == data, "{} bytes of {}", got.len(), data.len());
}

#[test]
fn bytes_that_are_no_snapshot_are_refused_and_never_panic() {
    let mut pair = Pair::connected(config());
    pair.a.write(&pattern(50_000));
    pair.run_with(ms(35), &mut |flying| flying.bytes.len() % 3 != 0);
    let good = pair.a.snapshot(pair.now);
    assert_eq!(Endpoint::restore(pair.now, &good).as_ref(), Ok(&pair.a));
    assert_eq!(
        Endpoint::restore(pair.now, &good[..good.len() - 1]),
        Err(RestoreError::Truncated)
    );
    let mut longer = good.clone();
    longer.push(0);
    assert_eq!(Endpoint::restore(pair.now, &longer), Err(RestoreError::Trailing));
    let mut state = 1_u64;
    let mut taken = 0;
    for _ in 0..1_000 {
        let mut bad = good.clone();
        for _ in 0..2 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (state >> 33) as usize % bad.len();
            bad[at] = (state >> 20) as u8;
        }
        let Ok(mut endpoint) = Endpoint::restore(pair.now, &bad) else {
            continue;
        };
        taken += 1;
        // Whatever was believed, going on must not panic.
        let mut buffer = [0; 2048];
        let mut now = pair.now;
        for _ in 0..30 {
            for _ in 0..10 {
                let Some(_) = endpoint.poll_transmit(now, &mut buffer) else {
                    break;
                };
            }
            let mut copy = Pair {
                a: endpoint.clone(),
                b: pair.b.clone(),
                now,
                wire: Default::default(),
            };
            if let Some(header) = try_from_b(&mut copy, Flags::ACK) {
                endpoint.handle_input(
                    now,
                    &Segment {
                        header,
                        payload: b"hello",
                    },
                    Ecn::NotEct,
                );
            }
            let Some((at, _)) = endpoint.poll_timeout() else {
                break;
            };
            now = now.max(at);
            endpoint.handle_timeout(now);
        }
    }
    assert!(taken > 20, "{taken}");
}

#[test]
fn an_idle_connection_is_small() {
    let mut pair = Pair::connected(config());
    pair.a.trim();
    let size = size_of::<Endpoint>() + size_of::<Config>();
    println!("{size} bytes");
    assert!(size <= 2048, "{size}");
}
