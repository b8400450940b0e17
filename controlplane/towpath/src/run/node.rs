//! A process without a gateway: keyserver, registry or both, for gateways on other machines.

use towpath_base::{DropReason, Instant};
use towpath_channel::Event as LinkEvent;
use towpath_fabric::{FromKeyserver, FromRegistry};
use towpath_gateway::worker::FromWorker;
use towpath_ike::IkeState;
use towpath_store::RedbStore;
use towpath_telemetry::admin::{AdminError, ErrorKind, EventBus, Reply, Request, Responder, Stats, Status};

use super::Process;
use super::answers::control_drops;
use super::roles::{FromRoles, Roles};
use crate::config::Config;

/// Everything that runs here.
pub(super) struct Node {
    config: Config,
    roles: Roles,
    started: Instant,
    refused: [u64; DropReason::COUNT],
    events: EventBus,
}

impl Node {
    pub(super) async fn new(
        config: Config,
        store: Option<RedbStore>,
        events: EventBus,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            roles: Roles::new(&config, store).await?,
            config,
            started: super::now(),
            refused: [0; DropReason::COUNT],
            events,
        })
    }

    /// Nobody is here to be told but people.
    fn settle(&mut self, now: Instant) {
        self.roles.settle(now);
        while let Some(message) = self.roles.poll_gateway() {
            let refused = match message {
                FromRoles::Keyserver(_, FromKeyserver::Event(event))
                | FromRoles::Registry(FromRegistry::Event(event)) => {
                    super::publish(&self.events, event);
                    None
                }
                FromRoles::Keyserver(_, FromKeyserver::Refused(code)) => code.reason(),
                _ => None,
            };
            if let Some(count) = refused.and_then(|reason| self.refused.get_mut(reason as usize)) {
                *count += 1;
            }
        }
    }

    fn answer(&mut self, now: Instant, request: Request) -> Result<Reply, AdminError> {
        match request {
            Request::Status => Ok(self.status(now)),
            Request::IkeList => Ok(Reply::IkeList(self.roles.ike_sas(now))),
            Request::Ike(request) => {
                let keys = self.config.debug.key_log.is_some();
                self.roles.answer_ike(now, request, keys)
            }
            Request::Subscriber(request) => self.roles.subscriber(now, request),
            Request::Stats => Ok(Reply::Stats(Stats {
                counters: control_drops(&self.refused).collect(),
            })),
            // The server itself has them.
            Request::Events | Request::Recent => Ok(Reply::Events),
            _ => {
                let message = "no gateway runs in this process: ask on the machine where it does";
                Err(AdminError::new(ErrorKind::NotFound, message))
            }
        }
    }

    fn status(&self, now: Instant) -> Reply {
        let sas = self.roles.keyserver.as_ref();
        let all = sas.map_or(0, |keyserver| keyserver.ike_sas(now).count() as u64);
        let established = sas.map_or(0, |keyserver| {
            let established = |info: &towpath_ike::IkeSaInfo| info.state == IkeState::Established;
            keyserver.ike_sas(now).filter(established).count() as u64
        });
        let registry = self.roles.registry.as_ref();
        Reply::Status(Status {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_seconds: now.saturating_since(self.started).as_secs(),
            roles: self.config.roles.iter().map(|role| role.name().into()).collect(),
            ports: Vec::new(),
            workers: 0,
            subscribers: registry.map_or(0, towpath_registry::Registry::subscribers),
            registered: registry.map_or(0, towpath_registry::Registry::registered),
            ike_sas: established,
            ike_half_open: all - established,
            child_sas: sas.map_or(0, |keyserver| keyserver.child_sas().count() as u64),
        })
    }
}

impl Process for Node {
    fn start(&mut self, now: Instant) {
        self.settle(now);
    }

    fn roles(&mut self) -> &mut Roles {
        &mut self.roles
    }

    fn handle_worker(&mut self, _now: Instant, _message: FromWorker) {}

    async fn handle_admin(&mut self, now: Instant, request: Request, responder: Responder) {
        let answer = self.answer(now, request);
        self.settle(now);
        responder.respond(answer);
    }

    fn handle_channel(&mut self, now: Instant, event: LinkEvent) {
        self.roles.handle_channel(now, event);
        self.settle(now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.roles.handle_timeout(now);
        self.settle(now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.roles.poll_timeout()
    }

    fn shutdown(&mut self, now: Instant) {
        self.roles.shutdown(now);
        self.settle(now);
    }
}
