//! The link emulator under real kernels: what it was told is what happens.
//!
//! ```text
//!   left  10.79.0.1 ───── a  em  b ───── 10.79.0.2  right
//!         fd79::1                        fd79::2
//! ```

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use xtask::linkem::Links;
use xtask::linkem::row::{Host, Row};
use xtask::load::{self, Server};
use xtask::sh::Cmd;

fn links(both: &str, ab: &str, ba: &str, seed: u64) -> Links {
    Links {
        both: both.into(),
        ab: ab.into(),
        ba: ba.into(),
        seed,
    }
}

/// Sends numbered datagrams from left to right, two a millisecond; returns the numbers in order of arrival.
fn numbers(row: &Row, links: &Links, count: u32) -> (Vec<u32>, towpath_linkem::report::Report) {
    let running = row.link(links).expect("the emulator starts");
    let right = row.host(Host::Right);
    let receiver = load::inside(&right, || Ok(UdpSocket::bind(("10.79.0.2", 4000))?)).expect("a socket");
    receiver
        .set_read_timeout(Some(Duration::from_millis(700)))
        .expect("a timeout");
    let reader = std::thread::spawn(move || {
        let mut seen = Vec::new();
        let mut buffer = [0; 64];
        // Outages are silent for longer than the end is.
        let mut silent = 0;
        while silent < 3 {
            match receiver.recv(&mut buffer) {
                Ok(_) => seen.push(u32::from_be_bytes([buffer[0], buffer[1], buffer[2], buffer[3]])),
                Err(_) => silent += 1,
            }
        }
        seen
    });
    load::inside(&row.host(Host::Left), move || {
        let socket = UdpSocket::bind(("10.79.0.1", 0))?;
        socket.connect(("10.79.0.2", 4000))?;
        let start = Instant::now();
        for number in 0..count {
            socket.send(&number.to_be_bytes())?;
            let due = Duration::from_micros(500) * number;
            std::thread::sleep(due.saturating_sub(start.elapsed()));
        }
        Ok(())
    })
    .expect("datagrams leave");
    let seen = reader.join().expect("the reader ends");
    (seen, running.stop().expect("the emulator reports"))
}

#[test]
#[ignore = "needs root: network namespaces"]
fn random_loss_is_what_was_asked_for_and_repeats_with_its_seed() {
    let row = Row::new("lel").expect("namespaces");
    let (seen, report) = numbers(&row, &links("delay=5ms", "loss=5%", "", 7), 4000);
    let [down, _] = &report.directions;
    // Four standard deviations of a binomial around 200 of 4,000.
    assert!((145..=255).contains(&down.dropped.noise), "{:?}", down.dropped);
    assert_eq!(down.dropped.unwanted(), 0, "{:?}", down.dropped);
    // Neighbour discovery may have cost the first datagram its place, never an order or a copy.
    assert!(seen.is_sorted() && seen.len() as u64 <= down.delivered);
    assert!(
        seen.len() as u64 + 8 >= down.delivered,
        "{} {}",
        seen.len(),
        down.delivered
    );

    let again = numbers(&row, &links("delay=5ms", "loss=5%", "", 7), 4000).1;
    let differs = again.directions[0].dropped.noise.abs_diff(down.dropped.noise);
    // A neighbour solicitation more or less shifts the stream by a packet.
    assert!(differs <= 12, "{differs} of {}", down.dropped.noise);
}

#[test]
#[ignore = "needs root: network namespaces"]
fn bursts_copies_reordering_and_outages_happen_and_are_counted() {
    let row = Row::new("lem").expect("namespaces");
    let what = "delay=2ms,bursts=2%/20%/0/80%,duplicate=5%,reorder=10%/10ms,outage=1s-1500ms";
    let (seen, report) = numbers(&row, &links("", what, "", 3), 4000);
    let [down, back] = &report.directions;
    let dropped = down.dropped;
    // 3,000 packets outside the outage, of which 0.8 × 2/22 = 7.3 % are lost, in bursts of 4 in the mean.
    assert!((120..=330).contains(&dropped.burst), "{dropped:?}");
    assert!((900..=1100).contains(&dropped.outage), "{dropped:?}");
    assert!((90..=200).contains(&down.duplicated), "{}", down.duplicated);
    assert!((190..=380).contains(&down.reordered), "{}", down.reordered);
    assert_eq!((dropped.noise, dropped.queue, dropped.unwanted()), (0, 0, 0));
    assert!(!seen.is_sorted(), "held back, but in order");
    let gap = seen.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).max();
    assert!(gap.is_some_and(|gap| gap > 900), "{gap:?}");
    assert_eq!(back.dropped.burst + back.dropped.outage, 0);
}

#[test]
#[ignore = "needs root: network namespaces"]
fn the_round_trip_is_right_to_a_millisecond_in_both_families() {
    let row = Row::new("len").expect("namespaces");
    let running = row
        .link(&links("", "delay=30ms", "delay=15ms", 1))
        .expect("the emulator starts");
    let mut punctual = true;
    for target in ["10.79.0.2", "fd79::2"] {
        let left = row.host(Host::Left);
        let ping = Cmd::new("ip").args(["netns", "exec", &left, "ping", "-c", "20", "-i", "0.05", target]);
        let text = ping.read().expect("every echo is answered");
        let mut times: Vec<f64> = text
            .lines()
            .filter_map(|line| line.split_once("time=")?.1.split(' ').next()?.parse().ok())
            .collect();
        times.sort_by(f64::total_cmp);
        // Never early. Late is what a loaded machine makes it, of whole runs of packets, but not of every one.
        assert!((45.0..46.0).contains(&times[0]), "{target}: {times:?}");
        punctual &= times[times.len() / 2] < 46.0;
    }
    let report = running.stop().expect("the emulator reports");
    for way in &report.directions {
        // Where most echoes were within the millisecond, so was each way, and the emulator has to say so.
        assert!(!punctual || way.late_us.p50 < 1000, "{:?}", way.late_us);
    }
}

/// Goodput of one connection from right to left, Mb/s, from a second after its start.
fn goodput(row: &Row, cc: &str, links: &Links, time: u64) -> f64 {
    let running = row.link(links).expect("the emulator starts");
    let server = Server::start(&row.host(Host::Right), 7100, cc).expect("the server listens");
    let (address, limit) = (
        "10.79.0.2".parse().expect("an address"),
        Duration::from_secs(time),
    );
    let seen = load::download(&row.host(Host::Left), (address, 7100), u64::MAX, limit).expect("a download");
    drop(server);
    let report = running.stop().expect("the emulator reports");
    let [_, down] = &report.directions;
    assert_eq!(down.dropped.unwanted(), 0, "{:?}", down.dropped);
    seen.rate_from(Duration::from_secs(1)) / 1e6
}

#[test]
#[ignore = "needs root: network namespaces"]
fn kernel_tcp_does_over_it_what_it_does_over_such_links() {
    let row = Row::new("leo").expect("namespaces");
    // 20 Mb/s, 40 ms, a queue of one bandwidth-delay product: 19.3 Mb/s are the payload's.
    let clean = "rate=20M,delay=20ms,queue=100k";
    let cubic = goodput(&row, "cubic", &links("", "delay=20ms", clean, 1), 6);
    assert!((17.4..=19.4).contains(&cubic), "CUBIC, clean: {cubic}");
    let bbr = goodput(
        &row,
        "bbr",
        &links("", "delay=20ms", &format!("{clean},loss=1%"), 1),
        6,
    );
    assert!((14.0..=19.3).contains(&bbr), "BBR, 1 % loss: {bbr}");
    // Mathis et al.: MSS / RTT × sqrt(3/2) / sqrt(p) is 3.5 Mb/s; CUBIC is at most a few times better.
    let cubic = goodput(
        &row,
        "cubic",
        &links("", "delay=20ms", &format!("{clean},loss=1%"), 1),
        8,
    );
    assert!((1.5..=9.0).contains(&cubic), "CUBIC, 1 % loss: {cubic}");
}
