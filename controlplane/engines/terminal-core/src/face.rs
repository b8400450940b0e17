//! The face of the terminal core, and the packet path.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use towpath_base::crypto::{EspProvider, Rng};
use towpath_base::packet::PacketBuf;
use towpath_base::sa::{ChildSa, Class, EspSuite, Mode};
use towpath_base::{DropReason, Instant};
use towpath_common::wire::{NON_ESP_MARKER_LEN, PORT_IKE, PORT_IKE_NATT, protocol};
use towpath_ipsec::Flow;
use towpath_ipsec::locate::{self, Carried};
use towpath_keyx::SessionKeys;
use towpath_keyx::frame::ReservedSpi;
use towpath_keyx::message::SaName;
use towpath_keyx::registration::Addresses;

use crate::command::{Command, Event, Events, Timer};
use crate::config::{Config, InvalidConfig, Timing};
use crate::control::{Acks, Outgoing};
use crate::enrolment::Enrolment;
use crate::headers;
use crate::hold::HoldQueue;
use crate::paths;
use crate::policy::{Action, Policy, Spd, Towards};
use crate::request::Requests;
use crate::sad::{Due, Sad};

/// Room every packet needs in front of it: outer IPv6 header, UDP, ESP header, IV, and what [`Core::handle_esp`] adds.
pub const BUFFER_HEADROOM: usize = 128;
/// Room every packet needs behind it: padding, ESP trailer, ICV.
pub const BUFFER_TAILROOM: usize = 64;

/// Where a registration is sent when no policy names an address of the family: the gateway takes it whatever it
/// says (addresses for documentation, RFC 5737 and RFC 3849: nobody is there).
const NOWHERE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const NOWHERE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// What to do with a packet that was handed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// The buffer holds an IP packet for the network: sealed, or in clear because policy says so.
    Transmit,
    /// The buffer holds a plain IP packet for the applications: one that arrived, or what the sender of one that does not
    /// fit the path is told.
    Deliver,
    /// As [`Disposition::Transmit`], in fragments of at most this many bytes: the path takes no more.
    Cut(u16),
    /// Taken over: held until its SA is there, or a message for the core. The buffer is free.
    Consumed,
    /// Dropped and counted.
    Drop(DropReason),
}

/// Something to send, in the buffer given to [`Core::poll_transmit`].
#[derive(Debug)]
pub enum Transmit<'b> {
    /// A whole IP packet.
    Packet(PacketBuf<'b>),
    /// A UDP datagram.
    Datagram {
        /// One of the terminal's addresses, port 500.
        source: SocketAddr,
        /// A peer, port 500. The gateway takes it on the way.
        destination: SocketAddr,
        /// UDP payload.
        payload: &'b [u8],
    },
}

/// What a key tap is shown.
#[derive(Debug)]
pub enum Secret<'a> {
    /// Keys of an SA that is being installed.
    Sa(&'a ChildSa),
    /// Keys of a new session.
    Session(&'a SessionKeys),
}

/// Called with every secret: for laboratory tests that search captures for keys. Never in service.
pub type KeyTap = fn(&Secret<'_>);

/// One SA, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SaStatus {
    /// Addresses and SPIs.
    pub name: SaName,
    /// What the gateway may do with it.
    pub class: Class,
    /// Sensitivity level of its packets.
    pub level: u8,
    /// Algorithms.
    pub suite: EspSuite,
    /// Transport or tunnel.
    pub mode: Mode,
    /// UDP-encapsulated.
    pub encap: bool,
    /// Replaced by a newer one: receives, does not send.
    pub replaced: bool,
    /// Receives already; the one it replaces sends until the peer is known to have this one.
    pub standby: bool,
    /// Packets sent.
    pub packets_out: u64,
    /// Bytes sent: plain IP packets.
    pub bytes_out: u64,
    /// Packets received.
    pub packets_in: u64,
    /// Bytes received: plain IP packets.
    pub bytes_in: u64,
}

/// A terminal with at most `POLICIES` policies and `SAS` pairs of SAs, holding at most `HOLD` bytes of packets.
///
/// It lies in one piece wherever it is put: a host may want to box it.
pub struct Core<P: EspProvider, const POLICIES: usize = 32, const SAS: usize = 32, const HOLD: usize = 65536>
{
    pub(crate) provider: P,
    pub(crate) reserved: ReservedSpi,
    pub(crate) timing: Timing,
    spd: Spd<POLICIES>,
    pub(crate) sad: Sad<P::Transform, SAS>,
    pub(crate) hold: HoldQueue<HOLD>,
    pub(crate) requests: Requests,
    pub(crate) enrolment: Enrolment,
    pub(crate) acks: Acks,
    pub(crate) events: Events<16>,
    drops: [u32; DropReason::COUNT],
    pub(crate) tap: Option<KeyTap>,
}

impl<P: EspProvider, const POLICIES: usize, const SAS: usize, const HOLD: usize>
    Core<P, POLICIES, SAS, HOLD>
{
    /// A terminal that is about to register.
    ///
    /// # Errors
    /// [`InvalidConfig`].
    pub fn new(provider: P, config: Config, policies: &[Policy]) -> Result<Self, InvalidConfig> {
        let Config {
            subscriber,
            ksub,
            addresses,
            reserved,
            counter,
            timing,
        } = config;
        if addresses.is_empty() {
            return Err(InvalidConfig::NoAddress);
        }
        Ok(Self {
            provider,
            reserved,
            timing,
            spd: Spd::new(policies).ok_or(InvalidConfig::TooManyPolicies)?,
            sad: Sad::new(),
            hold: HoldQueue::new(),
            requests: Requests::default(),
            enrolment: Enrolment::new(subscriber, ksub, addresses, counter),
            acks: Acks::default(),
            events: Events::new(),
            drops: [0; DropReason::COUNT],
            tap: None,
        })
    }

    /// Shows every secret to `tap` from now on. Never in service.
    pub const fn danger_set_key_tap(&mut self, tap: KeyTap) {
        self.tap = Some(tap);
    }

    /// The terminal's addresses changed; it registers anew at once.
    pub fn set_addresses(&mut self, now: Instant, addresses: Addresses) {
        self.enrolment.set_addresses(now, addresses);
    }

    // -- packets ----------------------------------------------------------------------------------------

    /// A plain IP packet of an application, with rooms as [`BUFFER_HEADROOM`] and [`BUFFER_TAILROOM`] say (K8).
    pub fn handle_plain(
        &mut self,
        now: Instant,
        packet: &mut PacketBuf<'_>,
        rng: &mut (impl Rng + ?Sized),
    ) -> Disposition {
        self.handle_plain_at(now, 0, packet, rng)
    }

    /// A plain IP packet of an application that chose a sensitivity level for it (T21): level 0 is no choice.
    pub fn handle_plain_at(
        &mut self,
        now: Instant,
        level: u8,
        packet: &mut PacketBuf<'_>,
        rng: &mut (impl Rng + ?Sized),
    ) -> Disposition {
        self.plain(now, level, packet, rng)
            .unwrap_or_else(|reason| self.count(reason))
    }

    fn plain(
        &mut self,
        now: Instant,
        level: u8,
        packet: &mut PacketBuf<'_>,
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<Disposition, DropReason> {
        let flow = Flow::of(packet.bytes())?;
        match self.spd.outgoing(&flow, level) {
            (Action::Bypass, _) => Ok(Disposition::Transmit),
            (Action::Discard, _) => Err(DropReason::PolicyDiscard),
            (Action::Protect { peer }, level) => {
                let peer = peer.unwrap_or(flow.destination);
                self.protect(now, Towards { peer, level }, &flow, packet, rng)
            }
        }
    }

    /// Seals `packet`, or holds it until there is an SA.
    fn protect(
        &mut self,
        now: Instant,
        towards: Towards,
        flow: &Flow,
        packet: &mut PacketBuf<'_>,
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<Disposition, DropReason> {
        if let Some(pair) = self.sad.outgoing(towards, flow) {
            match pair.outbound.seal(now, packet, rng) {
                Ok(_) => {
                    self.enrolment.sent(now, self.timing.silence);
                    return Ok(Disposition::Transmit);
                }
                Err(DropReason::EspLifetimeExpired | DropReason::EspSequenceExhausted) => {
                    // Of no use any more: as if it were not there.
                    let name = pair.name;
                    self.sad.remove(&name);
                    self.events.push(Event::Expired(name));
                }
                Err(DropReason::TooBig) => {
                    return paths::too_big(&mut pair.outbound, now, flow, packet, rng);
                }
                Err(reason) => return Err(reason),
            }
        }
        let terminal = self.speaker_for(flow.source, towards.peer);
        let terminal = terminal.ok_or(DropReason::NoRoute)?;
        self.requests.want(now, terminal, towards, Some(flow), None)?;
        self.hold
            .push(now, self.timing.hold, towards, packet.bytes())
            .map_err(|_| DropReason::HoldQueueFull)?;
        Ok(Disposition::Consumed)
    }

    /// The terminal's address in a request: the packet's own if it is one of them, else the first of the family.
    fn speaker_for(&self, source: IpAddr, peer: IpAddr) -> Option<IpAddr> {
        let addresses = self.enrolment.addresses();
        let own = addresses.contains(source) && source.is_ipv4() == peer.is_ipv4();
        if own {
            return Some(source);
        }
        addresses
            .iter()
            .find(|address| address.is_ipv4() == peer.is_ipv4())
    }

    /// An IP packet from the network, of any kind: ESP, UDP-encapsulated ESP, a message of the network, or clear.
    pub fn handle_network(&mut self, now: Instant, packet: &mut PacketBuf<'_>) -> Disposition {
        self.network(now, packet)
            .unwrap_or_else(|reason| self.count(reason))
    }

    fn network(&mut self, now: Instant, packet: &mut PacketBuf<'_>) -> Result<Disposition, DropReason> {
        let Carried {
            source,
            protocol,
            payload_at,
            end,
            fragment,
            ..
        } = locate::carried(packet.bytes())?;
        match protocol {
            protocol::ESP => return self.sealed(now, packet),
            protocol::UDP if !fragment => {
                let udp = packet.bytes().get(payload_at..end).unwrap_or(&[]);
                let (header, payload) = udp.split_first_chunk::<8>().ok_or(DropReason::Truncated)?;
                match u16::from_be_bytes([header[2], header[3]]) {
                    PORT_IKE_NATT => return self.encapsulated(now, packet, payload_at + 8),
                    PORT_IKE => return self.message(now, source, payload).map(|()| Disposition::Consumed),
                    _ => {}
                }
            }
            protocol::ICMP | protocol::ICMPV6 if !fragment => {
                if let Some(told) = self.told_too_big(now, packet.bytes()) {
                    return told.map(|()| Disposition::Consumed);
                }
            }
            _ => {}
        }
        match self.spd.incoming(&Flow::of(packet.bytes())?) {
            Action::Bypass => Ok(Disposition::Deliver),
            Action::Protect { .. } | Action::Discard => Err(DropReason::PolicyDiscard),
        }
    }

    /// A packet to port 4500, its UDP payload at `at`: ESP, IKE or a keep-alive (RFC 3948 §2).
    fn encapsulated(
        &mut self,
        now: Instant,
        packet: &mut PacketBuf<'_>,
        at: usize,
    ) -> Result<Disposition, DropReason> {
        match packet.bytes().get(at..) {
            Some([0xff]) => Ok(Disposition::Consumed),
            Some(payload) if payload.starts_with(&[0; NON_ESP_MARKER_LEN]) => Err(DropReason::IkeUnexpected),
            _ => self.sealed(now, packet),
        }
    }

    fn sealed(&mut self, now: Instant, packet: &mut PacketBuf<'_>) -> Result<Disposition, DropReason> {
        let at = locate::esp(packet.bytes())?;
        let pair = self
            .sad
            .incoming(at.destination, at.spi)
            .ok_or(DropReason::EspUnknownSpi)?;
        pair.inbound.open(now, packet)?;
        if !self.spd.permits(&Flow::of(packet.bytes())?, pair.towards) {
            return Err(DropReason::PolicyDiscard);
        }
        if pair.is_standby() {
            let name = pair.name;
            self.sad.promote(now, &name, self.timing.linger);
        }
        self.enrolment.heard(now);
        Ok(Disposition::Deliver)
    }

    /// An ESP packet without its IP header (as a raw IPv6 socket gives it). `packet` needs 40 bytes in front.
    pub fn handle_esp(
        &mut self,
        now: Instant,
        source: IpAddr,
        destination: IpAddr,
        packet: &mut PacketBuf<'_>,
    ) -> Disposition {
        match headers::prepend_ip(packet, source, destination, protocol::ESP) {
            Some(()) => self
                .sealed(now, packet)
                .unwrap_or_else(|reason| self.count(reason)),
            None => self.count(DropReason::NoHeadroom),
        }
    }

    /// The payload of a UDP datagram to port 4500 (as a UDP socket gives it). `packet` needs 48 bytes in front.
    pub fn handle_encapsulated(
        &mut self,
        now: Instant,
        source: SocketAddr,
        destination: SocketAddr,
        packet: &mut PacketBuf<'_>,
    ) -> Disposition {
        let len = packet.len();
        let outcome = match headers::prepend_udp(packet, source, destination) {
            Some(()) => {
                let at = packet.len() - len;
                self.encapsulated(now, packet, at)
            }
            None => Err(DropReason::NoHeadroom),
        };
        outcome.unwrap_or_else(|reason| self.count(reason))
    }

    /// The payload of a UDP datagram to port 500: a message of the network. Refused ones are counted.
    pub fn handle_datagram(&mut self, now: Instant, source: IpAddr, payload: &[u8]) {
        if let Err(reason) = self.message(now, source, payload) {
            self.count(reason);
        }
    }

    // -- output -----------------------------------------------------------------------------------------

    /// The next thing to send, written to `buffer`: at least [`BUFFER_HEADROOM`] + MTU + [`BUFFER_TAILROOM`] bytes.
    /// Call until `None`.
    pub fn poll_transmit<'b>(
        &mut self,
        now: Instant,
        buffer: &'b mut [u8],
        rng: &mut (impl Rng + ?Sized),
    ) -> Option<Transmit<'b>> {
        if let Some(Outgoing {
            source,
            destination,
            len,
        }) = self.poll_control(now, buffer, rng)
        {
            return Some(Transmit::Datagram {
                source: SocketAddr::new(source, PORT_IKE),
                destination: SocketAddr::new(destination, PORT_IKE),
                payload: buffer.get(..len)?,
            });
        }
        let (start, len) = self.poll_held(now, buffer, rng)?;
        PacketBuf::new(buffer, start, len).map(Transmit::Packet)
    }

    /// Seals the next held packet whose SA has come; returns where in `buffer` it is.
    fn poll_held(
        &mut self,
        now: Instant,
        buffer: &mut [u8],
        rng: &mut (impl Rng + ?Sized),
    ) -> Option<(usize, usize)> {
        loop {
            let sad = &self.sad;
            let ready =
                |towards, packet: &[u8]| Flow::of(packet).is_ok_and(|flow| sad.admits(towards, &flow));
            let sealed = match self.hold.take(ready, buffer, BUFFER_HEADROOM)? {
                (_, Err(_)) => Err(DropReason::NoHeadroom),
                (towards, Ok(len)) => {
                    let mut packet = PacketBuf::new(buffer, BUFFER_HEADROOM, len)?;
                    let flow = Flow::of(packet.bytes());
                    match flow.and_then(|flow| self.protect(now, towards, &flow, &mut packet, rng)) {
                        Ok(Disposition::Transmit) => return Some((packet.start(), packet.len())),
                        // Its SA expired at this moment; it is held again.
                        Ok(Disposition::Consumed) => Ok(()),
                        // An SA that has just come knows no path yet; one that does tells the sender next time.
                        Ok(_) => Err(DropReason::TooBig),
                        Err(reason) => Err(reason),
                    }
                }
            };
            if let Err(reason) = sealed {
                self.count(reason);
            }
        }
    }

    /// The next request to the surroundings. Call until `None`.
    pub fn poll_command(&mut self) -> Option<Command> {
        if let Some(mark) = self.enrolment.poll_persist() {
            return Some(Command::Persist(mark));
        }
        self.events.pop().map(Command::Tell)
    }

    /// [`Command::Persist`] was carried out: `counter` survives from now on.
    pub fn persisted(&mut self, counter: u64) {
        self.enrolment.handle_persisted(counter);
    }

    // -- time -------------------------------------------------------------------------------------------

    /// When to call [`Core::handle_timeout`], and what for.
    pub fn poll_timeout(&self) -> Option<(Instant, Timer)> {
        [
            (self.enrolment.register_due(), Timer::Register),
            (self.enrolment.expires(), Timer::RegistrationEnd),
            (self.enrolment.hello_due(), Timer::Keepalive),
            (
                self.requests.poll_timeout(self.enrolment.is_registered()),
                Timer::Request,
            ),
            (self.hold.poll_timeout(), Timer::Hold),
            (self.sad.poll_timeout(), Timer::Sa),
        ]
        .into_iter()
        .filter_map(|(at, timer)| at.map(|at| (at, timer)))
        .min_by_key(|(at, _)| *at)
    }

    /// Time passed. Then [`Core::poll_transmit`] has what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.enrolment.expire(now) {
            self.events.push(Event::RegistrationExpired);
        }
        let stale = self.hold.drop_stale(now);
        self.count_many(DropReason::HoldTimeout, stale);
        while let Some(due) = self.sad.poll_due(now, self.timing.linger) {
            match due {
                Due::Expired(name) => self.events.push(Event::Expired(name)),
                Due::Renew(name, towards) => {
                    // Held off or no room: the hard limit leads to a request of its own.
                    let towards = Towards {
                        peer: name.remote,
                        ..towards
                    };
                    let _ = self
                        .requests
                        .want(now, name.local, towards, None, Some(name.spi_in));
                }
            }
        }
        while let Some(request) = self.requests.take_unanswered(now, &self.timing) {
            let dropped = self.hold.drop_waiting(Towards {
                peer: request.peer,
                level: request.level,
            });
            self.count_many(DropReason::HoldTimeout, dropped);
            self.events.push(Event::Refused {
                peer: request.peer,
                reason: None,
            });
        }
    }

    // -- for people -------------------------------------------------------------------------------------

    /// True while there is a session with the network.
    pub const fn is_registered(&self) -> bool {
        self.enrolment.is_registered()
    }

    /// The terminal's addresses.
    pub const fn addresses(&self) -> &Addresses {
        self.enrolment.addresses()
    }

    /// Packets held now.
    pub const fn held(&self) -> usize {
        self.hold.len()
    }

    /// Packets and messages dropped for `reason` so far.
    pub fn drops(&self, reason: DropReason) -> u32 {
        self.drops.get(reason as usize).copied().unwrap_or(0)
    }

    /// Every SA.
    pub fn sas(&self) -> impl Iterator<Item = SaStatus> {
        self.sad.iter().map(|pair| SaStatus {
            name: pair.name,
            class: pair.class,
            level: pair.towards.level,
            suite: pair.suite,
            mode: pair.mode,
            encap: pair.encap,
            replaced: pair.is_replaced(),
            standby: pair.is_standby(),
            packets_out: pair.outbound.meter().packets(),
            bytes_out: pair.outbound.meter().bytes(),
            packets_in: pair.inbound.meter().packets(),
            bytes_in: pair.inbound.meter().bytes(),
        })
    }

    // -- helpers ----------------------------------------------------------------------------------------

    pub(crate) fn count(&mut self, reason: DropReason) -> Disposition {
        self.count_many(reason, 1);
        Disposition::Drop(reason)
    }

    pub(crate) fn count_many(&mut self, reason: DropReason, packets: u32) {
        if let Some(counter) = self.drops.get_mut(reason as usize) {
            *counter = counter.saturating_add(packets);
        }
    }

    /// Where a message that is for no particular peer goes from `terminal`: the first peer of the family. The
    /// gateway takes it on the way, whatever the address.
    pub(crate) fn towards_network(&self, terminal: IpAddr) -> IpAddr {
        let nowhere = if terminal.is_ipv4() {
            NOWHERE_V4
        } else {
            NOWHERE_V6
        };
        self.spd
            .iter()
            .filter_map(|policy| match policy.action {
                Action::Protect { peer } => Some(peer.unwrap_or(policy.remote.first)),
                Action::Bypass | Action::Discard => None,
            })
            .find(|peer| peer.is_ipv4() == terminal.is_ipv4() && !peer.is_unspecified())
            .unwrap_or(nowhere)
    }
}
