//! Counters and flows in the text format of Prometheus (exposition format 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write as _;

use towpath_telemetry::admin::{FlowList, FlowSide, Stats};

/// Everything as one page. Write it where the node exporter's textfile collector looks, or serve it.
pub(super) fn text(stats: &Stats, flows: Option<&FlowList>) -> String {
    let mut page = String::new();
    counters(&mut page, stats);
    if let Some(list) = flows {
        totals(&mut page, list);
        subscribers(&mut page, list);
    }
    page
}

fn head(page: &mut String, name: &str, kind: &str, help: &str) {
    let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
}

fn counters(page: &mut String, stats: &Stats) {
    head(
        page,
        "towpath_packets_total",
        "counter",
        "Packets or events by group and name.",
    );
    // What can fall is no counter; the totals of the flows have it.
    let counting = |name: &str| {
        !["flows", "half_open", "buffered", "cached"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    let rising = || {
        stats
            .counters
            .iter()
            .filter(|counter| counter.group != "relay" || counting(&counter.name))
    };
    for counter in rising() {
        let (group, name) = (label(&counter.group), label(&counter.name));
        let _ = writeln!(
            page,
            "towpath_packets_total{{group=\"{group}\",name=\"{name}\"}} {}",
            counter.packets
        );
    }
    head(
        page,
        "towpath_bytes_total",
        "counter",
        "Bytes by group and name, where they are counted.",
    );
    for counter in rising().filter(|counter| counter.bytes > 0) {
        let (group, name) = (label(&counter.group), label(&counter.name));
        let _ = writeln!(
            page,
            "towpath_bytes_total{{group=\"{group}\",name=\"{name}\"}} {}",
            counter.bytes
        );
    }
}

fn totals(page: &mut String, list: &FlowList) {
    let totals = &list.totals;
    for (name, help, value) in [
        (
            "towpath_flows_split",
            "TCP connections split at present.",
            totals.split,
        ),
        (
            "towpath_flows_half_open",
            "Of these, not open yet.",
            totals.half_open,
        ),
        (
            "towpath_flows_snooped",
            "TCP connections snooped at present.",
            totals.snooped,
        ),
        (
            "towpath_flow_buffer_bytes",
            "Bytes in the buffers of split connections.",
            totals.buffered_bytes,
        ),
        (
            "towpath_flow_cache_bytes",
            "Bytes in the caches of snooped connections.",
            totals.cached_bytes,
        ),
    ] {
        head(page, name, "gauge", help);
        let _ = writeln!(page, "{name} {value}");
    }
}

/// What a gauge shows of a sum.
type Value = fn(&Sum) -> f64;

/// The connections of one subscriber on one side.
#[derive(Default)]
struct Sum {
    flows: u64,
    sent: u64,
    lost: u64,
    again: u64,
    rtts: Vec<u64>,
    queued: u64,
}

impl Sum {
    fn add(&mut self, side: &FlowSide) {
        self.flows += 1;
        self.sent += side.bytes_sent;
        self.lost += side.bytes_lost;
        self.again += side.retransmits;
        self.queued += side.queued;
        self.rtts.extend(side.rtt_us);
    }
}

fn subscribers(page: &mut String, list: &FlowList) {
    let mut sums: BTreeMap<(&str, &str), Sum> = BTreeMap::new();
    for flow in &list.flows {
        for (name, side) in [("terminal", &flow.terminal_side), ("network", &flow.network_side)] {
            if let Some(side) = side {
                sums.entry((&flow.subscriber, name)).or_default().add(side);
            }
        }
    }
    let gauges: [(&str, &str, Value); 6] = [
        (
            "towpath_subscriber_flows",
            "Relayed connections at present.",
            |sum| sum.flows as f64,
        ),
        (
            "towpath_subscriber_sent_bytes",
            "Bytes sent by them so far.",
            |sum| sum.sent as f64,
        ),
        (
            "towpath_subscriber_lost_bytes",
            "Bytes of these found lost.",
            |sum| sum.lost as f64,
        ),
        ("towpath_subscriber_retransmits", "Segments sent again.", |sum| {
            sum.again as f64
        }),
        (
            "towpath_subscriber_queued_bytes",
            "Bytes waiting to be sent or acknowledged.",
            |sum| sum.queued as f64,
        ),
        (
            "towpath_subscriber_rtt_seconds",
            "Mean round trip of the segment.",
            |sum| {
                let total: u64 = sum.rtts.iter().sum();
                total as f64 / 1e6 / sum.rtts.len().max(1) as f64
            },
        ),
    ];
    for (name, help, value) in gauges {
        head(page, name, "gauge", help);
        for ((subscriber, side), sum) in &sums {
            let subscriber = label(subscriber);
            let value = value(sum);
            let _ = writeln!(
                page,
                "{name}{{subscriber=\"{subscriber}\",side=\"{side}\"}} {value}"
            );
        }
    }
}

/// A label's value, escaped.
fn label(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use towpath_telemetry::admin::Counter;

    use super::*;

    #[test]
    fn the_page_has_help_type_and_escaped_labels() {
        let counter = |group: &str, name: &str| Counter {
            group: group.into(),
            name: name.into(),
            text: String::new(),
            packets: 3,
            bytes: 0,
        };
        let stats = Stats {
            counters: vec![counter("worker", "a\"b"), counter("relay", "split_flows")],
        };
        let page = text(&stats, Some(&FlowList::default()));
        assert!(page.starts_with("# HELP towpath_packets_total "));
        assert!(page.contains("towpath_packets_total{group=\"worker\",name=\"a\\\"b\"} 3\n"));
        // It can fall, so it is a gauge and has a name of its own.
        assert!(!page.contains("split_flows"));
        assert!(page.contains("# TYPE towpath_flows_split gauge\ntowpath_flows_split 0\n"));
        assert!(
            page.lines()
                .all(|line| line.starts_with('#') || line.split(' ').count() == 2)
        );
    }
}
