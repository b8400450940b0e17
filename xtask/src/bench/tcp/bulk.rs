//! Bulk transfers over a lossy link: against the bound, against end-to-end TCP, through Snoop, and side by side.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use anyhow::{Result, anyhow};

use super::super::{Better, Record, quantile};
use super::Plan;
use super::stage::{Arm, EFFICIENCY, Radio, Stage, Transfer};
use crate::linkem::row;

/// A megabyte.
const MEGABYTE: u64 = 1 << 20;
/// Rates of the links, bits per second: the long path is a satellite's.
const FAST: u64 = 50_000_000;
const SATELLITE: u64 = 20_000_000;

/// A link and how long it is measured.
#[derive(Debug, Clone, Copy)]
struct Course {
    rtt: u64,
    percent: u32,
}

impl Course {
    const fn rate(self) -> u64 {
        if self.rtt >= 600 { SATELLITE } else { FAST }
    }

    fn radio(self, seed: u64) -> Radio {
        Radio {
            rate: self.rate(),
            rtt: Duration::from_millis(self.rtt),
            loss: f64::from(self.percent),
            queue: 1.0,
            seed,
        }
    }

    /// What could arrive at most, bits per second.
    fn bound(self) -> f64 {
        self.rate() as f64 * (1.0 - f64::from(self.percent) / 100.0) * EFFICIENCY
    }

    const fn goal(self) -> f64 {
        match self.rtt {
            40 => 0.95,
            100 => 0.93,
            _ => 0.90,
        }
    }
}

/// Runs one transfer of `arm` and returns its goodput after the start, bits per second, too.
fn measured(stage: &Stage, plan: &Plan, arm: Arm, course: Course, seed: u64) -> Result<(f64, Transfer)> {
    let (skip, time) = plan.times(course.rtt);
    let transfer = match plan.course {
        Some(_) => stage.watched(arm, || stage.transfer(arm, &course.radio(seed), u64::MAX, time))?,
        None => stage.transfer(arm, &course.radio(seed), u64::MAX, time)?,
    };
    let goodput = transfer.seen.rate_from(skip);
    println!(
        "bench: {} ms {} %, {}: {:.2} Mb/s ({:.2} with the start), late p99 {} µs",
        course.rtt,
        course.percent,
        arm.name(),
        goodput / 1e6,
        transfer.seen.rate_from(Duration::ZERO) / 1e6,
        transfer.link.directions[0].late_us.p99,
    );
    if let Some(repeats) = transfer.radio_repeats() {
        let dropped = &transfer.link.directions[0].dropped;
        println!(
            "bench: repeats ÷ losses {repeats:.2}, lost {}, dropped by the queue {}",
            dropped.noise, dropped.queue
        );
    }
    Ok((goodput, transfer))
}

/// What was measured of an arm on a course, per round.
type Figures = BTreeMap<(u64, u32), Vec<f64>>;

fn mbit(values: &[f64]) -> String {
    format!("{:.2} Mb/s", quantile(values, 0.5) / 1e6)
}

fn conditions(record: Record, course: Course) -> Record {
    record
        .condition("rate_mbit", course.rate() / 1_000_000)
        .condition("rtt_ms", course.rtt)
        .condition("loss_percent", course.percent)
        .condition("queue", "1 bandwidth-delay product")
        .condition("efficiency", format!("{EFFICIENCY:.4}"))
        .condition("offloads", "TSO, GSO, GRO off")
        .condition("cc", "wire: kernel CUBIC; radio: see arms")
        .condition("peer", "charon, user-space ESP in UDP, AES-256-GCM, tunnel mode")
}

/// `goodput_vs_bound`, `vs_cubic`, `vs_bbr.bulk` and `retransmit_vs_loss`.
pub(super) fn goodput(stage: &Stage, plan: &Plan) -> Result<Vec<Record>> {
    let (mut ours, mut started): (Figures, Figures) = Default::default();
    let (mut cubic, mut bbr): (Figures, Figures) = Default::default();
    let mut repeats = Vec::new();
    for round in 0..plan.rounds {
        for rtt in [40, 100, 600] {
            for percent in [1, 2, 5] {
                let course = Course { rtt, percent };
                if plan.course.is_some_and(|only| only != (rtt, percent)) {
                    continue;
                }
                let seed = 1000 * round as u64 + 10 * rtt + u64::from(percent);
                let (rate, transfer) = measured(stage, plan, Arm::Split, course, seed)?;
                ours.entry((rtt, percent)).or_default().push(rate);
                let all = transfer.seen.rate_from(Duration::ZERO);
                started.entry((rtt, percent)).or_default().push(all);
                if plan.course.is_some() {
                    continue;
                }
                if rtt == 100 && percent == 1 {
                    repeats.extend(transfer.radio_repeats());
                    bbr.entry((rtt, percent))
                        .or_default()
                        .push(measured(stage, plan, Arm::Bbr, course, seed)?.0);
                }
                if rtt >= 100 && percent == 1 {
                    cubic
                        .entry((rtt, percent))
                        .or_default()
                        .push(measured(stage, plan, Arm::Cubic, course, seed)?.0);
                }
            }
        }
    }
    let mut records = against_bound(&ours, &started);
    for (rtt, goal) in [(100, 20.0), (600, 30.0)] {
        records.extend(
            against(&ours, &cubic, Course { rtt, percent: 1 }, Arm::Cubic).map(|mut r| {
                r.id = format!("tcp.vs_cubic.{rtt}ms");
                r.goal(goal)
            }),
        );
    }
    let course = Course { rtt: 100, percent: 1 };
    records.extend(against(&ours, &bbr, course, Arm::Bbr).map(|mut r| {
        r.id = "tcp.vs_bbr.bulk".into();
        r.goal(1.0)
    }));
    if !repeats.is_empty() {
        let record = Record::new("tcp.retransmit_vs_loss", "ratio", Better::Lower, &repeats);
        records.push(conditions(
            record.goal(1.1).arm(
                "ours",
                "segments the relay sent again towards the terminal ÷ packets the link lost",
            ),
            course,
        ));
    }
    Ok(records)
}

fn against_bound(ours: &Figures, started: &Figures) -> Vec<Record> {
    let record = |(&(rtt, percent), rates): (&(u64, u32), &Vec<f64>)| {
        let course = Course { rtt, percent };
        let ratios: Vec<f64> = rates.iter().map(|rate| rate / course.bound()).collect();
        let whole = started.get(&(rtt, percent)).map_or(&[][..], |rates| rates);
        let id = format!("tcp.goodput_vs_bound.{rtt}ms.{percent}");
        let record = Record::new(id, "ratio", Better::Higher, &ratios)
            .goal(course.goal())
            .arm("ours", format!("{}: {}", Arm::Split.name(), mbit(rates)))
            .arm("ours with the start", mbit(whole))
            .arm("bound", format!("{:.2} Mb/s", course.bound() / 1e6));
        conditions(record, course)
    };
    ours.iter().map(record).collect()
}

/// Ours ÷ another arm's, round by round; `None` where the other was not measured.
fn against(ours: &Figures, other: &Figures, course: Course, arm: Arm) -> Option<Record> {
    let key = (course.rtt, course.percent);
    let (ours, other) = (ours.get(&key)?, other.get(&key)?);
    let ratios: Vec<f64> = ours.iter().zip(other).map(|(ours, other)| ours / other).collect();
    let record = Record::new("", "ratio", Better::Higher, &ratios)
        .arm("ours", mbit(ours))
        .arm(arm.name(), mbit(other));
    Some(conditions(record, course))
}

/// Receive buffers a terminal's connections begin with, bytes: the kernel's own, half of which is announced and holds
/// any sender to 64 KiB in the first round trip, and one prepared for its path, which holds 625 kB.
const KERNELS: u32 = 128 << 10;
const PREPARED: u32 = 4 << 20;

/// `vs_bbr.1mb`: from the connect to the last of a megabyte. The goal is for a terminal as its kernel makes it; what one
/// prepared for its path gains stands beside it, without a goal.
pub(super) fn megabyte(stage: &Stage, plan: &Plan) -> Result<Vec<Record>> {
    let course = Course { rtt: 100, percent: 1 };
    // The first connection over a path teaches the gateway its rate; what follows is any later one.
    stage.transfer(Arm::Split, &course.radio(49), u64::MAX, Duration::from_secs(6))?;
    let plain = one_megabyte(stage, plan, course, KERNELS, "tcp.vs_bbr.1mb")?;
    let prepared = one_megabyte(stage, plan, course, PREPARED, "tcp.vs_bbr.1mb_wide_window")?;
    Ok(vec![plain.goal(1.5), prepared])
}

/// A megabyte by the relay and by BBR end to end, to a terminal whose connections begin with buffers of `window` bytes.
fn one_megabyte(stage: &Stage, plan: &Plan, course: Course, window: u32, id: &str) -> Result<Record> {
    row::first_window(stage.terminal(), window)?;
    let (mut ratios, mut arms): (Vec<f64>, [Vec<f64>; 2]) = Default::default();
    for round in 0..plan.short_rounds {
        let mut times = [0.0; 2];
        for (index, arm) in [Arm::Split, Arm::Bbr].into_iter().enumerate() {
            let radio = course.radio(50 + round as u64);
            let limit = Duration::from_secs(20);
            let seen = stage.transfer(arm, &radio, MEGABYTE, limit)?.seen;
            let took = seen.when(MEGABYTE).unwrap_or(limit).as_secs_f64();
            times[index] = took;
            arms[index].push(took);
        }
        ratios.push(times[1] / times[0]);
    }
    row::first_window(stage.terminal(), KERNELS)?;
    let seconds = |values: &[f64]| format!("{:.3} s", quantile(values, 0.5));
    let record = Record::new(id, "ratio", Better::Higher, &ratios)
        .condition("terminal_rmem", window)
        .arm("ours", seconds(&arms[0]))
        .arm(Arm::Bbr.name(), seconds(&arms[1]));
    Ok(conditions(record, course))
}

/// `snoop_vs_bound` and `snoop_sender_retransmits`; none where the gateway does not snoop yet.
pub(super) fn snoop(stage: &Stage, plan: &Plan) -> Result<Vec<Record>> {
    let course = Course { rtt: 40, percent: 1 };
    let (mut ratios, mut repeats, mut plain) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..plan.rounds {
        let seed = 77 + round as u64;
        let (rate, transfer) = measured(stage, plan, Arm::Snoop, course, seed)?;
        let lost = transfer.link.directions[0].dropped.noise;
        ratios.push(rate / course.bound());
        repeats.push(100.0 * transfer.sender_repeats as f64 / lost.max(1) as f64);
        plain.push(measured(stage, plan, Arm::Cubic, course, seed)?.0);
    }
    if quantile(&repeats, 0.5) > 50.0 {
        println!(
            "bench: the sender repeats nearly every loss itself: the gateway does not snoop in this build"
        );
        return Ok(vec![]);
    }
    let bound = Record::new("tcp.snoop_vs_bound", "ratio", Better::Higher, &ratios)
        .goal(0.9)
        .arm(
            Arm::Snoop.name(),
            format!("bound {:.2} Mb/s", course.bound() / 1e6),
        )
        .arm(Arm::Cubic.name(), mbit(&plain));
    let sender = Record::new("tcp.snoop_sender_retransmits", "percent", Better::Lower, &repeats)
        .goal(1.0)
        .arm(
            "sender",
            "segments the peer's kernel repeated ÷ packets the link lost",
        );
    Ok(vec![conditions(bound, course), conditions(sender, course)])
}

/// `jain` and `queue_bdp`: `radio` beside CUBIC, and alone, on a clean link.
pub(super) fn sharing(stage: &Stage, plan: &Plan) -> Result<Vec<Record>> {
    let radio = |seed| Radio {
        rate: SATELLITE,
        rtt: Duration::from_millis(40),
        loss: 0.0,
        queue: 1.0,
        seed,
    };
    let (skip, time) = plan.sharing;
    let (mut jain, mut queue, mut both) = (Vec::new(), Vec::new(), [Vec::new(), Vec::new()]);
    for round in 0..plan.rounds {
        let link = stage.link(&radio(round as u64).links())?;
        let rates = thread::scope(|scope| {
            let fetch = |arm: Arm| {
                scope.spawn(move || Ok::<_, anyhow::Error>(stage.fetch(arm, u64::MAX, time)?.rate_from(skip)))
            };
            [fetch(Arm::Split), fetch(Arm::SplitCubic)].map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(anyhow!("a transfer panicked")))
            })
        });
        drop(link.stop()?);
        let [x, y] = rates;
        let (x, y) = (x?, y?);
        jain.push((x + y) * (x + y) / (2.0 * (x * x + y * y)));
        both[0].push(x);
        both[1].push(y);
        println!("bench: shared: radio {:.2}, CUBIC {:.2} Mb/s", x / 1e6, y / 1e6);
        let alone = stage.transfer(Arm::Split, &radio(round as u64), u64::MAX, time)?;
        queue.push(alone.link.directions[0].queue_bytes[0] / radio(0).bdp());
    }
    let clean = |record: Record| {
        record
            .condition("rate_mbit", SATELLITE / 1_000_000)
            .condition("rtt_ms", 40)
            .condition("loss_percent", 0)
            .condition("queue", "1 bandwidth-delay product")
            .condition("offloads", "TSO, GSO, GRO off")
    };
    let jain = Record::new("tcp.jain", "index", Better::Higher, &jain)
        .goal(0.9)
        .arm("radio (ours)", mbit(&both[0]))
        .arm("CUBIC (ours, the relay's)", mbit(&both[1]));
    let queue = Record::new("tcp.queue_bdp", "BDP", Better::Lower, &queue)
        .goal(1.25)
        .arm("radio alone", "mean of what packets found in the queue");
    Ok(vec![clean(jain), clean(queue)])
}
