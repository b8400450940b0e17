//! What the emulator can carry here.
//!
//! UDP at rising rates through links that do nothing but 1 ms of delay. The ceiling is the highest rate of which at least
//! 99.9 % arrived, half of them less than 1 ms late.

use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use serde::Serialize;

use super::row::{Host, Row};
use super::{Links, enter};

/// Packets per second that are tried.
const RATES: [u32; 8] = [5_000, 10_000, 20_000, 40_000, 60_000, 80_000, 120_000, 160_000];
/// Length of each attempt.
const TIME: Duration = Duration::from_secs(1);

#[derive(Debug, Serialize)]
struct Attempt {
    packet_bytes: usize,
    wanted_pps: u32,
    offered_pps: f64,
    delivered_pps: f64,
    delivered_mbit: f64,
    missed: u64,
    refused: u64,
    late_p50_us: u64,
    late_p99_us: u64,
    cpu_percent: f64,
    cpu_us_per_packet: f64,
}

impl Attempt {
    fn holds(&self) -> bool {
        self.late_p50_us < 1000
            && self.delivered_pps >= 0.999 * self.offered_pps
            && self.offered_pps >= 0.98 * f64::from(self.wanted_pps)
    }
}

/// Measures, prints, writes.
pub(super) fn run(json: Option<&Path>) -> Result<()> {
    let row = Row::new("lec")?;
    let mut attempts = Vec::new();
    for packet_bytes in [64, 1400] {
        let mut fallen = 0;
        for rate in RATES {
            let attempt = attempt(&row, packet_bytes, rate)?;
            fallen += u32::from(!attempt.holds());
            attempts.push(attempt);
            if fallen == 2 {
                break;
            }
        }
    }
    print(&attempts);
    match json {
        Some(path) => super::write(path, &attempts),
        None => Ok(()),
    }
}

fn attempt(row: &Row, packet_bytes: usize, rate: u32) -> Result<Attempt> {
    let running = row.link(&Links {
        both: "delay=1ms".into(),
        seed: 1,
        ..Links::default()
    })?;
    let source = row.host(Host::Left);
    let sender = std::thread::spawn(move || -> Result<f64> {
        enter(&source)?;
        send(packet_bytes, rate)
    });
    let seconds = sender
        .join()
        .map_err(|_| anyhow::anyhow!("the source panicked"))??;
    std::thread::sleep(Duration::from_millis(50));
    let report = running.stop()?;
    let [way, _] = &report.directions;
    let (offered, delivered) = (
        way.offered + way.dropped.missed,
        way.delivered.saturating_sub(way.dropped.refused),
    );
    Ok(Attempt {
        packet_bytes,
        wanted_pps: rate,
        offered_pps: offered as f64 / seconds,
        delivered_pps: delivered as f64 / seconds,
        delivered_mbit: delivered as f64 * packet_bytes as f64 * 8e-6 / seconds,
        missed: way.dropped.missed,
        refused: way.dropped.refused,
        late_p50_us: way.late_us.p50,
        late_p99_us: way.late_us.p99,
        cpu_percent: 100.0 * report.cpu_seconds / report.seconds,
        cpu_us_per_packet: report.cpu_seconds * 1e6 / delivered.max(1) as f64,
    })
}

/// Sends IP packets of `bytes` for [`TIME`], `rate` per second, in bursts of a millisecond; returns how long it took.
fn send(bytes: usize, rate: u32) -> Result<f64> {
    let socket = UdpSocket::bind(("10.79.0.1", 0)).context("cannot open the source's socket")?;
    socket.connect(("10.79.0.2", 9))?;
    let payload = vec![0; bytes - 28];
    let start = Instant::now();
    let mut sent = 0_u64;
    while start.elapsed() < TIME {
        let due = (start.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        while sent < due {
            // Nobody listens at the far end: its answers are errors here.
            let _ = socket.send(&payload);
            sent += 1;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    Ok(start.elapsed().as_secs_f64())
}

fn print(attempts: &[Attempt]) {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_BORDERS_ONLY).set_header([
        "packet",
        "wanted/s",
        "offered/s",
        "delivered/s",
        "Mb/s",
        "late p50 p99 µs",
        "CPU",
        "µs/packet",
        "holds",
    ]);
    for a in attempts {
        table.add_row([
            format!("{} B", a.packet_bytes),
            a.wanted_pps.to_string(),
            format!("{:.0}", a.offered_pps),
            format!("{:.0}", a.delivered_pps),
            format!("{:.0}", a.delivered_mbit),
            format!("{} {}", a.late_p50_us, a.late_p99_us),
            format!("{:.0} %", a.cpu_percent),
            format!("{:.1}", a.cpu_us_per_packet),
            if a.holds() { "yes" } else { "no" }.to_owned(),
        ]);
    }
    println!("{table}");
    for bytes in [64, 1400] {
        let best = attempts.iter().filter(|a| a.packet_bytes == bytes && a.holds());
        if let Some(best) = best.max_by_key(|a| a.wanted_pps) {
            println!(
                "ceiling at {bytes} B: {:.0} packets a second, {:.0} Mb/s, {:.0} % of a processor",
                best.delivered_pps, best.delivered_mbit, best.cpu_percent
            );
        }
    }
}
