//! What the admin socket is told: status, SAs, counters.

use std::collections::HashMap;

use towpath_base::{DropReason, Instant, SubscriberHandle};
use towpath_common::counter::Counter as DataplaneCounter;
use towpath_gateway::datapath::{SaCounters, SaKey};
use towpath_gateway::worker::Snapshot;
use towpath_ike::IkeState;
use towpath_keyserver::Keyserver;
use towpath_keyserver::pairs::{Child, PairKey};
use towpath_registry::Registry;
use towpath_telemetry::admin::{
    AdminError, Counter, ErrorKind, PortStatus, Reply, Request, SaFilter, SaInfo, Stats, Status, Traffic,
};

use super::daemon::Daemon;

type Answer = Result<Reply, AdminError>;

impl Daemon {
    /// Answers one request.
    pub(super) async fn answer(&mut self, now: Instant, request: Request) -> Answer {
        match request {
            Request::Status => self.status(now),
            Request::SaList(filter) => Ok(Reply::SaList(self.sas(now, &filter).await)),
            Request::SaShow { spi } => {
                let mut sas = self.sas(now, &SaFilter::default()).await;
                sas.retain(|sa| sa.spi_in == spi || sa.spi_out == spi);
                if sas.is_empty() {
                    let message = format!("no SA has SPI {spi}; `towpath sa list` shows those there are");
                    return Err(AdminError::new(ErrorKind::NotFound, message));
                }
                Ok(Reply::SaList(sas))
            }
            Request::FlowList(filter) => Ok(Reply::FlowList(self.flows(&filter).await)),
            Request::Stats => self.stats().await,
            Request::IkeList => Ok(Reply::IkeList(self.roles.ike_sas(now))),
            Request::Ike(request) => {
                let keys = self.config.debug.key_log.is_some();
                self.roles.answer_ike(now, request, keys)
            }
            Request::Manual(request) => self.answer_manual(now, request),
            Request::Policy(request) => self.answer_policy(request),
            Request::ExportKeys { segment, spi } => self.export_keys(segment, spi),
            Request::Capture(request) => self.start_capture(now, &request).await,
            Request::CaptureRead { id } => self.read_capture(now, id),
            Request::CaptureStop { id } => self.stop_capture(id),
            Request::Subscriber(request) => self.roles.subscriber(now, request),
            // The server itself has them.
            Request::Events | Request::Recent => Ok(Reply::Events),
        }
    }

    fn status(&mut self, now: Instant) -> Answer {
        let keyserver = self.roles.keyserver.as_ref();
        let ike_sas = || keyserver.into_iter().flat_map(|keyserver| keyserver.ike_sas(now));
        let established = ike_sas()
            .filter(|info| info.state == IkeState::Established)
            .count() as u64;
        let total = ike_sas().count() as u64;
        let registry = self.roles.registry.as_ref();
        // Without a registry here: those this gateway serves.
        let registered = self
            .control
            .served()
            .filter(|(_, addresses)| !addresses.is_empty())
            .count() as u64;
        let ports = self.dataplane.ports().iter().map(|port| PortStatus {
            name: port.device.name.clone(),
            ifindex: port.device.ifindex,
            role: match port.role {
                towpath_common::abi::Role::Access => "access".into(),
                towpath_common::abi::Role::Core => "core".into(),
            },
            xdp_mode: port.mode.name().into(),
            queues: port.device.queues,
            zero_copy: self.worker.is_zero_copy(),
        });
        Ok(Reply::Status(Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_seconds: now.saturating_since(self.started).as_secs(),
            roles: self.config.roles.iter().map(|role| role.name().into()).collect(),
            ports: ports.collect(),
            workers: 1,
            subscribers: registry.map_or_else(|| self.control.served().count() as u64, Registry::subscribers),
            registered: registry.map_or(registered, Registry::registered),
            ike_sas: established,
            ike_half_open: total - established,
            child_sas: keyserver.map_or(0, |keyserver| keyserver.child_sas().count() as u64),
        }))
    }

    async fn sas(&self, now: Instant, filter: &SaFilter) -> Vec<SaInfo> {
        // A worker that has stopped answers nothing: the SAs are shown without traffic.
        let Snapshot { sas, .. } = self.worker.snapshot().await.unwrap_or_default();
        let traffic: HashMap<SaKey, SaCounters> = sas
            .into_iter()
            .map(|(_, key, counters)| (key, counters))
            .collect();
        let mut infos: Vec<SaInfo> = self
            .roles
            .keyserver
            .iter()
            .flat_map(Keyserver::child_sas)
            .filter_map(|(key, subscriber, child)| self.sa(now, key, subscriber, child, &traffic))
            .chain(self.manual_sas(&traffic))
            .filter(|sa| matches(filter, sa))
            .collect();
        infos.sort_by_key(|sa| (sa.terminal, sa.peer, sa.spi_in));
        infos
    }

    fn sa(
        &self,
        now: Instant,
        key: PairKey,
        handle: SubscriberHandle,
        child: &Child,
        traffic: &HashMap<SaKey, SaCounters>,
    ) -> Option<SaInfo> {
        let (subscriber, _) = self
            .control
            .served()
            .find(|(subscriber, _)| subscriber.handle == handle)?;
        let sa_key = SaKey {
            local: key.local,
            remote: key.remote,
            spi_in: child.spi_in,
            spi_out: child.spi_out,
        };
        let counters = traffic.get(&sa_key).copied().unwrap_or_default();
        Some(SaInfo {
            subscriber: subscriber.name.clone(),
            operator: subscriber.operator.clone(),
            handle,
            terminal: key.local,
            peer: key.remote,
            spi_in: child.spi_in,
            spi_out: child.spi_out,
            class: child.class,
            level: Some(key.lane.level),
            suite: Some(child.suite),
            mode: Some(child.mode),
            esn: Some(child.esn),
            udp_encap: child.udp_encap,
            transferred: child.acknowledged,
            age_seconds: now.saturating_since(child.established).as_secs(),
            to_terminal: Traffic {
                packets: counters.packets_to_terminal,
                bytes: counters.bytes_to_terminal,
            },
            to_peer: Traffic {
                packets: counters.packets_to_peer,
                bytes: counters.bytes_to_peer,
            },
            local_ts: child.local_ts.iter().copied().collect(),
            remote_ts: child.remote_ts.iter().copied().collect(),
            manual: None,
            untouched: counters.untouched,
            note: None,
        })
    }

    async fn stats(&mut self) -> Answer {
        let dataplane = self
            .dataplane
            .counters()
            .map_err(|error| AdminError::internal(error.to_string()))?;
        let mut counters: Vec<Counter> = dataplane
            .into_iter()
            .filter(|(counter, count)| !matches!(counter, DataplaneCounter::Drop(_)) || count.packets > 0)
            .map(|(counter, count)| Counter::of_dataplane(counter, count.packets, count.bytes))
            .collect();
        let worker = self.worker.counters();
        counters.extend(
            worker
                .totals()
                .map(|(name, text, packets)| named("worker", name, text, packets)),
        );
        counters.extend(
            worker
                .drops()
                .map(|(reason, packets)| named("worker_drop", reason.name(), reason.text(), packets)),
        );
        counters.extend(self.relay_counters().await);
        counters.extend(control_drops(&self.refused));
        if self.degraded_sas > 0 {
            let text = "directions of shared-key SAs that fell to class none";
            counters.push(named("gateway", "class_degraded", text, self.degraded_sas));
        }
        Ok(Reply::Stats(Stats { counters }))
    }
}

/// Messages of the control path that were refused.
pub(super) fn control_drops(refused: &[u64; DropReason::COUNT]) -> impl Iterator<Item = Counter> {
    let refused = DropReason::ALL
        .iter()
        .zip(refused)
        .filter(|(_, count)| **count > 0);
    refused.map(|(reason, packets)| named("control_drop", reason.name(), reason.text(), *packets))
}

fn named(group: &str, name: &str, text: &str, packets: u64) -> Counter {
    Counter {
        group: group.into(),
        name: name.into(),
        text: text.into(),
        packets,
        bytes: 0,
    }
}

fn matches(filter: &SaFilter, sa: &SaInfo) -> bool {
    filter
        .operator
        .as_ref()
        .is_none_or(|operator| *operator == sa.operator)
        && filter
            .subscriber
            .as_ref()
            .is_none_or(|subscriber| *subscriber == sa.subscriber)
        && filter
            .address
            .is_none_or(|address| address == sa.terminal || address == sa.peer)
}
