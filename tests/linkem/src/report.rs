//! What an emulator really did, for machines.

use serde::Serialize;

use crate::histogram::{Histogram, Summary};
use crate::model::LinkReport;

/// Of the whole run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The seed of both directions' random streams.
    pub seed: u64,
    /// Length of the run, seconds.
    pub seconds: f64,
    /// Processor time of the emulator, seconds. Handing a frame over a virtual link runs the receiver's stack, too.
    pub cpu_seconds: f64,
    /// From interface `a` to `b`, and back.
    pub directions: [Direction; 2],
}

/// Of one direction.
#[derive(Debug, Clone, Serialize)]
pub struct Direction {
    /// `a>b`, with the interfaces' names.
    pub name: String,
    /// What the link was told to be.
    pub link: String,
    /// Packets that came in.
    pub offered: u64,
    /// Their IP bytes.
    pub offered_bytes: u64,
    /// Packets that went out, copies not counted, as far as they got by the end.
    pub delivered: u64,
    /// Their IP bytes.
    pub delivered_bytes: u64,
    /// Packets that did not, by cause.
    pub dropped: Dropped,
    /// IP bytes lost by noise, bursts and outages.
    pub lost_bytes: u64,
    /// Packets delivered twice.
    pub duplicated: u64,
    /// Packets held back.
    pub reordered: u64,
    /// Mean of the bytes a packet found in the queue, and the most.
    pub queue_bytes: [f64; 2],
    /// From arrival to departure, microseconds.
    pub delay_us: Summary,
    /// How much later than the model wanted, microseconds.
    pub late_us: Summary,
    /// The delays: longest of the bucket in microseconds, packets.
    pub delay_histogram_us: Vec<(u64, u64)>,
}

/// Packets dropped, by cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Dropped {
    /// Random loss.
    pub noise: u64,
    /// In the bad state of bursts.
    pub burst: u64,
    /// In an outage.
    pub outage: u64,
    /// The queue was full.
    pub queue: u64,
    /// Longer than the MTU.
    pub too_long: u64,
    /// The emulator came too late and the kernel's buffer was full: not part of the model.
    pub missed: u64,
    /// The kernel did not take it: not part of the model.
    pub refused: u64,
}

impl Dropped {
    /// What no link was told to drop: the emulator was overloaded.
    pub const fn unwanted(&self) -> u64 {
        self.missed + self.refused
    }
}

/// What the shell counts beside the model.
#[derive(Debug, Default)]
pub(crate) struct Shell {
    pub(crate) delay: Histogram,
    pub(crate) late: Histogram,
    pub(crate) missed: u64,
    pub(crate) refused: u64,
    pub(crate) cut: u64,
}

impl Direction {
    pub(crate) fn new(
        name: String,
        link: String,
        model: &LinkReport,
        on_the_way: u64,
        shell: &Shell,
    ) -> Self {
        Self {
            name,
            link,
            offered: model.offered + shell.cut,
            offered_bytes: model.offered_bytes,
            delivered: model.delivered.saturating_sub(on_the_way),
            delivered_bytes: model.delivered_bytes,
            dropped: Dropped {
                noise: model.lost_noise,
                burst: model.lost_burst,
                outage: model.lost_outage,
                queue: model.dropped_queue,
                too_long: model.dropped_mtu + shell.cut,
                missed: shell.missed,
                refused: shell.refused,
            },
            lost_bytes: model.lost_bytes,
            duplicated: model.duplicated,
            reordered: model.reordered,
            queue_bytes: [model.queue_mean().round(), model.queue_max as f64],
            delay_us: shell.delay.summary(),
            late_us: shell.late.summary(),
            delay_histogram_us: shell.delay.buckets(),
        }
    }
}

impl Report {
    /// For people, one line per direction.
    pub fn lines(&self) -> Vec<String> {
        let line = |d: &Direction| {
            let dropped = d.dropped;
            format!(
                "{}: offered {} ({:.1} Mb/s), delivered {}; dropped: noise {}, burst {}, outage {}, queue {}, too long {}, \
                 missed {}, refused {}; twice {}, held back {}; delay p50 {:.2} ms p99 {:.2} ms, late p99 {:.2} ms; \
                 queue mean {:.0} B, most {:.0} B",
                d.name,
                d.offered,
                d.offered_bytes as f64 * 8e-6 / self.seconds.max(1e-9),
                d.delivered,
                dropped.noise,
                dropped.burst,
                dropped.outage,
                dropped.queue,
                dropped.too_long,
                dropped.missed,
                dropped.refused,
                d.duplicated,
                d.reordered,
                d.delay_us.p50 as f64 / 1e3,
                d.delay_us.p99 as f64 / 1e3,
                d.late_us.p99 as f64 / 1e3,
                d.queue_bytes[0],
                d.queue_bytes[1],
            )
        };
        let mut lines: Vec<String> = self.directions.iter().map(line).collect();
        lines.push(format!(
            "{:.1} s, {:.2} s of processor time, seed {}",
            self.seconds, self.cpu_seconds, self.seed
        ));
        lines
    }
}
