//! What the admin socket asks about manual SAs, policies, captures and keys.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use towpath_base::manual::ManualSa;
use towpath_base::policy::Policy;
use towpath_base::profile::Subscriber;
use towpath_base::sa::{Class, EspKeys};
use towpath_base::{Instant, Spi, SubscriberHandle};
use towpath_fabric::{Event, GatewayKeys, GatewaySa, ToKeyserver};
use towpath_gateway::datapath::{SaCounters, SaKey, Tap, TapPoint, Tapped};
use towpath_gateway::stored::StoredError;
use towpath_ipsec::shared::Stage;
use towpath_telemetry::admin::{
    AdminError, CaptureRequest, CapturedPacket, ErrorKind, ExportedKey, ManualRequest, ManualSaInfo,
    PolicyRequest, Reply, SaInfo, Segment, SubscriberName, SubscriberRequest, Traffic,
};

use super::daemon::Daemon;

type Answer = Result<Reply, AdminError>;

/// Packets a capture holds for a reader.
const CAPTURED: usize = 4096;
/// Packets in one answer.
const CAPTURE_PAGE: usize = 512;
/// A capture nobody reads for this long ends.
const CAPTURE_IDLE: Duration = Duration::from_secs(10);

/// The capture that is running.
pub(super) struct Capture {
    id: u64,
    packets: Receiver<Tapped>,
    read: Instant,
}

/// Keys kept for `towpath sa export-wireshark`; empty without the permission.
pub(super) type KeptKeys = HashMap<SaKey, GatewaySa>;

fn refused(error: StoredError) -> AdminError {
    let kind = match &error {
        StoredError::Invalid(_) => ErrorKind::Invalid,
        StoredError::NotFound(_) => ErrorKind::NotFound,
        StoredError::Conflict(_) => ErrorKind::Conflict,
        StoredError::Store(_) | StoredError::Windows(_) => ErrorKind::Internal,
    };
    AdminError::new(kind, error.to_string())
}

fn forbidden(key: &str, what: &str) -> AdminError {
    AdminError::invalid(format!(
        "{what} is not permitted: `permissions.{key}` is false in the configuration, expected true"
    ))
}

/// The name of an SA in [`Daemon::kept`].
pub(super) fn sa_key(sa: &GatewaySa) -> SaKey {
    SaKey {
        local: sa.local,
        remote: sa.remote,
        spi_in: sa.spi_in,
        spi_out: sa.spi_out,
    }
}

impl Daemon {
    pub(super) fn answer_manual(&mut self, now: Instant, request: ManualRequest) -> Answer {
        match request {
            ManualRequest::Add(sa) => self.add_manual(now, *sa),
            ManualRequest::Remove { name } => {
                let info = self.stored.find(&name).map(|sa| ManualSaInfo::of(sa, false));
                let key = self.stored.remove(&name).map_err(refused)?;
                self.worker.remove(key);
                self.kept.remove(&key);
                Ok(Reply::ManualSas(info.into_iter().collect()))
            }
            ManualRequest::List { with_keys } => {
                if with_keys && !self.config.permissions.show_keys {
                    return Err(forbidden("show_keys", "showing keys"));
                }
                if with_keys {
                    tracing::warn!("keys of manual SAs were shown on the admin socket");
                }
                let infos = self.stored.sas().map(|(sa, _)| ManualSaInfo::of(sa, with_keys));
                Ok(Reply::ManualSas(infos.collect()))
            }
        }
    }

    /// The record of the registry here; of one elsewhere, what it had this gateway serve.
    fn subscriber(&mut self, now: Instant, name: SubscriberName) -> Result<Subscriber, AdminError> {
        if self.roles.registry.is_none() {
            let mut served = self.control.served();
            let same = |subscriber: &&Subscriber| {
                subscriber.name == name.name && subscriber.operator == name.operator
            };
            let found = served.find_map(|(subscriber, _)| Some(subscriber).filter(same).cloned());
            return found.ok_or_else(|| {
                let message = format!("no subscriber `{}` is served here now", name.name.escape_debug());
                AdminError::new(ErrorKind::NotFound, message)
            });
        }
        match self.roles.subscriber(now, SubscriberRequest::Show(name))? {
            Reply::Subscriber(attached) => Ok(attached.subscriber),
            _ => Err(AdminError::internal("the registry answered something else")),
        }
    }

    fn add_manual(&mut self, now: Instant, sa: ManualSa) -> Answer {
        let name = SubscriberName {
            operator: sa.operator.clone(),
            name: sa.subscriber.clone(),
        };
        let subscriber = self.subscriber(now, name)?;
        if !subscriber.may_use(sa.terminal) {
            return Err(AdminError::invalid(format!(
                "terminal: {} is none of the addresses of subscriber `{}`",
                sa.terminal,
                subscriber.name.escape_debug()
            )));
        }
        let negotiated = self.roles.keyserver.as_ref().is_some_and(|keyserver| {
            keyserver.child_sas().any(|(pair, _, child)| {
                (pair.local == sa.terminal && child.spi_in == sa.spi_in)
                    || (pair.remote == sa.peer && child.spi_out == sa.spi_out)
            })
        });
        if negotiated {
            let text = "spi: a negotiated SA has this SPI and destination; choose another SPI";
            return Err(AdminError::new(ErrorKind::Conflict, text));
        }
        let name = sa.name.clone();
        let installation = self.stored.add(sa, subscriber.handle).map_err(refused)?;
        self.give(installation);
        let info = self.stored.find(&name).map(|sa| ManualSaInfo::of(sa, false));
        Ok(Reply::ManualSas(info.into_iter().collect()))
    }

    pub(super) fn answer_policy(&mut self, request: PolicyRequest) -> Answer {
        let one = |policy: Policy| Reply::Policies(vec![policy]);
        match request {
            PolicyRequest::List => Ok(Reply::Policies(self.stored.spd().iter().cloned().collect())),
            PolicyRequest::Show { id } => match self.stored.spd().get(id) {
                Some(policy) => Ok(one(policy.clone())),
                None => Err(AdminError::new(
                    ErrorKind::NotFound,
                    format!("there is no policy {id}"),
                )),
            },
            PolicyRequest::Add(policy) => {
                let added = self.stored.add_policy(*policy).map_err(refused)?;
                self.give_policies();
                Ok(one(added))
            }
            PolicyRequest::Remove { id } => {
                let removed = self.stored.remove_policy(id).map_err(refused)?;
                self.give_policies();
                Ok(one(removed))
            }
        }
    }

    /// Hands the policies to the worker.
    pub(super) fn give_policies(&self) {
        self.worker.set_policies(Box::new(self.stored.spd().clone()));
    }

    /// The manual SAs as `towpath sa list` shows them.
    pub(super) fn manual_sas(&self, traffic: &HashMap<SaKey, SaCounters>) -> Vec<SaInfo> {
        self.stored
            .sas()
            .map(|(sa, handle)| manual_info(sa, handle, traffic))
            .collect()
    }

    /// A limit of a manual SA was reached: nobody negotiates a replacement, so people are told. True if it is one.
    pub(super) fn manual_expired(&self, message: &ToKeyserver) -> bool {
        let ToKeyserver::Expiring {
            subscriber,
            spi_in,
            hard,
        } = message
        else {
            return false;
        };
        let mut sas = self.stored.sas();
        let Some((sa, _)) = sas.find(|(sa, owner)| sa.spi_in == *spi_in && owner == subscriber) else {
            return false;
        };
        let what = if *hard {
            "hard limit reached: it carries nothing any more"
        } else {
            "numbers run out"
        };
        self.publish(Event {
            subscriber: sa.subscriber.clone(),
            terminal: Some(sa.terminal),
            peer: Some(sa.peer),
            ike: None,
            kind: "manual_sa_expired".into(),
            text: format!(
                "SA {} `{}`: {what}; remove it and bring new keys",
                sa.id,
                sa.name.escape_debug()
            ),
        });
        true
    }

    pub(super) fn export_keys(&self, segment: Segment, spi: Option<u32>) -> Answer {
        if !self.config.permissions.show_keys {
            return Err(forbidden("show_keys", "exporting keys"));
        }
        tracing::warn!("keys of SAs were exported on the admin socket");
        let mut keys = Vec::new();
        let wanted = |sa: &&GatewaySa| spi.is_none_or(|spi| sa.spi_in.0 == spi || sa.spi_out.0 == spi);
        for sa in self.kept.values().filter(wanted) {
            keys.extend(exported(sa, segment));
        }
        if keys.is_empty() && spi.is_some() {
            return Err(AdminError::new(
                ErrorKind::NotFound,
                "the gateway has no key of such an SA",
            ));
        }
        keys.sort_by_key(|key| (key.source, key.destination, key.spi));
        Ok(Reply::Keys(keys))
    }

    pub(super) async fn start_capture(&mut self, now: Instant, request: &CaptureRequest) -> Answer {
        if !self.config.permissions.capture {
            return Err(forbidden("capture", "capturing"));
        }
        self.end_idle_capture(now);
        if self.capture.is_some() {
            let text = "another capture is running; one at a time";
            return Err(AdminError::new(ErrorKind::Conflict, text));
        }
        let spi = Spi(request.spi);
        let snapshot = self.worker.snapshot().await.unwrap_or_default();
        let found = snapshot
            .sas
            .into_iter()
            .find(|(_, key, _)| key.spi_in == spi || key.spi_out == spi);
        let Some((handle, key, counters)) = found else {
            let text = format!("no SA has SPI {spi}; `towpath sa list` shows those there are");
            return Err(AdminError::new(ErrorKind::NotFound, text));
        };
        let point = match (request.decrypted, request.segment) {
            (true, _) if counters.stages.is_some() => {
                let text =
                    "decrypted: the SA has shared keys; capture it encrypted and use `sa export-wireshark`";
                return Err(AdminError::invalid(text));
            }
            (true, _) => TapPoint::Plain,
            (false, Segment::Access) => TapPoint::Access,
            (false, Segment::Core) => TapPoint::Core,
        };
        let (sender, packets) = sync_channel(CAPTURED);
        self.captures += 1;
        let id = self.captures;
        self.worker.set_tap(Some(Tap {
            key,
            point,
            sender,
            lost: 0,
        }));
        self.capture = Some(Capture {
            id,
            packets,
            read: now,
        });
        self.publish(Event {
            subscriber: handle.to_string(),
            terminal: Some(key.local),
            peer: Some(key.remote),
            ike: None,
            kind: "capture_started".into(),
            text: format!("spi_in {} spi_out {}, {point:?}", key.spi_in, key.spi_out),
        });
        Ok(Reply::Capturing { id })
    }

    pub(super) fn read_capture(&mut self, now: Instant, id: u64) -> Answer {
        let capture = self.capture.as_mut().filter(|capture| capture.id == id);
        let Some(capture) = capture else {
            return Err(AdminError::new(ErrorKind::NotFound, "the capture has ended"));
        };
        capture.read = now;
        let packets = capture
            .packets
            .try_iter()
            .take(CAPTURE_PAGE)
            .map(|tapped| CapturedPacket {
                unix_nanos: tapped.unix_nanos,
                to_peer: tapped.to_peer,
                packet: tapped.packet,
                lost: tapped.lost,
            });
        Ok(Reply::Packets(packets.collect()))
    }

    pub(super) fn stop_capture(&mut self, id: u64) -> Answer {
        if self.capture.as_ref().is_some_and(|capture| capture.id == id) {
            self.capture = None;
            self.worker.set_tap(None);
        }
        Ok(Reply::Done)
    }

    /// A reader that went away without a word.
    pub(super) fn end_idle_capture(&mut self, now: Instant) {
        let idle = |capture: &Capture| now.saturating_since(capture.read) >= CAPTURE_IDLE;
        if self.capture.as_ref().is_some_and(idle) {
            self.capture = None;
            self.worker.set_tap(None);
        }
    }
}

fn manual_info(sa: &ManualSa, handle: SubscriberHandle, traffic: &HashMap<SaKey, SaCounters>) -> SaInfo {
    let key = SaKey {
        local: sa.terminal,
        remote: sa.peer,
        spi_in: sa.spi_in,
        spi_out: sa.spi_out,
    };
    let counters = traffic.get(&key).copied();
    let note = match counters {
        None => Some("not served: its subscriber, or the worker, does not have it".into()),
        Some(counters) => counters.stages.map(|[to_peer, to_terminal]| {
            format!(
                "shared keys; to the peer {}, to the terminal {}",
                stage(to_peer),
                stage(to_terminal)
            )
        }),
    };
    let counters = counters.unwrap_or_default();
    // Both directions fell to it: that is the class now.
    let class = match counters.stages {
        Some([Stage::Degraded, Stage::Degraded]) => Class::None,
        _ => sa.protection.class(),
    };
    SaInfo {
        subscriber: sa.subscriber.clone(),
        operator: sa.operator.clone(),
        handle,
        terminal: sa.terminal,
        peer: sa.peer,
        spi_in: sa.spi_in,
        spi_out: sa.spi_out,
        level: None,
        class,
        suite: sa.protection.suite(),
        mode: Some(sa.mode),
        esn: Some(sa.esn),
        udp_encap: sa.encap.is_some(),
        transferred: true,
        age_seconds: 0,
        to_terminal: Traffic {
            packets: counters.packets_to_terminal,
            bytes: counters.bytes_to_terminal,
        },
        to_peer: Traffic {
            packets: counters.packets_to_peer,
            bytes: counters.bytes_to_peer,
        },
        local_ts: sa.local_ts.clone(),
        remote_ts: sa.remote_ts.clone(),
        manual: Some(sa.name.clone()),
        untouched: counters.untouched,
        note,
    }
}

const fn stage(stage: Stage) -> &'static str {
    match stage {
        Stage::Probation => "untouched (watching the sender's IVs)",
        Stage::Proven => "untouched (numbers being reserved)",
        Stage::Intervening => "opened and sealed",
        Stage::Degraded => "class none (IVs random or in the gateway's half)",
    }
}

fn exported(sa: &GatewaySa, segment: Segment) -> Vec<ExportedKey> {
    let (esp_in, esp_out) = match &sa.keys {
        GatewayKeys::EspInAh { peer, .. } => (peer.spi_in, peer.spi_out),
        _ => (sa.spi_in, sa.spi_out),
    };
    let pair = |suite, esn, inward: EspKeys, outward: EspKeys| {
        let one = |source, destination, spi: Spi, keys: &EspKeys| ExportedKey {
            source,
            destination,
            spi: spi.0,
            suite,
            esn,
            cipher: crate::output::hex(keys.cipher.expose()),
            integrity: crate::output::hex(keys.integrity.expose()),
        };
        vec![
            one(sa.remote, sa.local, esp_in, &inward),
            one(sa.local, sa.remote, esp_out, &outward),
        ]
    };
    match (&sa.keys, segment) {
        // AH hides nothing: there is no key to look inside with.
        (GatewayKeys::None | GatewayKeys::Ah(_) | GatewayKeys::AhShared { .. }, _) => Vec::new(),
        (GatewayKeys::Full { peer, .. } | GatewayKeys::EspInAh { peer, .. }, Segment::Core) => {
            pair(peer.suite, peer.esn, peer.keys_in.clone(), peer.keys_out.clone())
        }
        (
            GatewayKeys::Full {
                peer,
                segment_in,
                segment_out,
            }
            | GatewayKeys::EspInAh {
                peer,
                segment_in,
                segment_out,
                ..
            },
            Segment::Access,
        ) => pair(peer.suite, peer.esn, segment_in.clone(), segment_out.clone()),
        (GatewayKeys::Shared { sa }, _) => pair(sa.suite, sa.esn, sa.keys_in.clone(), sa.keys_out.clone()),
        (GatewayKeys::Inspect(keys), _) => {
            let alone = |cipher: &towpath_base::Key| EspKeys {
                cipher: cipher.clone(),
                integrity: towpath_base::Key::EMPTY,
            };
            pair(keys.suite, false, alone(&keys.cipher_in), alone(&keys.cipher_out))
        }
    }
}
