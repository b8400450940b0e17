//! `towpath run`: starts the roles of one process and joins them.
//!
//! | module | what |
//! |---|---|
//! | this one | start-up and the event loop |
//! | [`daemon`] | the roles, and the messages between them |
//! | [`roles`] | keyserver and registry, here or behind channels |
//! | [`node`] | a process without a gateway |
//! | [`answers`], [`ike`] | what the admin socket is told |
//! | [`relay`] | the TCP relay's parameters |
//! | [`flow`] | what it is told of TCP connections |
//! | [`manual`] | manual SAs, policies, captures, exported keys |
//! | [`keylog`] | the debugging aid that writes keys to a file |

mod answers;
mod daemon;
mod flow;
mod ike;
mod keylog;
mod manual;
mod node;
mod relay;
mod roles;

use std::sync::OnceLock;
use std::time::{Duration, Instant as SystemInstant};

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use towpath_afxdp::{PortQueue, Sockets};
use towpath_base::Instant;
use towpath_bpf::{Dataplane, Mode, Options, PortSpec, find_object};
use towpath_channel::Event as LinkEvent;
use towpath_common::abi::Role as PortSide;
use towpath_crypto::SystemRng;
use towpath_gateway::datapath::Datapath;
use towpath_gateway::windows::Windows;
use towpath_gateway::worker::{FromWorker, Parts, Worker};
use towpath_kernel::RawIpSender;
use towpath_store::{Kek, RedbStore};
use towpath_tcp::IsnSecret;
use towpath_telemetry::admin::{AdminServer, Event, EventBus, Request, Responder};
use towpath_telemetry::logging;

use crate::config::{Config, PortRole, Role, XdpMode};
use daemon::Daemon;
use node::Node;
use roles::Roles;

/// Packets the workers may have waiting for the control thread.
const CONTROL_QUEUE: usize = 4096;
/// Requests of the command line that may wait.
const ADMIN_QUEUE: usize = 64;
/// Messages taken in one turn of the loop before timers get their chance.
const TURN: usize = 256;
/// Longest sleep of the loop.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// How long peers are told goodbye after a signal.
const GOODBYE: Duration = Duration::from_millis(200);

/// The process's clock: time since the first call.
fn now() -> Instant {
    static START: OnceLock<SystemInstant> = OnceLock::new();
    let nanos = START.get_or_init(SystemInstant::now).elapsed().as_nanos();
    // From one second on: a zero looks like "never" in too many places.
    Instant::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)) + Duration::from_secs(1)
}

/// Runs the roles of `config` until SIGTERM or SIGINT.
pub(crate) fn run(config: Config) -> Result<()> {
    logging::init(config.log.format, &config.log.filter)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> Result<()> {
    // The socket first: it is also what keeps a second daemon away from the store and the interfaces.
    let admin = AdminServer::bind(&config.admin.socket)
        .with_context(|| format!("admin socket {}", config.admin.socket.display()))?;
    let events = EventBus::new();
    let (to_control, from_workers) = mpsc::channel(CONTROL_QUEUE);
    let keeps = config.runs(Role::Gateway) || config.runs(Role::Registry);
    let store = keeps.then(|| {
        let kek = Kek::load(&config.store.kek_file)?;
        RedbStore::open(&config.store.path, &kek)
    });
    let store = store.transpose()?;
    if !config.runs(Role::Gateway) {
        let node = Node::new(config, store, events.clone()).await?;
        return turns(node, from_workers, admin, events).await;
    }
    let store = store.context("a gateway keeps a store")?;
    let mut dataplane = load_dataplane(&config)?;
    let windows = Windows::open(&config.store.windows()).context("replay windows")?;
    let worker = start_worker(&config, &mut dataplane, to_control, windows.try_clone()?)?;
    let daemon = Daemon::new(config, store, windows, dataplane, worker, events.clone()).await?;
    turns(daemon, from_workers, admin, events).await
}

/// What the event loop drives.
trait Process {
    /// Everything is there: begin.
    fn start(&mut self, now: Instant);
    /// Keyserver, registry and channels.
    fn roles(&mut self) -> &mut Roles;
    /// A message of a worker.
    fn handle_worker(&mut self, now: Instant, message: FromWorker);
    /// A request of the command line.
    async fn handle_admin(&mut self, now: Instant, request: Request, responder: Responder);
    /// Something happened on a channel.
    fn handle_channel(&mut self, now: Instant, event: LinkEvent);
    /// Lets every due timer act.
    fn handle_timeout(&mut self, now: Instant);
    /// When [`Self::handle_timeout`] is next wanted.
    fn poll_timeout(&self) -> Option<Instant>;
    /// Tells the peers that their SAs end.
    fn shutdown(&mut self, now: Instant);
}

/// The event loop.
async fn turns<P: Process>(
    mut process: P,
    mut from_workers: mpsc::Receiver<FromWorker>,
    admin: AdminServer,
    events: EventBus,
) -> Result<()> {
    let (requests, mut inbox) = mpsc::channel(ADMIN_QUEUE);
    process.start(now());
    let mut admin = tokio::spawn(admin.serve(requests, events));
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    notify(&[sd_notify::NotifyState::Ready]);
    tracing::info!("towpath is up");
    loop {
        let sleep = process
            .poll_timeout()
            .map_or(LONGEST_SLEEP, |at| at.saturating_since(now()).min(LONGEST_SLEEP));
        tokio::select! {
            Some(message) = from_workers.recv() => {
                process.handle_worker(now(), message);
                for _ in 0..TURN {
                    let Ok(message) = from_workers.try_recv() else { break };
                    process.handle_worker(now(), message);
                }
            }
            event = process.roles().channel_event() => {
                process.handle_channel(now(), event);
                for _ in 0..TURN {
                    let Some(event) = process.roles().try_channel_event() else { break };
                    process.handle_channel(now(), event);
                }
            }
            Some((request, responder)) = inbox.recv() => process.handle_admin(now(), request, responder).await,
            () = tokio::time::sleep(sleep) => {}
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            ended = &mut admin => {
                ended.context("admin socket")?.context("admin socket")?;
                bail!("the admin socket ended");
            }
        }
        process.handle_timeout(now());
    }
    notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopping: telling the peers; ordinary traffic keeps flowing");
    process.shutdown(now());
    tokio::time::sleep(GOODBYE).await;
    admin.abort();
    Ok(())
}

/// Shows an event to whoever watches, and logs it.
fn publish(events: &EventBus, event: towpath_fabric::Event) {
    let towpath_fabric::Event {
        subscriber,
        terminal,
        peer,
        ike,
        kind,
        text,
    } = event;
    let who = terminal.map_or(String::new(), |terminal| format!(" {terminal}"));
    let whom = peer.map_or(String::new(), |peer| format!(" with {peer}"));
    tracing::info!(target: "towpath::events", "{subscriber}{who}{whom}: {kind}: {text}");
    events.publish(Event {
        subscriber,
        terminal,
        peer,
        ike: ike.map(|spi| format!("{spi:016x}")),
        kind,
        text,
        ..Event::default()
    });
}

/// Tells the service manager, if there is one.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::debug!(%error, "service manager not told");
    }
}

fn load_dataplane(config: &Config) -> Result<Dataplane> {
    let gateway = &config.gateway;
    let object = find_object(gateway.bpf_object.as_deref())?;
    let ports = gateway.port.iter().map(|port| PortSpec {
        name: port.name.clone(),
        role: match port.role {
            PortRole::Access => PortSide::Access,
            PortRole::Core => PortSide::Core,
        },
    });
    let options = Options {
        pin_dir: gateway.pin_dir.clone(),
        reserved_spi: gateway.reserved_spi,
        ports: ports.collect(),
        mode: match gateway.mode {
            XdpMode::Auto => Mode::Auto,
            XdpMode::Native => Mode::Native,
            XdpMode::Generic => Mode::Generic,
        },
    };
    let dataplane = Dataplane::load(&object, &options)?;
    for note in dataplane.notes() {
        tracing::warn!("{note}");
    }
    for port in dataplane.ports() {
        tracing::info!(
            "port {}: {} XDP, {} queue(s){}",
            port.device.name,
            port.mode.name(),
            port.device.queues,
            if port.taken_over {
                ", taken over from a former process"
            } else {
                ""
            },
        );
    }
    Ok(dataplane)
}

fn start_worker(
    config: &Config,
    dataplane: &mut Dataplane,
    control: mpsc::Sender<towpath_gateway::worker::FromWorker>,
    windows: Windows,
) -> Result<Worker> {
    if config.gateway.workers > 1 {
        bail!(
            "gateway.workers is {}, expected 0 or 1: this version runs one worker for all queues",
            config.gateway.workers
        );
    }
    let queues: Vec<PortQueue> = dataplane
        .ports()
        .iter()
        .flat_map(|port| {
            (0..port.device.queues).map(|queue| PortQueue {
                ifindex: port.device.ifindex,
                queue,
            })
        })
        .collect();
    let afxdp = towpath_afxdp::Config {
        frame_size: config.gateway.frame_size,
        frames_per_port: config.gateway.frames,
        ..towpath_afxdp::Config::default()
    };
    let sockets = Sockets::open(&afxdp, &queues)?;
    for note in sockets.notes() {
        tracing::info!("{note}");
    }
    for (port, socket) in sockets.descriptors() {
        dataplane.set_xsk(port.ifindex, port.queue, socket)?;
    }
    let max_sas = usize::try_from(config.gateway.max_sas)?;
    let parts = Parts {
        sockets,
        datapath: Datapath::new(towpath_crypto::AwsLcEsp, max_sas).with_relay(
            relay::config(&config.relay, dataplane),
            IsnSecret::generate(&mut SystemRng),
        ),
        rng: SystemRng,
        kernel: RawIpSender::new(None).context("raw sockets")?,
        control,
        clock: now,
        windows: Some(windows),
    };
    Worker::spawn(parts).context("packet worker")
}
