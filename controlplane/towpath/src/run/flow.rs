//! What the admin socket is told about relayed connections.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use towpath_common::wire::protocol;
use towpath_gateway::relay::{FlowView, RelayTotals};
use towpath_gateway::worker::Flows;
use towpath_keyserver::Keyserver;
use towpath_tcp::Algorithm;
use towpath_tcp::relay::Side;
use towpath_tcp::relay::snoop::{SnoopStats, SnoopView};
use towpath_tcp::relay::split::{SideView, SplitStats};
use towpath_telemetry::admin::{Counter, FlowFilter, FlowInfo, FlowList, FlowSide, FlowTotals};

use super::daemon::Daemon;

/// Connections looked at for one answer: more would hold up the packets.
const MAX_LOOK: usize = 4096;
/// Connections in an answer unless asked otherwise.
const PAGE: u32 = 1000;

impl Daemon {
    pub(super) async fn flows(&self, filter: &FlowFilter) -> FlowList {
        // A worker that has stopped answers nothing.
        let Flows { flows, totals } = self.worker.flows(MAX_LOOK).await.unwrap_or_default();
        let limit = usize::try_from(filter.limit.unwrap_or(PAGE)).unwrap_or(usize::MAX);
        let connections = self.connections();
        let infos = flows.iter().map(|view| {
            let (terminal, network) = (view.key.terminal, view.key.network);
            let level = connections.get(&(terminal.0, terminal.1, view.peer, network.1));
            self.flow(view, level.copied())
        });
        FlowList {
            flows: infos.filter(|flow| matches(filter, flow)).take(limit).collect(),
            totals: FlowTotals {
                split: totals.flows as u64,
                half_open: totals.half_open as u64,
                buffered_bytes: totals.buffered as u64,
                snooped: totals.snooped as u64,
                cached_bytes: totals.cached as u64,
            },
        }
    }

    /// Levels of the TCP connections that have SAs of their own, by both ends.
    fn connections(&self) -> HashMap<(IpAddr, u16, IpAddr, u16), u8> {
        let sas = self.roles.keyserver.iter().flat_map(Keyserver::child_sas);
        sas.map(|(key, ..)| key)
            .filter(|key| key.lane.level != 0 && key.lane.protocol == protocol::TCP)
            .map(|key| {
                let ends = (key.local, key.lane.terminal_port, key.remote, key.lane.peer_port);
                (ends, key.lane.level)
            })
            .collect()
    }

    fn flow(&self, view: &FlowView, level: Option<u8>) -> FlowInfo {
        let name = self
            .control
            .served()
            .find(|(subscriber, _)| subscriber.handle == view.subscriber)
            .map(|(subscriber, _)| subscriber.name.clone());
        let side = |side: &Option<SideView>| side.as_ref().map(|side| flow_side(side, view.age));
        FlowInfo {
            subscriber: name.unwrap_or_default(),
            handle: view.subscriber,
            terminal: view.key.terminal.0,
            terminal_port: view.key.terminal.1,
            network: view.key.network.0,
            network_port: view.key.network.1,
            peer: view.peer,
            treatment: if view.snoop.is_some() { "snoop" } else { "split" }.into(),
            opener: view.opener.map(|opener| {
                match opener {
                    Side::Terminal => "terminal",
                    Side::Network => "network",
                }
                .into()
            }),
            age_ms: u64::try_from(view.age.as_millis()).unwrap_or(u64::MAX),
            memory_bytes: view.memory as u64,
            level,
            terminal_side: side(&view.terminal).or_else(|| view.snoop.as_ref().map(snooped_side)),
            network_side: side(&view.network),
        }
    }

    /// Counters of the relay.
    pub(super) async fn relay_counters(&self) -> Vec<Counter> {
        let Flows { totals, .. } = self.worker.flows(0).await.unwrap_or_default();
        counters(&totals)
    }
}

fn micros(time: Option<Duration>) -> Option<u64> {
    time.and_then(|time| u64::try_from(time.as_micros()).ok())
}

fn flow_side(view: &SideView, age: Duration) -> FlowSide {
    let stats = &view.stats;
    let sent = stats.bytes_sent + stats.bytes_retransmitted;
    let delivered = stats.bytes_sent.saturating_sub(view.in_flight);
    FlowSide {
        state: format!("{:?}", view.state).to_lowercase(),
        congestion: match view.algorithm {
            Algorithm::Cubic => "cubic",
            Algorithm::Bbr => "bbr",
            Algorithm::Radio => "radio",
        }
        .into(),
        rtt_us: micros(view.smoothed_rtt),
        min_rtt_us: micros(view.min_rtt),
        mss: view.mss,
        cwnd: view.window,
        in_flight: view.in_flight,
        receiver_window: view.peer_window,
        pace_bps: view.pace.saturating_mul(8),
        loss_floor_percent: view.loss_floor_ppm as f64 / 10_000.0,
        queued: view.queued as u64,
        unread: view.unread as u64,
        bytes_sent: stats.bytes_sent,
        bytes_received: stats.bytes_received,
        bytes_lost: stats.bytes_lost,
        loss_percent: stats.bytes_lost as f64 * 100.0 / sent.max(1) as f64,
        retransmits: stats.retransmits,
        early_repeats: stats.early_repeats,
        timeouts: stats.timeouts,
        segments_sent: stats.segments_sent,
        segments_received: stats.segments_received,
        goodput_bps: (delivered as f64 * 8.0 / age.as_secs_f64().max(1e-6)) as u64,
    }
}

/// The radio of a snooped connection, as far as Snoop knows it.
fn snooped_side(view: &SnoopView) -> FlowSide {
    FlowSide {
        rtt_us: micros(view.smoothed_rtt),
        in_flight: view.in_flight,
        queued: view.cached as u64,
        bytes_sent: view.delivered + view.in_flight,
        loss_percent: view.repeated as f64 * 100.0 / (view.cached_segments + view.repeated).max(1) as f64,
        retransmits: view.repeated,
        segments_sent: view.cached_segments,
        ..FlowSide::default()
    }
}

fn counters(totals: &RelayTotals) -> Vec<Counter> {
    let RelayTotals {
        flows,
        half_open,
        buffered,
        split,
        snooped,
        cached,
        snoop,
        orphans,
    } = totals;
    let SplitStats {
        opened,
        refused,
        over_limit,
        pushed_out,
        idle,
        malformed,
        over_memory,
    } = split;
    let SnoopStats {
        cached: remembered,
        repeated,
        suppressed,
        changed,
        uncached,
        out_of_window,
        peer_retransmits,
    } = snoop;
    [
        ("split_flows", "TCP connections split at present", *flows as u64),
        ("split_half_open", "of these, not open yet", *half_open as u64),
        (
            "split_buffered",
            "bytes in the buffers of split connections",
            *buffered as u64,
        ),
        ("split_opened", "TCP connections split so far", *opened),
        ("split_refused", "connections refused by the far side", *refused),
        (
            "split_over_limit",
            "connections over a bound, passed untouched",
            *over_limit,
        ),
        (
            "split_pushed_out",
            "connections never opened, forgotten for newer ones of the same pair",
            *pushed_out,
        ),
        ("split_idle", "connections reset for silence", *idle),
        (
            "split_malformed",
            "segments dropped for a wrong checksum or header",
            *malformed,
        ),
        (
            "split_over_memory",
            "segments whose data was not taken: buffers full",
            *over_memory,
        ),
        (
            "split_orphans",
            "connections of a former relay, both ends reset",
            *orphans,
        ),
        (
            "snoop_flows",
            "TCP connections snooped at present",
            *snooped as u64,
        ),
        ("snoop_cached", "bytes in their caches", *cached as u64),
        ("snoop_remembered", "segments cached so far", *remembered),
        ("snoop_repeated", "segments repeated on the radio", *repeated),
        ("snoop_suppressed", "acknowledgments kept back", *suppressed),
        (
            "snoop_changed",
            "acknowledgments forwarded without SACK or with another window",
            *changed,
        ),
        (
            "snoop_uncached",
            "segments not cached for lack of room",
            *uncached,
        ),
        (
            "snoop_out_of_window",
            "repetitions given up: the replay window had moved on",
            *out_of_window,
        ),
        (
            "snoop_peer_retransmits",
            "segments the peer sent again",
            *peer_retransmits,
        ),
    ]
    .map(|(name, text, packets)| Counter {
        group: "relay".into(),
        name: name.into(),
        text: text.into(),
        packets,
        bytes: 0,
    })
    .into()
}

fn matches(filter: &FlowFilter, flow: &FlowInfo) -> bool {
    let FlowFilter {
        subscriber,
        address,
        port,
        limit: _,
    } = filter;
    subscriber.as_ref().is_none_or(|name| *name == flow.subscriber)
        && address.is_none_or(|address| [flow.terminal, flow.network, flow.peer].contains(&address))
        && port.is_none_or(|port| [flow.terminal_port, flow.network_port].contains(&port))
}
