//! The terminal's place in its host: addresses, sockets, and the way of plain packets to it: a TUN device with routes
//! into it, or the kernel's IPsec.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep};
use towpath_base::selector::Prefix;
use towpath_common::wire::{PORT_IKE, PORT_IKE_NATT};
use towpath_kernel::xfrm::Event;
use towpath_kernel::{
    Addresses, Inbound, MAIN_TABLE, MarkRule, Netlink, NetlinkError, PathErrors, RawIpSender, Route,
    SendError, Tun, XfrmEvents, sysctl, udp_encap,
};
use tracing::{debug, info, warn};

use crate::config::{Action, Backend, ESP_OVERHEAD, LevelConfig, MAX_ADDRESSES, MIN_MTU, TerminalConfig};
use crate::filter::Filter;
use crate::kernel::{Kernel, Shared};

/// How long to wait for the interface's addresses: duplicate address detection takes about two seconds.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(10);

/// Where our rules for marks stand ("tp" in ASCII): before those of the main table.
const RULE_PRIORITY: u32 = 0x7470;

/// The kernel's IPsec in use.
pub(crate) struct InKernel {
    pub(crate) tables: Shared,
    pub(crate) events: AsyncFd<XfrmEvents>,
}

impl std::fmt::Debug for InKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InKernel")
    }
}

/// Everything of the kernel's that the terminal holds. Dropping it undoes it, but for the tables of the kernel's IPsec:
/// [`Host::close`] does that, or the next start.
#[derive(Debug)]
pub(crate) struct Host {
    /// Addresses of the terminal, those of one family in the interface's order.
    pub(crate) addresses: Vec<IpAddr>,
    /// Plain packets, and received ones for the applications; none where the kernel seals and opens.
    pub(crate) tun: Option<AsyncFd<Tun>>,
    /// Plain packets of the levels applications choose.
    pub(crate) levels: Vec<(u8, AsyncFd<Tun>)>,
    /// Keeps clear packets out, where there is a TUN device.
    pub(crate) filter: Option<Filter>,
    /// The kernel's IPsec, where it seals and opens.
    pub(crate) kernel: Option<InKernel>,
    /// Protected packets, key exchange and sealed messages.
    pub(crate) inbound: Vec<AsyncFd<Inbound>>,
    /// What routers say about protected packets; none where the kernel seals, which listens itself.
    errors: Vec<AsyncFd<PathErrors>>,
    /// The way out.
    pub(crate) sender: RawIpSender,
    /// MTU that applications see, bytes: the devices', or the interface's where the kernel seals.
    pub(crate) mtu: u16,
    netlink: Netlink,
    routes: Vec<Route>,
    rules: Vec<MarkRule>,
}

/// The host does not give what the terminal needs.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A netlink request failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A configured address is not on the interface.
    #[error("addresses = {address}: not an address of interface {interface}, which has {found}")]
    NoSuchAddress {
        /// The address.
        address: IpAddr,
        /// The interface.
        interface: String,
        /// Its addresses.
        found: String,
    },
    /// The kernel cannot do what the configuration asks of it.
    #[error("backend = kernel: {0}; `user-space` needs nothing of the kernel's")]
    Kernel(String),
    /// The interface has no address of any use.
    #[error("interface = {0}: has no global address")]
    NoAddress(String),
    /// No policy's peers are of a family the terminal has an address of.
    #[error("policy.peer: none is of the same family as an address of the terminal")]
    NoReachablePeer,
    /// Something could not be opened.
    #[error("{what}: {error}")]
    Io {
        /// What.
        what: String,
        /// Why.
        error: io::Error,
    },
}

fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> HostError {
    let what = what.into();
    |error| HostError::Io { what, error }
}

/// Watches a descriptor, inside a tokio runtime.
#[expect(
    deprecated,
    reason = "sound for owners of one descriptor, which all of ours are; the replacement is unsafe"
)]
fn registered<T: AsRawFd>(owner: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(owner, Interest::READABLE)
}

impl Host {
    /// Takes what `config` names, inside a tokio runtime. On an error nothing is left behind.
    pub(crate) async fn open(config: &TerminalConfig) -> Result<Self, HostError> {
        let device = config.interface.as_str();
        let netlink = Netlink::connect().map_err(io_error("netlink"))?;
        let link = netlink.link(device).await?;
        let addresses = addresses(&netlink, link.index, config).await?;
        warn_of_source_validation(device);

        let xfrm = match (config.backend, Kernel::usable()) {
            (Backend::UserSpace, _) => None,
            (_, Ok(xfrm)) => Some(xfrm),
            (Backend::Auto, Err(lacking)) => {
                info!(kernel = lacking, "packets are sealed and opened in user space");
                None
            }
            (Backend::Kernel, Err(lacking)) => return Err(HostError::Kernel(lacking)),
        };

        let (mut inbound, mut errors) = (Vec::new(), Vec::new());
        for &address in &addresses {
            let mut add = |what: String, socket: io::Result<Inbound>| {
                let what = format!("{what} of {address} on {device}");
                let socket = socket.map_err(io_error(what.clone()))?;
                inbound.push(registered(socket).map_err(io_error(what))?);
                Ok::<_, HostError>(())
            };
            if xfrm.is_none() {
                add("ESP".to_owned(), Inbound::esp(address, device))?;
                let what = format!("ICMP of {address} on {device}");
                let socket = PathErrors::open(address, device).and_then(registered);
                errors.push(socket.map_err(io_error(what))?);
            }
            for port in [PORT_IKE, PORT_IKE_NATT] {
                let socket = Inbound::udp(address, port, device).and_then(|socket| {
                    if port == PORT_IKE_NATT && xfrm.is_some() {
                        udp_encap::enable(&socket)?;
                    }
                    Ok(socket)
                });
                add(format!("UDP port {port}"), socket)?;
            }
        }
        let sender = RawIpSender::new(Some(device)).map_err(io_error("raw socket"))?;

        let mut host = Self {
            addresses,
            tun: None,
            levels: Vec::new(),
            filter: None,
            kernel: None,
            inbound,
            errors,
            sender,
            mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
            netlink,
            routes: Vec::new(),
            rules: Vec::new(),
        };
        match xfrm {
            Some(xfrm) => {
                let what = "the kernel's IPsec";
                // Before the policies: what they hold back is asked for.
                let events = XfrmEvents::open().and_then(registered).map_err(io_error(what))?;
                let tables = Kernel::open(xfrm, config, &host.addresses).map_err(io_error(what))?;
                let tables = Rc::new(RefCell::new(tables));
                host.kernel = Some(InKernel { tables, events });
                info!("packets are sealed and opened by the kernel");
            }
            None => host.open_device(config, link.mtu).await?,
        }
        Ok(host)
    }

    /// Makes the TUN device and the routes into it, and keeps out what should not arrive in clear.
    async fn open_device(&mut self, config: &TerminalConfig, link_mtu: u32) -> Result<(), HostError> {
        let room = link_mtu
            .saturating_sub(u32::from(ESP_OVERHEAD))
            .max(u32::from(MIN_MTU));
        self.mtu = config.mtu.unwrap_or(u16::try_from(room).unwrap_or(u16::MAX));
        let what = format!("TUN device {}", config.tun);
        let tun = Tun::create(&config.tun, self.mtu).map_err(io_error(what.clone()))?;
        let routes = routes(config, &self.addresses, tun.index(), None);
        self.tun = Some(registered(tun).map_err(io_error(what))?);
        if routes.is_empty() {
            return Err(HostError::NoReachablePeer);
        }
        self.add_routes(routes, &config.tun).await?;
        for level in &config.levels {
            self.open_level(config, level).await?;
        }
        if config.inbound_filter {
            match Filter::install(&config.interface, &config.policies, &self.addresses) {
                Ok(filter) => self.filter = Some(filter),
                Err(error) => warn!(%error, "packets that arrive in clear are not dropped"),
            }
        }
        Ok(())
    }

    async fn add_routes(&mut self, routes: Vec<Route>, device: &str) -> Result<(), HostError> {
        for route in routes {
            self.netlink.add_route(&route).await?;
            info!(to = %route.destination, source = %route.source, device, "route");
            self.routes.push(route);
        }
        Ok(())
    }

    /// Makes the TUN device of a level, and leads packets with its mark there.
    async fn open_level(&mut self, config: &TerminalConfig, level: &LevelConfig) -> Result<(), HostError> {
        let name = config.tun_of(level);
        let what = format!("TUN device {name}");
        let tun = Tun::create(&name, self.mtu).map_err(io_error(what.clone()))?;
        let routes = routes(config, &self.addresses, tun.index(), Some(level.level));
        self.levels
            .push((level.level, registered(tun).map_err(io_error(what))?));
        self.add_routes(routes, &name).await?;
        let (mark, mask) = level.mark();
        for v4 in [true, false] {
            if !self.addresses.iter().any(|address| address.is_ipv4() == v4) {
                continue;
            }
            let rule = MarkRule {
                v4,
                mark,
                mask,
                table: table_of(level.level),
                priority: RULE_PRIORITY,
            };
            // Of a killed process; usually there is none.
            let _ = self.netlink.remove_rule(&rule).await;
            self.netlink.add_rule(&rule).await?;
            self.rules.push(rule);
        }
        info!(
            level = level.level,
            mark = format!("{mark:#x}/{mask:#x}"),
            device = name,
            "level"
        );
        Ok(())
    }

    /// Waits until there is something to receive. Cancelling loses nothing.
    pub(crate) async fn readable(&self) {
        poll_fn(|cx| {
            // All are asked, so that all wake us.
            let inbound = self
                .inbound
                .iter()
                .filter(|socket| socket.poll_read_ready(cx).is_ready())
                .count();
            let errors = self.errors.iter();
            let errors = errors
                .filter(|socket| socket.poll_read_ready(cx).is_ready())
                .count();
            let plain = self.tun.iter().chain(self.levels.iter().map(|(_, tun)| tun));
            let plain = plain.filter(|tun| tun.poll_read_ready(cx).is_ready()).count();
            let kernel = self.kernel.iter();
            let kernel = kernel
                .filter(|kernel| kernel.events.poll_read_ready(cx).is_ready())
                .count();
            if inbound + errors + plain + kernel > 0 {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// The sensitivity levels packets come from, by number for [`Host::recv_plain`].
    pub(crate) fn sources(&self) -> usize {
        self.tun.iter().len() + self.levels.len()
    }

    /// One plain packet of this host from source `index` into `buffer`: its level and length. `None` when there is none.
    ///
    /// # Errors
    /// The device is gone.
    pub(crate) fn recv_plain(
        &self,
        index: usize,
        buffer: &mut [u8],
    ) -> Result<Option<(u8, usize)>, HostError> {
        let first = self.tun.iter().map(|tun| (0, tun));
        let others = self.levels.iter().map(|(level, tun)| (*level, tun));
        let Some((level, tun)) = first.chain(others).nth(index) else {
            return Ok(None);
        };
        match tun.try_io(Interest::READABLE, |tun| tun.recv(buffer)) {
            Ok(len) => Ok(Some((level, len))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(io_error(format!("TUN device {}", tun.get_ref().name()))(error)),
        }
    }

    /// Gives a plain packet to this host's applications.
    pub(crate) fn deliver(&self, packet: &[u8]) -> io::Result<()> {
        match &self.tun {
            Some(tun) => tun.get_ref().send(packet),
            // The kernel delivers by itself; what it leaves to us is for the core.
            None => Ok(()),
        }
    }

    /// What the kernel's IPsec asks for and tells; `None` when there is nothing.
    pub(crate) fn kernel_events(&self) -> Option<Vec<Event>> {
        let kernel = self.kernel.as_ref()?;
        match kernel.events.try_io(Interest::READABLE, XfrmEvents::recv) {
            Ok(events) => Some(events),
            Err(error) => {
                if error.kind() != io::ErrorKind::WouldBlock {
                    debug!(%error, "events of the kernel's IPsec");
                }
                None
            }
        }
    }

    /// One packet from the wire, from socket `index`, into `buffer`; `None` when there is none.
    pub(crate) fn recv_network(&self, index: usize, buffer: &mut [u8]) -> Option<usize> {
        let socket = self.inbound.get(index)?;
        match socket.try_io(Interest::READABLE, |socket| socket.recv(buffer)) {
            Ok(len) => Some(len),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            Err(error) => {
                // What a socket reports this way (interface down, say) it reports once.
                debug!(%error, "receiving");
                None
            }
        }
    }

    /// One "too big" from a router into `buffer`; `None` when there is none.
    pub(crate) fn recv_error(&self, buffer: &mut [u8]) -> Option<usize> {
        self.errors.iter().find_map(|socket| {
            // The next one is asked in the next turn, too.
            socket
                .try_io(Interest::READABLE, |socket| socket.recv(buffer))
                .ok()
        })
    }

    /// Sends a UDP datagram from one of the terminal's addresses and ports.
    pub(crate) fn send_datagram(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        payload: &[u8],
    ) -> Result<(), SendError> {
        let socket = self
            .inbound
            .iter()
            .map(AsyncFd::get_ref)
            .find(|socket| socket.local() == source);
        socket.ok_or(SendError::NoRoute)?.send_to(payload, destination)
    }

    /// Takes routes, SAs and policies back, so that what follows leaves in clear as before. The rest goes with the drop.
    pub(crate) async fn close(self) {
        if let Some(kernel) = &self.kernel {
            kernel.tables.borrow_mut().close();
        }
        for rule in &self.rules {
            if let Err(error) = self.netlink.remove_rule(rule).await {
                warn!(%error, "cleaning up");
            }
        }
        for route in &self.routes {
            if let Err(error) = self.netlink.remove_route(route).await {
                warn!(%error, "cleaning up");
            }
        }
    }
}

/// The configured addresses once they are usable, or all of the interface's.
async fn addresses(netlink: &Netlink, index: u32, config: &TerminalConfig) -> Result<Vec<IpAddr>, HostError> {
    let deadline = Instant::now() + ADDRESS_PATIENCE;
    loop {
        let found = netlink.global_addresses(index).await?;
        let wanted = if config.addresses.is_empty() {
            &found.usable
        } else {
            &config.addresses
        };
        let missing = wanted.iter().find(|address| !found.usable.contains(address));
        let pending = match missing {
            Some(address) => found.tentative.contains(address),
            None => config.addresses.is_empty() && !found.tentative.is_empty(),
        };
        if pending && Instant::now() < deadline {
            sleep(Duration::from_millis(100)).await;
            continue;
        }
        if let Some(&address) = missing {
            let interface = config.interface.clone();
            return Err(HostError::NoSuchAddress {
                address,
                interface,
                found: shown(&found),
            });
        }
        if wanted.is_empty() {
            return Err(HostError::NoAddress(config.interface.clone()));
        }
        if wanted.len() > MAX_ADDRESSES {
            warn!(
                used = MAX_ADDRESSES,
                found = wanted.len(),
                "more addresses than a terminal registers"
            );
        }
        return Ok(wanted.iter().copied().take(MAX_ADDRESSES).collect());
    }
}

fn shown(addresses: &Addresses) -> String {
    let all: Vec<String> = addresses
        .usable
        .iter()
        .chain(&addresses.tentative)
        .map(IpAddr::to_string)
        .collect();
    if all.is_empty() {
        "none".to_owned()
    } else {
        all.join(", ")
    }
}

/// The table of a level's routes ("tp" in ASCII, and the level).
const fn table_of(level: u8) -> u32 {
    0x7470_0000 | level as u32
}

/// One route per prefix that is protected or discarded: what is bypassed inside one of them comes back out of
/// the core in clear. With `level`: the routes packets of that level look at first.
fn routes(config: &TerminalConfig, addresses: &[IpAddr], interface: u32, level: Option<u8>) -> Vec<Route> {
    let mut routes: BTreeMap<Prefix, Route> = BTreeMap::new();
    for policy in config
        .policies
        .iter()
        .filter(|policy| policy.action != Action::Bypass && policy.level.filter(|level| *level != 0) == level)
    {
        let destination = policy.peer;
        let family = destination.address().is_ipv4();
        match addresses.iter().find(|address| address.is_ipv4() == family) {
            Some(&source) => {
                routes.insert(
                    destination,
                    Route {
                        destination,
                        interface,
                        source,
                        table: level.map_or(MAIN_TABLE, table_of),
                    },
                );
            }
            None => warn!(peer = %destination, "no address of this family: the policy has no effect"),
        }
    }
    routes.into_values().collect()
}

/// ESP of a peer whose route points into the TUN device fails strict source validation where it arrives.
fn warn_of_source_validation(device: &str) {
    if sysctl::source_validation(device).is_ok_and(|mode| mode == 1) {
        warn!(
            interface = device,
            "strict source validation drops ESP of IPv4 peers here; \
             set net.ipv4.conf.{device}.rp_filter to 2 (loose)"
        );
    }
}
