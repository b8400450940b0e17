//! The gateway's control part: decides where each message of the control path goes (spec row K1).
//!
//! ```text
//!   from the terminal:  registration ──► registry        request, acknowledgement ──► keyserver   (a)
//!   from a peer:        IKE ──► keyserver                                                         (b)
//!   from the keyserver: IKE ──► peer, or back to the keyserver when the peer is served here too   (c)
//!                       key message ──► terminal                                                  (d)
//! ```
//!
//! Sans-IO: `handle_*` takes a message, [`Control::poll_output`] says what to do.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use towpath_base::profile::Subscriber;
use towpath_base::{DropReason, Instant, SubscriberHandle};
use towpath_common::wire::PORT_IKE;
use towpath_fabric::{Datagram, Event, FromKeyserver, FromRegistry, GatewaySa, ToKeyserver, ToRegistry};
use towpath_ipsec::shared::Wanted;
use towpath_keyx::frame::{self, ReservedSpi};
use towpath_keyx::message::{self, Header, MessageType};

use crate::datagram;
use crate::datapath::{Notice, SaKey};
use crate::limiter::Limiter;

/// A terminal is told at most this often that its SAs are unknown here.
const HINT_INTERVAL: Duration = Duration::from_secs(5);

/// What the process around [`Control`] has to do.
#[derive(Debug)]
pub enum Output {
    /// Hand to the keyserver.
    ToKeyserver(ToKeyserver),
    /// Hand to the registry.
    ToRegistry(ToRegistry),
    /// Put this IP packet on the wire, by the kernel's routing.
    Transmit(Vec<u8>),
    /// Send this UDP payload to a terminal from the gateway's own address, source port 500.
    TransmitToTerminal {
        /// Terminal's address and port.
        terminal: SocketAddr,
        /// UDP payload, IKE header included.
        payload: Vec<u8>,
    },
    /// Write the classifier's entries of this subscriber, replacing older ones.
    Serve {
        /// The subscriber.
        subscriber: Box<Subscriber>,
        /// Where it registered; empty for a fixed attachment.
        addresses: Vec<IpAddr>,
    },
    /// Remove the classifier's entries of this subscriber.
    Unserve(SubscriberHandle),
    /// Give this SA to the workers.
    Install(Box<GatewaySa>),
    /// Take this SA from the workers.
    Remove(SaKey),
    /// Store this for a sender of a stored SA, then grant it.
    Reserve {
        /// The SA.
        key: SaKey,
        /// Its sender to the peer; else the one to the terminal.
        to_peer: bool,
        /// What to store.
        wanted: Wanted,
    },
    /// Store that the gateway sends nothing any more under this key.
    Degraded {
        /// The SA.
        key: SaKey,
        /// The direction to the peer; else the one to the terminal.
        to_peer: bool,
    },
    /// Count a refused message.
    Count(DropReason),
    /// Show people.
    Event(Event),
}

/// Limits on messages the control path accepts.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Sealed messages per second and source address.
    pub sealed_per_second: u32,
    /// Sealed messages of one source at once.
    pub sealed_burst: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sealed_per_second: 20,
            sealed_burst: 50,
        }
    }
}

struct Served {
    subscriber: Subscriber,
    addresses: Vec<IpAddr>,
}

/// The control part of one gateway.
pub struct Control {
    reserved: ReservedSpi,
    limiter: Limiter,
    hints: Limiter,
    served: HashMap<SubscriberHandle, Served>,
    /// Registered addresses, and the host addresses of fixed attachments.
    by_address: HashMap<IpAddr, SubscriberHandle>,
    outputs: VecDeque<Output>,
    /// Served before the registry connected anew, and not granted since.
    unconfirmed: Option<HashSet<SubscriberHandle>>,
}

impl Control {
    /// A gateway that serves nobody yet. `reserved` marks messages between terminals and the network.
    pub fn new(reserved: ReservedSpi, limits: Limits) -> Self {
        Self {
            reserved,
            limiter: Limiter::new(limits.sealed_per_second, limits.sealed_burst),
            hints: Limiter::every(HINT_INTERVAL),
            served: HashMap::new(),
            by_address: HashMap::new(),
            outputs: VecDeque::new(),
            unconfirmed: None,
        }
    }

    /// The next thing to do.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Subscribers served now, with the addresses they registered.
    pub fn served(&self) -> impl Iterator<Item = (&Subscriber, &[IpAddr])> {
        self.served
            .values()
            .map(|served| (&served.subscriber, served.addresses.as_slice()))
    }

    /// A diverted packet that is not ESP or AH: IKE, or a sealed message. `packet` starts at the IP header;
    /// `subscriber` is what the classifier found, if anything.
    pub fn handle_packet(&mut self, now: Instant, subscriber: Option<SubscriberHandle>, packet: &[u8]) {
        if let Err(reason) = self.dispatch(now, subscriber, packet) {
            self.outputs.push_back(Output::Count(reason));
        }
    }

    fn dispatch(
        &mut self,
        now: Instant,
        subscriber: Option<SubscriberHandle>,
        packet: &[u8],
    ) -> Result<(), DropReason> {
        let mut datagram = datagram::parse(packet)?;
        match frame::unwrap(self.reserved, &datagram.payload) {
            Some(sealed) => {
                if !self.limiter.allow(now, datagram.source.ip()) {
                    return Err(DropReason::KeyxRateLimited);
                }
                datagram.payload = sealed.to_vec();
                self.handle_sealed(datagram)
            }
            None => self.handle_ike(subscriber, datagram),
        }
    }

    /// (a): registrations go to the registry, everything else under a session to the keyserver.
    fn handle_sealed(&mut self, datagram: Datagram) -> Result<(), DropReason> {
        let header = message::peek(&datagram.payload)?;
        let output = match header.message_type {
            MessageType::Register | MessageType::Deregister => {
                // Which keyserver is known where the channels are.
                Output::ToRegistry(ToRegistry::Register {
                    datagram,
                    keyserver: None,
                })
            }
            _ => Output::ToKeyserver(ToKeyserver::FromTerminal {
                subscriber: header.subscriber,
                datagram,
            }),
        };
        self.outputs.push_back(output);
        Ok(())
    }

    /// (b): an IKE message for a terminal served here. One *from* a served terminal is not ours to
    /// negotiate; the classifier does not divert it, so whoever sends it here made it up.
    fn handle_ike(
        &mut self,
        subscriber: Option<SubscriberHandle>,
        datagram: Datagram,
    ) -> Result<(), DropReason> {
        let subscriber = subscriber
            .filter(|handle| self.served.contains_key(handle))
            .or_else(|| self.by_address.get(&datagram.destination.ip()).copied())
            .ok_or(DropReason::NotServed)?;
        self.outputs
            .push_back(Output::ToKeyserver(ToKeyserver::IkeFromPeer {
                subscriber,
                datagram,
            }));
        Ok(())
    }

    /// A message of the keyserver.
    pub fn handle_keyserver(&mut self, message: FromKeyserver) {
        let output = match message {
            FromKeyserver::IkeToPeer(datagram) => match self.route_ike(datagram) {
                Some(output) => output,
                None => return,
            },
            FromKeyserver::KeyToTerminal { terminal, sealed, .. } => {
                self.to_terminal(terminal, PORT_IKE, &sealed)
            }
            FromKeyserver::Install(sa) => Output::Install(sa),
            FromKeyserver::Remove {
                local,
                remote,
                spi_in,
                spi_out,
                ..
            } => Output::Remove(SaKey {
                local,
                remote,
                spi_in,
                spi_out,
            }),
            FromKeyserver::Refused(code) => match code.reason() {
                Some(reason) => Output::Count(reason),
                None => return,
            },
            FromKeyserver::Event(event) => Output::Event(event),
        };
        self.outputs.push_back(output);
    }

    /// (c): to the peer; or, when the peer is itself a terminal served here, straight back as a message
    /// from its peer (K10), never on the wire.
    fn route_ike(&self, datagram: Datagram) -> Option<Output> {
        match self.by_address.get(&datagram.destination.ip()) {
            Some(&subscriber) => Some(Output::ToKeyserver(ToKeyserver::IkeFromPeer {
                subscriber,
                datagram,
            })),
            None => datagram::build(&datagram).map(Output::Transmit),
        }
    }

    fn to_terminal(&self, terminal: IpAddr, port: u16, sealed: &[u8]) -> Output {
        Output::TransmitToTerminal {
            terminal: SocketAddr::new(terminal, port),
            payload: frame::wrap(self.reserved, sealed),
        }
    }

    /// A message of the registry that is meant for gateways.
    pub fn handle_registry(&mut self, message: FromRegistry) {
        match message {
            FromRegistry::Grant {
                subscriber,
                addresses,
            } => self.grant(subscriber, addresses),
            FromRegistry::Withdraw { subscriber } => self.withdraw(subscriber),
            FromRegistry::Answer { terminal, sealed } => {
                let output = self.to_terminal(terminal.ip(), terminal.port(), &sealed);
                self.outputs.push_back(output);
            }
            FromRegistry::Refused(code) => {
                self.outputs.extend(code.reason().map(Output::Count));
            }
            FromRegistry::Event(event) => self.outputs.push_back(Output::Event(event)),
            FromRegistry::Complete => self.forget_the_rest(),
            // Meant for the keyserver.
            FromRegistry::Session(_)
            | FromRegistry::Registered { .. }
            | FromRegistry::SessionEnded { .. }
            | FromRegistry::Credential { .. } => {}
        }
    }

    fn grant(&mut self, subscriber: Subscriber, addresses: Vec<IpAddr>) {
        let handle = subscriber.handle;
        if let Some(unconfirmed) = &mut self.unconfirmed {
            unconfirmed.remove(&handle);
        }
        self.by_address.retain(|_, owner| *owner != handle);
        let provisioned = subscriber
            .addresses
            .iter()
            .filter(|prefix| prefix.is_host())
            .map(|host| host.address());
        let own: Vec<IpAddr> = if addresses.is_empty() {
            provisioned.collect()
        } else {
            addresses.clone()
        };
        self.by_address
            .extend(own.into_iter().map(|address| (address, handle)));
        self.outputs.push_back(Output::Serve {
            subscriber: Box::new(subscriber.clone()),
            addresses: addresses.clone(),
        });
        self.served.insert(
            handle,
            Served {
                subscriber,
                addresses,
            },
        );
    }

    /// The registry is reached again and tells from the start what is to be served: what is not granted until
    /// [`FromRegistry::Complete`] was withdrawn meanwhile.
    pub fn registry_connected(&mut self) {
        self.unconfirmed = Some(self.served.keys().copied().collect());
    }

    fn forget_the_rest(&mut self) {
        for handle in self.unconfirmed.take().unwrap_or_default() {
            self.withdraw(handle);
        }
    }

    /// Who is served at `address`.
    pub fn subscriber_at(&self, address: IpAddr) -> Option<SubscriberHandle> {
        self.by_address.get(&address).copied()
    }

    /// Asks a terminal served here to register anew, its keyserver being another now.
    pub fn ask_to_register(&mut self, subscriber: SubscriberHandle) {
        let at = |owner: &SubscriberHandle| *owner == subscriber;
        let terminal = match self.served.get(&subscriber) {
            Some(served) => served.addresses.first().copied(),
            None => None,
        };
        let terminal = terminal.or_else(|| {
            let mut hosts = self.by_address.iter().filter(|(_, owner)| at(owner));
            hosts.next().map(|(address, _)| *address)
        });
        if let Some(terminal) = terminal {
            self.send_hint(terminal, subscriber);
        }
    }

    fn withdraw(&mut self, handle: SubscriberHandle) {
        if self.served.remove(&handle).is_some() {
            self.by_address.retain(|_, owner| *owner != handle);
            self.outputs.push_back(Output::Unserve(handle));
        }
    }

    /// Something a worker noticed.
    pub fn handle_notice(&mut self, now: Instant, notice: Notice) {
        match notice {
            Notice::Expiring {
                subscriber,
                spi_in,
                hard,
            } => {
                self.outputs.push_back(Output::ToKeyserver(ToKeyserver::Expiring {
                    subscriber,
                    spi_in,
                    hard,
                }));
            }
            Notice::UnknownSa { terminal } => self.hint(now, terminal),
            Notice::Reserve { key, to_peer, wanted } => {
                self.outputs.push_back(Output::Reserve { key, to_peer, wanted })
            }
            Notice::Degraded { key, to_peer } => {
                self.outputs.push_back(Output::Degraded { key, to_peer });
                let subscriber = self
                    .by_address
                    .get(&key.local)
                    .map_or(String::new(), ToString::to_string);
                let direction = if to_peer { "to the peer" } else { "to the terminal" };
                self.outputs.push_back(Output::Event(Event {
                    subscriber,
                    terminal: Some(key.local),
                    peer: Some(key.remote),
                    ike: None,
                    kind: "class_degraded".into(),
                    text: format!(
                        "spi_in {} spi_out {}: IVs {direction} are random or entered the gateway's half of the \
                         space; class none from now on, for the life of the key",
                        key.spi_in, key.spi_out
                    ),
                }));
            }
        }
    }

    /// The terminal uses keys the network has forgotten (this process is younger than the SA). A hint makes
    /// it register again and ask anew, long before a dead-peer timeout would; it proves nothing, so the
    /// terminal limits how often it follows one.
    fn hint(&mut self, now: Instant, terminal: IpAddr) {
        if let Some(&subscriber) = self.by_address.get(&terminal)
            && self.hints.allow(now, terminal)
        {
            self.send_hint(terminal, subscriber);
        }
    }

    fn send_hint(&mut self, terminal: IpAddr, subscriber: SubscriberHandle) {
        // It answers no datagram, hence counter 0.
        let unknown = Header {
            message_type: MessageType::ReRegister,
            subscriber,
            counter: 0,
        };
        let output = self.to_terminal(terminal, PORT_IKE, &message::re_register(&unknown));
        self.outputs.push_back(output);
    }
}

#[cfg(test)]
mod tests {
    use towpath_base::profile::{Attachment, Identification, ServiceProfile};

    use super::*;

    const TERMINAL: &str = "10.0.0.1";
    const PEER: &str = "192.0.2.9";

    fn subscriber(handle: u64, address: &str) -> Subscriber {
        Subscriber {
            handle: SubscriberHandle(handle),
            name: format!("terminal-{handle}"),
            operator: "default".into(),
            identification: Identification::default(),
            addresses: vec![address.parse().unwrap()],
            attachment: Attachment::Registered,
            profile: ServiceProfile::standard(),
            peers: Vec::new(),
        }
    }

    fn control() -> Control {
        let mut control = Control::new(ReservedSpi::default(), Limits::default());
        let addresses = vec![TERMINAL.parse().unwrap()];
        control.handle_registry(FromRegistry::Grant {
            subscriber: subscriber(7, TERMINAL),
            addresses,
        });
        assert!(matches!(control.poll_output(), Some(Output::Serve { .. })));
        control
    }

    fn packet(source: &str, destination: &str, payload: &[u8]) -> Vec<u8> {
        let address = |text: &str| SocketAddr::new(text.parse().unwrap(), 500);
        let datagram = Datagram {
            source: address(source),
            destination: address(destination),
            payload: payload.to_vec(),
        };
        datagram::build(&datagram).unwrap()
    }

    /// A message of the right shape; what is inside is nobody's business here.
    fn sealed(message_type: u8) -> Vec<u8> {
        let mut datagram = vec![0; 64];
        datagram[..2].copy_from_slice(&[1, message_type]);
        datagram[11] = 7;
        frame::wrap(ReservedSpi::default(), &datagram)
    }

    fn outputs(control: &mut Control) -> Vec<Output> {
        std::iter::from_fn(|| control.poll_output()).collect()
    }

    #[test]
    fn registrations_go_to_the_registry_requests_to_the_keyserver() {
        let (mut control, now) = (control(), Instant::from_secs(1));
        control.handle_packet(now, None, &packet(TERMINAL, PEER, &sealed(1)));
        control.handle_packet(now, None, &packet(TERMINAL, PEER, &sealed(3)));
        let [
            Output::ToRegistry(ToRegistry::Register { .. }),
            Output::ToKeyserver(request),
        ] = &outputs(&mut control)[..]
        else {
            panic!()
        };
        let ToKeyserver::FromTerminal { subscriber, datagram } = request else {
            panic!()
        };
        assert_eq!(*subscriber, SubscriberHandle(7));
        assert_eq!(datagram.payload.len(), 64);
    }

    #[test]
    fn ike_of_a_peer_reaches_the_keyserver_only_for_terminals_served_here() {
        let (mut control, now) = (control(), Instant::from_secs(1));
        control.handle_packet(now, Some(SubscriberHandle(7)), &packet(PEER, TERMINAL, &[1; 100]));
        control.handle_packet(
            now,
            Some(SubscriberHandle(8)),
            &packet(PEER, "10.0.0.2", &[1; 100]),
        );
        assert!(matches!(
            &outputs(&mut control)[..],
            [
                Output::ToKeyserver(ToKeyserver::IkeFromPeer { .. }),
                Output::Count(DropReason::NotServed)
            ]
        ));
        control.handle_registry(FromRegistry::Withdraw {
            subscriber: SubscriberHandle(7),
        });
        control.handle_packet(now, Some(SubscriberHandle(7)), &packet(PEER, TERMINAL, &[1; 100]));
        assert!(matches!(
            &outputs(&mut control)[..],
            [Output::Unserve(_), Output::Count(DropReason::NotServed)]
        ));
    }

    #[test]
    fn ike_between_two_terminals_of_this_gateway_never_touches_the_wire() {
        let mut control = control();
        let message = |destination: &str| {
            FromKeyserver::IkeToPeer(Datagram {
                source: SocketAddr::new("10.0.0.2".parse().unwrap(), 500),
                destination: SocketAddr::new(destination.parse().unwrap(), 500),
                payload: vec![1; 40],
            })
        };
        control.handle_keyserver(message(TERMINAL));
        control.handle_keyserver(message(PEER));
        assert!(matches!(
            &outputs(&mut control)[..],
            [
                Output::ToKeyserver(ToKeyserver::IkeFromPeer { .. }),
                Output::Transmit(_)
            ]
        ));
    }

    #[test]
    fn a_flood_of_one_terminal_is_cut_and_another_one_is_heard() {
        let (mut control, now) = (control(), Instant::from_secs(1));
        for _ in 0..1000 {
            control.handle_packet(now, None, &packet(TERMINAL, PEER, &sealed(3)));
        }
        let passed = outputs(&mut control)
            .iter()
            .filter(|output| matches!(output, Output::ToKeyserver(_)))
            .count();
        assert_eq!(passed, Limits::default().sealed_burst as usize);
        control.handle_packet(now, None, &packet("10.0.0.2", PEER, &sealed(3)));
        assert!(matches!(&outputs(&mut control)[..], [Output::ToKeyserver(_)]));
    }

    #[test]
    fn a_terminal_on_a_forgotten_sa_is_told_to_register_but_not_for_every_packet() {
        let (mut control, now) = (control(), Instant::from_secs(1));
        for _ in 0..100 {
            control.handle_notice(
                now,
                Notice::UnknownSa {
                    terminal: TERMINAL.parse().unwrap(),
                },
            );
        }
        control.handle_notice(
            now,
            Notice::UnknownSa {
                terminal: PEER.parse().unwrap(),
            },
        );
        assert!(matches!(
            &outputs(&mut control)[..],
            [Output::TransmitToTerminal { .. }]
        ));
    }
}
