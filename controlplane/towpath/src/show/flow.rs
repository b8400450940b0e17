//! `towpath flow`: relayed TCP connections.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use towpath_telemetry::admin::{FlowFilter, FlowInfo, FlowList, FlowSide, Reply, Request};

use super::unexpected;
use crate::backend::daemon;
use crate::cli::Common;
use crate::failure::{Failure, Outcome};
use crate::output;

/// `towpath flow`.
#[derive(Debug, Subcommand)]
pub(crate) enum Flow {
    /// List connections, each segment with its round trip, loss and rate
    List(Which),
    /// Everything about connections
    Show(Which),
    /// The busiest connections, again and again, until interrupted
    Top {
        #[command(flatten)]
        which: Which,
        /// Seconds between two looks
        #[arg(long, default_value_t = 1, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
        interval: u64,
        /// Stop after this many looks
        #[arg(long, short = 'n', value_name = "NUMBER")]
        count: Option<u64>,
        /// Connections shown
        #[arg(long, default_value_t = 20, value_name = "NUMBER")]
        lines: usize,
    },
}

/// Which connections.
#[derive(Debug, Args)]
pub(crate) struct Which {
    /// Only of this subscriber
    #[arg(long, value_name = "NAME")]
    subscriber: Option<String>,
    /// Only with this terminal or peer
    #[arg(long)]
    address: Option<IpAddr>,
    /// Only with this port on either end
    #[arg(long)]
    port: Option<u16>,
    /// At most so many
    #[arg(long, value_name = "NUMBER")]
    limit: Option<u32>,
}

impl From<Which> for FlowFilter {
    fn from(which: Which) -> Self {
        Self {
            subscriber: which.subscriber,
            address: which.address,
            port: which.port,
            limit: which.limit,
        }
    }
}

/// Shows connections.
pub(crate) fn flow(common: &Common, command: Flow) -> Outcome {
    match command {
        Flow::List(which) => {
            let list = fetch(common, &which.into())?;
            if common.json {
                return output::json(&list);
            }
            output::print(&table(&list))
        }
        Flow::Show(which) => {
            let list = fetch(common, &which.into())?;
            if list.flows.is_empty() {
                return Err(Failure::usage("no connection matches"));
            }
            if common.json {
                return output::json(&list.flows);
            }
            let shown: Vec<String> = list.flows.iter().map(details).collect();
            output::print(&shown.join("\n"))
        }
        Flow::Top {
            which,
            interval,
            count,
            lines,
        } => top(common, &which.into(), interval, count, lines),
    }
}

fn fetch(common: &Common, filter: &FlowFilter) -> Outcome<FlowList> {
    match daemon(common)?.request(&Request::FlowList(filter.clone()))? {
        Reply::FlowList(list) => Ok(list),
        reply => Err(unexpected(&reply)),
    }
}

/// What tells one connection from another.
type Key = (IpAddr, u16, IpAddr, u16);

fn key(flow: &FlowInfo) -> Key {
    (flow.terminal, flow.terminal_port, flow.network, flow.network_port)
}

fn top(common: &Common, filter: &FlowFilter, interval: u64, count: Option<u64>, lines: usize) -> Outcome {
    let mut before: HashMap<Key, (u64, u64)> = HashMap::new();
    let mut looked: Option<Instant> = None;
    let mut looks = 0;
    loop {
        let now = Instant::now();
        let mut list = fetch(common, filter)?;
        let passed = looked.map(|then| now - then);
        if let Some(passed) = passed {
            for flow in &mut list.flows {
                if let Some((to_terminal, to_network)) = before.get(&key(flow)) {
                    set_rate(&mut flow.terminal_side, *to_terminal, passed);
                    set_rate(&mut flow.network_side, *to_network, passed);
                }
            }
        }
        before = list.flows.iter().map(|flow| (key(flow), sent(flow))).collect();
        looked = Some(now);
        let busy = |flow: &FlowInfo| rate(&flow.terminal_side) + rate(&flow.network_side);
        list.flows.sort_by_key(|flow| std::cmp::Reverse(busy(flow)));
        list.flows.truncate(lines);
        if common.json {
            output::json_line(&list)?;
        } else {
            let clear = if std::io::stdout().is_terminal() {
                "\x1b[2J\x1b[H"
            } else {
                ""
            };
            output::print(&format!("{clear}{}", table(&list)))?;
        }
        looks += 1;
        if count.is_some_and(|count| looks >= count) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(interval));
    }
}

fn sent(flow: &FlowInfo) -> (u64, u64) {
    let of = |side: &Option<FlowSide>| side.as_ref().map_or(0, |side| side.bytes_sent);
    (of(&flow.terminal_side), of(&flow.network_side))
}

fn rate(side: &Option<FlowSide>) -> u64 {
    side.as_ref().map_or(0, |side| side.goodput_bps)
}

/// The rate between two looks in place of the one since the connection was opened.
fn set_rate(side: &mut Option<FlowSide>, before: u64, passed: Duration) {
    if let Some(side) = side {
        let bytes = side.bytes_sent.saturating_sub(before);
        side.goodput_bps = (bytes as f64 * 8.0 / passed.as_secs_f64().max(0.001)) as u64;
    }
}

fn table(list: &FlowList) -> String {
    let mut table = output::table(&[
        "SUBSCRIBER",
        "TERMINAL",
        "PEER",
        "AGE",
        "RADIO RTT",
        "LOSS",
        "AGAIN",
        "CWND",
        "QUEUE",
        "RATE",
        "CORE RTT",
        "LOSS",
        "AGAIN",
        "CWND",
        "QUEUE",
        "RATE",
    ]);
    for flow in &list.flows {
        let opener = flow.opener.as_deref();
        let mut row = vec![
            flow.subscriber.clone(),
            socket(flow.terminal, flow.terminal_port, opener == Some("terminal")),
            socket(flow.network, flow.network_port, opener == Some("network")),
            output::duration(flow.age_ms / 1000),
        ];
        for side in [&flow.terminal_side, &flow.network_side] {
            row.extend(cells(side));
        }
        table.add_row(row);
    }
    let totals = &list.totals;
    format!(
        "{}{} split ({} half open, {} buffered), {} snooped ({} cached); * opened it\n",
        output::render(&table),
        totals.split,
        totals.half_open,
        output::bytes(totals.buffered_bytes),
        totals.snooped,
        output::bytes(totals.cached_bytes),
    )
}

fn socket(address: IpAddr, port: u16, opened: bool) -> String {
    let mark = if opened { "*" } else { "" };
    format!("{}{mark}", std::net::SocketAddr::new(address, port))
}

fn cells(side: &Option<FlowSide>) -> [String; 6] {
    let Some(side) = side else {
        return [const { String::new() }; 6].map(|_: String| "-".into());
    };
    [
        millis(side.rtt_us),
        format!("{:.2} %", side.loss_percent),
        side.retransmits.to_string(),
        output::bytes(side.cwnd),
        output::bytes(side.queued),
        bits(side.goodput_bps),
    ]
}

fn millis(micros: Option<u64>) -> String {
    micros.map_or("-".into(), |micros| format!("{:.1} ms", micros as f64 / 1000.0))
}

fn bits(rate: u64) -> String {
    match rate {
        0..1_000 => format!("{rate} b/s"),
        1_000..1_000_000 => format!("{:.1} kb/s", rate as f64 / 1e3),
        _ => format!("{:.1} Mb/s", rate as f64 / 1e6),
    }
}

fn details(flow: &FlowInfo) -> String {
    let mut facts = vec![
        (
            "subscriber",
            format!("{}, handle {}", flow.subscriber, flow.handle),
        ),
        ("terminal", socket(flow.terminal, flow.terminal_port, false)),
        ("peer", socket(flow.network, flow.network_port, false)),
        ("sa with", flow.peer.to_string()),
        ("treatment", flow.treatment.clone()),
        ("level", flow.level.map_or("-".into(), |level| level.to_string())),
        ("opened by", flow.opener.clone().unwrap_or_else(|| "-".into())),
        ("age", output::duration(flow.age_ms / 1000)),
        ("memory", output::bytes(flow.memory_bytes)),
    ];
    for (name, side) in [
        ("terminal's side", &flow.terminal_side),
        ("peer's side", &flow.network_side),
    ] {
        let text = side.as_ref().map_or("-".into(), |side| {
            format!(
                "{} {}, segments of {} B\nround trip {} (least {})\nwindow {}, in flight {}, queued {}, unread {}\n\
                 receiver's window {}, pace {}, link's own loss {:.2} %\n\
                 sent {}, received {}, {} segments out, {} in\nlost {} ({:.2} %), {} sent again, {} early, {} timeouts\n\
                 goodput {}",
                side.state,
                side.congestion,
                side.mss,
                millis(side.rtt_us),
                millis(side.min_rtt_us),
                output::bytes(side.cwnd),
                output::bytes(side.in_flight),
                output::bytes(side.queued),
                output::bytes(side.unread),
                output::bytes(side.receiver_window),
                bits(side.pace_bps),
                side.loss_floor_percent,
                output::bytes(side.bytes_sent),
                output::bytes(side.bytes_received),
                side.segments_sent,
                side.segments_received,
                output::bytes(side.bytes_lost),
                side.loss_percent,
                side.retransmits,
                side.early_repeats,
                side.timeouts,
                bits(side.goodput_bps),
            )
        });
        facts.push((name, text));
    }
    output::facts(&facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_shown_for_people() {
        assert_eq!(
            [999, 1_500, 48_000_000].map(bits),
            ["999 b/s", "1.5 kb/s", "48.0 Mb/s"]
        );
        let mut side = Some(FlowSide {
            bytes_sent: 3_000,
            ..FlowSide::default()
        });
        set_rate(&mut side, 1_000, Duration::from_secs(2));
        assert_eq!(rate(&side), 8_000);
    }
}
