//! The loop's body: hands packets to the core and does what the core says.

use std::time::{Duration, Instant as Clock};

use tokio::time::Instant as Deadline;
use towpath_base::crypto::Rng;
use towpath_base::packet::PacketBuf;
use towpath_base::{DropReason, Instant, SubscriberHandle};
use towpath_kernel::SendError;
use towpath_kernel::xfrm::Event as KernelEvent;
use towpath_terminal_core::{
    Action as CoreAction, Addresses, BUFFER_HEADROOM, BUFFER_TAILROOM, Command, Config, Core, Disposition,
    Event, Flow, Policy, ReservedSpi, Timing, Transmit, fragments,
};
use tracing::{debug, info, warn};
use zeroize::Zeroize;

use crate::RunError;
use crate::config::{Action, Ksub, MAX_POLICIES, TerminalConfig};
use crate::filter::Filter;
use crate::host::{Host, HostError};
use crate::kernel::{Kernel, Provider};
use crate::key_log;
use crate::state::StateFile;
use crate::status::{SaStatus, Status};

/// SA pairs a terminal holds, replaced ones that still receive included.
const MAX_SAS: usize = 64;
/// Bytes of packets that wait for their SAs.
const HOLD: usize = 256 * 1024;
/// Packets taken from one source before the next has its turn.
const BATCH: usize = 64;
/// How often the kernel is asked what passed on its SAs, and how often while one waits for the peer to use it.
const ACTIVITY: Duration = Duration::from_secs(2);
const ACTIVITY_STANDBY: Duration = Duration::from_millis(200);
/// Largest IP packet.
const MAX_PACKET: usize = 65535;

/// Randomness of the operating system.
struct SystemRng;

impl Rng for SystemRng {
    fn fill(&mut self, bytes: &mut [u8]) {
        if let Err(error) = getrandom::fill(bytes) {
            // Nothing can be protected without, and to go on with a guess would protect nothing.
            bytes.zeroize();
            panic!("the system has no randomness: {error}");
        }
    }
}

/// The core with its surroundings.
pub(crate) struct Driver<'c> {
    config: &'c TerminalConfig,
    host: Host,
    state: StateFile,
    core: Box<Core<Provider, MAX_POLICIES, MAX_SAS, HOLD>>,
    started: Clock,
    /// When the kernel is asked next.
    ask_kernel_at: Option<Clock>,
    buffer: Box<[u8]>,
    unsent: Unsent,
}

/// Packets the kernel did not take.
#[derive(Debug, Default)]
struct Unsent {
    no_route: u64,
    too_big: u64,
    queue_full: u64,
    other: u64,
}

impl Unsent {
    fn count(&mut self, error: &SendError) {
        match error {
            SendError::NoRoute => self.no_route += 1,
            SendError::TooBig => self.too_big += 1,
            SendError::WouldBlock => self.queue_full += 1,
            SendError::Malformed | SendError::Io(_) => self.other += 1,
        }
        debug!(%error, "a packet was not sent");
    }
}

impl<'c> Driver<'c> {
    pub(crate) fn new(
        config: &'c TerminalConfig,
        ksub: &Ksub,
        host: Host,
        state: StateFile,
        counter: u64,
    ) -> Result<Self, RunError> {
        let policies: Vec<Policy> = config
            .policies
            .iter()
            .map(|policy| Policy {
                remote: policy.remote_selector(),
                first_local_port: policy.local_ports.first,
                last_local_port: policy.local_ports.last,
                level: policy.level,
                action: match policy.action {
                    Action::Protect => CoreAction::Protect { peer: policy.gateway },
                    Action::Bypass => CoreAction::Bypass,
                    Action::Discard => CoreAction::Discard,
                },
            })
            .collect();
        let core_config = Config {
            subscriber: SubscriberHandle(config.handle),
            ksub: ksub.key().clone(),
            addresses: Addresses::of(host.addresses.iter().copied()),
            reserved: ReservedSpi(config.reserved_spi),
            counter,
            timing: Timing::default(),
        };
        let tables = host.kernel.as_ref().map(|kernel| kernel.tables.clone());
        let mut core = Box::new(Core::new(Provider(tables), core_config, &policies)?);
        if config.debug_key_log.is_some() {
            core.danger_set_key_tap(key_log::tap);
        }
        let buffer = vec![0; BUFFER_HEADROOM + MAX_PACKET + BUFFER_TAILROOM].into_boxed_slice();
        let unsent = Unsent::default();
        Ok(Self {
            config,
            host,
            state,
            core,
            started: Clock::now(),
            ask_kernel_at: None,
            buffer,
            unsent,
        })
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    pub(crate) const fn host(&self) -> &Host {
        &self.host
    }

    /// When [`Driver::timeout`] is due.
    pub(crate) fn deadline(&self) -> Option<Deadline> {
        let core = self.core.poll_timeout();
        let core = core.and_then(|(at, _)| self.started.checked_add(Duration::from_nanos(at.as_nanos())));
        let at = core.into_iter().chain(self.ask_kernel_at).min()?;
        Some(Deadline::from_std(at))
    }

    pub(crate) fn timeout(&mut self) -> Result<(), RunError> {
        self.core.handle_timeout(self.now());
        if self.ask_kernel_at.is_some_and(|at| at <= Clock::now()) {
            self.ask_kernel();
        }
        self.flush()
    }

    /// Tells the core what passed on the kernel's SAs.
    fn ask_kernel(&mut self) {
        let now = self.now();
        let Some(kernel) = &self.host.kernel else {
            return;
        };
        let activity = kernel.tables.borrow_mut().activity();
        for sa in activity {
            self.core.used(now, &sa.name, sa.sent, sa.received);
        }
        self.ask_kernel_at = None;
    }

    /// Makes the kernel's tables what the core's are.
    fn settle_kernel(&mut self) {
        let Some(kernel) = &self.host.kernel else {
            return;
        };
        kernel.tables.borrow_mut().settle(self.core.sas());
        let pause = if self.core.sas().any(|sa| sa.standby) {
            Some(ACTIVITY_STANDBY)
        } else {
            self.core.sas().next().map(|_| ACTIVITY)
        };
        let at = pause.map(|pause| Clock::now() + pause);
        // Sooner than planned, never later.
        self.ask_kernel_at = match (self.ask_kernel_at, at) {
            (Some(planned), Some(at)) => Some(planned.min(at)),
            (_, at) => at,
        };
    }

    /// Packets that wait for SAs, and limits, as the kernel reports them.
    fn receive_kernel(&mut self) {
        let now = self.now();
        for _ in 0..BATCH {
            let Some(events) = self.host.kernel_events() else {
                return;
            };
            for event in events {
                self.kernel_event(now, event);
            }
        }
    }

    fn kernel_event(&mut self, now: Instant, event: KernelEvent) {
        match event {
            KernelEvent::Acquire {
                source,
                destination,
                protocol,
                source_port,
                destination_port,
                reqid,
            } => {
                let flow = Flow {
                    source,
                    destination,
                    protocol,
                    source_port: Some(source_port),
                    destination_port: Some(destination_port),
                };
                let Some(level) = Kernel::level_of(reqid) else {
                    return;
                };
                if let Err(reason) = self.core.acquire(now, source, destination, level, &flow) {
                    debug!(%destination, reason = reason.name(), "a packet's SA is not asked for");
                }
            }
            KernelEvent::Expire { state, hard } => {
                let tables = self.host.kernel.as_ref();
                let name = tables.and_then(|kernel| kernel.tables.borrow().name_of(&state));
                if let Some(name) = name {
                    self.core.limit_reached(now, &name, hard);
                }
            }
        }
    }

    /// Takes what has arrived, a batch from each source.
    pub(crate) fn receive(&mut self) -> Result<(), RunError> {
        for source in 0..self.host.sources() {
            for _ in 0..BATCH {
                if !self.receive_plain(source)? {
                    break;
                }
            }
        }
        self.receive_kernel();
        for _ in 0..BATCH {
            if !self.receive_error() {
                break;
            }
        }
        for index in 0..self.host.inbound.len() {
            for _ in 0..BATCH {
                if !self.receive_network(index) {
                    break;
                }
            }
        }
        self.flush()
    }

    fn receive_plain(&mut self, source: usize) -> Result<bool, HostError> {
        let now = self.now();
        let room = self.buffer.get_mut(BUFFER_HEADROOM..).unwrap_or_default();
        let Some((level, len)) = self.host.recv_plain(source, room)? else {
            return Ok(false);
        };
        if let Some(mut packet) = PacketBuf::new(&mut self.buffer, BUFFER_HEADROOM, len) {
            let rng = &mut SystemRng;
            let disposition = self.core.handle_plain_at(now, level, &mut packet, rng);
            dispose(&self.host, &mut self.unsent, disposition, packet.bytes());
        }
        Ok(true)
    }

    fn receive_network(&mut self, index: usize) -> bool {
        let now = self.now();
        let room = self.buffer.get_mut(BUFFER_HEADROOM..).unwrap_or_default();
        let Some(len) = self.host.recv_network(index, room) else {
            return false;
        };
        if let Some(mut packet) = PacketBuf::new(&mut self.buffer, BUFFER_HEADROOM, len) {
            let disposition = self.core.handle_network(now, &mut packet);
            dispose(&self.host, &mut self.unsent, disposition, packet.bytes());
        }
        true
    }

    fn receive_error(&mut self) -> bool {
        let now = self.now();
        let Some(len) = self.host.recv_error(&mut self.buffer) else {
            return false;
        };
        let packet = self.buffer.get(..len).unwrap_or_default();
        self.core.handle_error(now, packet);
        true
    }

    /// Sends and does what the core wants sent and done.
    pub(crate) fn flush(&mut self) -> Result<(), RunError> {
        loop {
            self.settle_kernel();
            self.transmit();
            let mut persisted = false;
            while let Some(command) = self.core.poll_command() {
                match command {
                    Command::Persist(mark) => {
                        self.state.store(mark)?;
                        self.core.persisted(mark);
                        persisted = true;
                    }
                    Command::Tell(event) => tell(&event),
                }
            }
            // What waited for the mark can go now.
            if !persisted {
                return Ok(());
            }
        }
    }

    fn transmit(&mut self) {
        let now = self.now();
        while let Some(transmit) = self.core.poll_transmit(now, &mut self.buffer, &mut SystemRng) {
            match transmit {
                Transmit::Packet(packet) => {
                    if let Err(error) = self.host.sender.send(packet.bytes()) {
                        self.unsent.count(&error);
                    }
                }
                Transmit::Datagram {
                    source,
                    destination,
                    payload,
                } => {
                    debug!(%source, %destination, bytes = payload.len(), "message to the network");
                    if let Err(error) = self.host.send_datagram(source, destination, payload) {
                        // Rare and never in bursts: the core waits longer after each.
                        warn!(%destination, %error, "message to the network not sent");
                        self.unsent.count(&error);
                    }
                }
            }
        }
    }

    /// Tells the network that the terminal leaves, and takes everything down.
    pub(crate) async fn close(mut self) {
        if let Some((source, destination, len)) = self.core.leave(&mut self.buffer, &mut SystemRng)
            && let Some(payload) = self.buffer.get(..len)
            && let Err(error) = self.host.send_datagram(source, destination, payload)
        {
            debug!(%error, "the network was not told that the terminal leaves");
        }
        self.host.close().await;
    }

    pub(crate) fn status(&mut self) -> Status {
        self.ask_kernel();
        let Unsent {
            no_route,
            too_big,
            queue_full,
            other,
        } = self.unsent;
        let unsent = [
            ("no_route", no_route),
            ("too_big", too_big),
            ("queue_full", queue_full),
            ("other", other),
        ]
        .map(|(name, count)| (format!("unsent.{name}"), count));
        let drops = DropReason::ALL.iter().map(|reason| {
            (
                format!("drop.{}", reason.name()),
                u64::from(self.core.drops(*reason)),
            )
        });
        let clear = self.host.filter.as_ref().and_then(Filter::dropped);
        let clear = clear.map(|packets| ("drop.clear_inbound".to_owned(), packets));
        Status {
            name: self.config.name.clone(),
            handle: self.config.handle,
            interface: self.config.interface.clone(),
            backend: if self.host.kernel.is_some() {
                "kernel"
            } else {
                "user-space"
            }
            .into(),
            tun: if self.host.kernel.is_some() {
                String::new()
            } else {
                self.config.tun.clone()
            },
            mtu: self.host.mtu,
            addresses: self.host.addresses.clone(),
            registered: self.core.is_registered(),
            uptime_seconds: self.started.elapsed().as_secs(),
            held: self.core.held() as u64,
            sas: self.core.sas().map(|sa| self.sa_status(&sa)).collect(),
            counters: drops
                .chain(unsent)
                .chain(clear)
                .filter(|(_, count)| *count > 0)
                .collect(),
        }
    }
}

impl Driver<'_> {
    /// An SA of the core's, with the kernel's figures where the packets pass there.
    fn sa_status(&self, sa: &towpath_terminal_core::SaStatus) -> SaStatus {
        let mut status = SaStatus::from(sa);
        let tables = self.host.kernel.as_ref().map(|kernel| kernel.tables.borrow());
        if let Some((received, sent)) = tables.and_then(|tables| tables.usage(&sa.name)) {
            (status.packets_in, status.bytes_in) = (received.packets, received.bytes);
            (status.packets_out, status.bytes_out) = (sent.packets, sent.bytes);
        }
        status
    }
}

fn dispose(host: &Host, unsent: &mut Unsent, disposition: Disposition, packet: &[u8]) {
    match disposition {
        Disposition::Transmit => {
            if let Err(error) = host.sender.send(packet) {
                unsent.count(&error);
            }
        }
        Disposition::Cut(mtu) => {
            if let Err(error) = send_in_pieces(host, packet, mtu) {
                unsent.count(&error);
            }
        }
        Disposition::Deliver => {
            if let Err(error) = host.deliver(packet) {
                unsent.count(&SendError::from(error));
            }
        }
        Disposition::Consumed | Disposition::Drop(_) => {}
    }
}

/// Sends a sealed packet in fragments of at most `mtu` bytes.
fn send_in_pieces(host: &Host, packet: &[u8], mtu: u16) -> Result<(), SendError> {
    // A name nobody can guess: whoever could would spoil the datagram (RFC 7739).
    let mut name = [1; 4];
    SystemRng.fill(&mut name);
    let mut packet = packet.to_vec();
    if let [0x40..=0x4f, _, _, _, id @ .., _, _] = packet.get_mut(..8).unwrap_or_default()
        && id == [0; 2]
    {
        // The kernel would give each fragment a name of its own.
        id.copy_from_slice(&[name[0], name[1] | 1]);
    }
    let mut fragments = fragments(&packet, mtu, u32::from_ne_bytes(name)).map_err(|_| SendError::TooBig)?;
    let mut piece = vec![0; mtu.into()];
    while let Some(len) = fragments.write_next(&mut piece) {
        host.sender.send(piece.get(..len).unwrap_or_default())?;
    }
    Ok(())
}

/// One line of log per event.
fn tell(event: &Event) {
    match event {
        Event::Registered { lifetime_seconds } => info!(lifetime_seconds, "registered"),
        Event::RegistrationExpired => warn!("registration expired: the network did not answer"),
        Event::NetworkRestarted => warn!("the network lost its state: every SA was given up"),
        Event::Requesting { peer, attempt } => info!(%peer, attempt, "requesting SA"),
        Event::Refused {
            peer,
            reason: Some(reason),
        } => warn!(%peer, ?reason, "request refused"),
        Event::Refused { peer, reason: None } => warn!(%peer, "request unanswered"),
        Event::Installed {
            name,
            class,
            level,
            suite,
            mode,
            encap,
            rekey,
        } => info!(
            local = %name.local,
            peer = %name.remote,
            spi_in = %name.spi_in,
            spi_out = %name.spi_out,
            %suite,
            %mode,
            %class,
            level,
            udp_encapsulated = encap,
            rekey,
            "SA installed"
        ),
        Event::Deleted(name) => info!(peer = %name.remote, spi_in = %name.spi_in, "SA deleted"),
        Event::Expired(name) => info!(peer = %name.remote, spi_in = %name.spi_in, "SA expired"),
    }
}
