//! Messages between gateway, keyserver and registry.
//!
//! In one process they are passed as values; between machines the same types are encoded with
//! [`encode`] inside an authenticated, encrypted channel. The figures in the documentation of each
//! message are those of `controlplane/docs/messages.md`.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, SocketAddr};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use towpath_base::credentials::Credentials;
use towpath_base::key::{Key, SecretKey};
use towpath_base::profile::{PeerPolicy, Subscriber};
use towpath_base::sa::{AhSa, ChildSa, Class, EspKeys, EspSuite, Mode};
use towpath_base::{Spi, SubscriberHandle};
use towpath_common::DropReason;

/// A node's name: which gateway, which keyserver.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeName(pub String);

impl Default for NodeName {
    /// The node of a network that has only one.
    fn default() -> Self {
        Self("local".into())
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A UDP datagram with its addresses as the wire shows them: an IKE message or a sealed message.
///
/// `payload` has no non-ESP marker; ports 4500 imply it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Datagram {
    /// Source address and port.
    pub source: SocketAddr,
    /// Destination address and port.
    pub destination: SocketAddr,
    /// UDP payload.
    pub payload: Vec<u8>,
}

impl fmt::Debug for Datagram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} -> {} ({} bytes)",
            self.source,
            self.destination,
            self.payload.len()
        )
    }
}

/// Gateway → keyserver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToKeyserver {
    /// A sealed message of a registered terminal, whole (figure 12B): a proxy request or an acknowledgement.
    /// `datagram.destination` is the peer the terminal wants to talk to.
    FromTerminal {
        /// Subscriber the classifier found for the source address.
        subscriber: SubscriberHandle,
        /// Body of the sealed message, IKE header taken off.
        datagram: Datagram,
    },
    /// An IKE message of a peer to a terminal, whole (figure 13C).
    IkeFromPeer {
        /// Subscriber the classifier found for the destination address.
        subscriber: SubscriberHandle,
        /// The message.
        datagram: Datagram,
    },
    /// The gateway saw an SA reach a limit.
    Expiring {
        /// Subscriber.
        subscriber: SubscriberHandle,
        /// SPI of packets the terminal receives.
        spi_in: Spi,
        /// True at the hard limit: the SA is gone.
        hard: bool,
    },
}

/// Keyserver → gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromKeyserver {
    /// An IKE message to put on the wire as it is, source address the terminal's (figures 13D, 13A).
    IkeToPeer(Datagram),
    /// A sealed message for a terminal (figures 14A, 14B); the gateway adds the outer header with its own address.
    KeyToTerminal {
        /// Subscriber.
        subscriber: SubscriberHandle,
        /// Terminal's address.
        terminal: IpAddr,
        /// The sealed datagram.
        sealed: Vec<u8>,
    },
    /// An SA the gateway now has to serve.
    Install(Box<GatewaySa>),
    /// An SA that ended.
    Remove {
        /// Subscriber.
        subscriber: SubscriberHandle,
        /// Terminal's address.
        local: IpAddr,
        /// Peer's address.
        remote: IpAddr,
        /// SPI of packets the terminal receives.
        spi_in: Spi,
        /// SPI of packets the terminal sends.
        spi_out: Spi,
    },
    /// A message was refused; the gateway counts it.
    Refused(DropCode),
    /// Something to tell people: one line of the live view.
    Event(Event),
}

/// What the gateway is given of an SA: no key beyond its class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewaySa {
    /// Subscriber.
    pub subscriber: SubscriberHandle,
    /// Class `none`: addresses and SPIs only, see [`GatewayKeys::None`].
    pub keys: GatewayKeys,
    /// Terminal's address.
    pub local: IpAddr,
    /// Peer's address.
    pub remote: IpAddr,
    /// SPI of packets the terminal receives.
    pub spi_in: Spi,
    /// SPI of packets the terminal sends.
    pub spi_out: Spi,
    /// Sensitivity level of its packets (T21); `None` where it has none: keyed by hand.
    pub level: Option<u8>,
}

impl GatewaySa {
    /// The class the keys allow.
    pub const fn class(&self) -> Class {
        match self.keys {
            GatewayKeys::None => Class::None,
            GatewayKeys::Full { .. }
            | GatewayKeys::Shared { .. }
            | GatewayKeys::Ah(_)
            | GatewayKeys::AhShared { .. }
            | GatewayKeys::EspInAh { .. } => Class::Full,
            GatewayKeys::Inspect(_) => Class::Inspect,
        }
    }
}

/// Key material of an SA at the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "rare, and moved once")]
pub enum GatewayKeys {
    /// Class `none`: pass untouched.
    None,
    /// Class `full`: the SA as negotiated with the peer, and the keys of the segment to the terminal.
    Full {
        /// The SA between terminal and peer, seen from the terminal; keys of the peer's segment.
        peer: ChildSa,
        /// Keys of packets the terminal receives from the gateway.
        segment_in: EspKeys,
        /// Keys of packets the terminal sends to the gateway.
        segment_out: EspKeys,
    },
    /// Class `inspect`: cipher keys alone. No packet can be made of them.
    Inspect(InspectKeys),
    /// Class `full` under the end-to-end keys: used only while no nonce can meet its twin.
    Shared {
        /// The SA between terminal and peer, seen from the terminal.
        sa: ChildSa,
    },
    /// Class `full`, AH alone.
    Ah(AhSegments),
    /// Class `full`, AH alone under the end-to-end keys.
    AhShared {
        /// The SA between terminal and peer, seen from the terminal.
        sa: AhSa,
    },
    /// Class `full`, ESP inside AH.
    EspInAh {
        /// ESP between terminal and peer, seen from the terminal; keys of the peer's segment.
        peer: ChildSa,
        /// Keys of ESP packets the terminal receives from the gateway.
        segment_in: EspKeys,
        /// Keys of ESP packets the terminal sends to the gateway.
        segment_out: EspKeys,
        /// AH around it.
        ah: AhSegments,
    },
}

/// AH with keys of its own on each segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AhSegments {
    /// The SA between terminal and peer, seen from the terminal; keys of the peer's segment.
    pub peer: AhSa,
    /// Key of packets the terminal receives from the gateway.
    pub segment_in: Key,
    /// Key of packets the terminal sends to the gateway.
    pub segment_out: Key,
}

/// What class `inspect` is given: an integrity key has no place here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InspectKeys {
    /// Algorithms; never an AEAD.
    pub suite: EspSuite,
    /// Transport or tunnel.
    pub mode: Mode,
    /// Cipher key (with salt) of packets the terminal receives.
    pub cipher_in: Key,
    /// Cipher key (with salt) of packets the terminal sends.
    pub cipher_out: Key,
}

impl InspectKeys {
    /// The cipher keys of `sa`; `None` for an AEAD, whose one key would let the gateway forge.
    pub fn of(sa: &ChildSa) -> Option<Self> {
        (!sa.suite.is_aead()).then(|| Self {
            suite: sa.suite,
            mode: sa.mode,
            cipher_in: sa.keys_in.cipher.clone(),
            cipher_out: sa.keys_out.cipher.clone(),
        })
    }
}

/// Gateway or keyserver → registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToRegistry {
    /// A sealed registration, as it came from the access side.
    Register {
        /// The sealed message; `source` is where the terminal is.
        datagram: Datagram,
        /// The keyserver that is to serve the terminal: the gateway's choice. `None` while it reaches none.
        keyserver: Option<NodeName>,
    },
    /// The keyserver saw the first valid message under a session: it is the active one from now on.
    SessionConfirmed {
        /// Subscriber.
        subscriber: SubscriberHandle,
        /// Session.
        session: SessionId,
    },
    /// The keyserver wants the record and credentials for one exchange. Answered by [`FromRegistry::Credential`].
    Credential {
        /// Number to match the answer with.
        request: u64,
        /// Subscriber.
        subscriber: SubscriberHandle,
        /// Peer.
        peer: IpAddr,
        /// Sensitivity level of the packets.
        level: u8,
    },
    /// The terminal was not heard of for its lifetime.
    LocationExpired {
        /// Subscriber.
        subscriber: SubscriberHandle,
    },
}

/// Registry → gateway and keyserver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromRegistry {
    /// To the gateway: serve this terminal (K3).
    Grant {
        /// The subscriber, no secrets.
        subscriber: Subscriber,
        /// Where the terminal registered; empty for a fixed attachment.
        addresses: Vec<IpAddr>,
    },
    /// To the gateway: the terminal left or was removed.
    Withdraw {
        /// Subscriber.
        subscriber: SubscriberHandle,
    },
    /// To the gateway: the sealed answer to a registration.
    Answer {
        /// Where to send it.
        terminal: SocketAddr,
        /// The sealed datagram.
        sealed: Vec<u8>,
    },
    /// To the gateway that connected: everything was granted that it is to serve now; the rest is over.
    Complete,
    /// To the keyserver that connected: sessions of all other subscribers are over.
    Registered {
        /// Subscribers that are registered now.
        subscribers: Vec<SubscriberHandle>,
    },
    /// To the keyserver: keys of a new registration session.
    Session(SessionGrant),
    /// To the keyserver: the subscriber's sessions are over.
    SessionEnded {
        /// Subscriber.
        subscriber: SubscriberHandle,
    },
    /// To the keyserver: answer to [`ToRegistry::Credential`]; `None` when the subscriber may not talk to this peer.
    Credential {
        /// Number of the request.
        request: u64,
        /// Subscriber.
        subscriber: SubscriberHandle,
        /// Policy and credentials.
        credential: Option<(PeerPolicy, Credentials)>,
    },
    /// A message was refused; the gateway counts it.
    Refused(DropCode),
    /// Something to tell people.
    Event(Event),
}

/// Identifies one registration of one subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SessionId(pub u64);

/// Session keys the registry derives for the keyserver from one registration. The subscriber key stays behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionGrant {
    /// Subscriber.
    pub subscriber: SubscriberHandle,
    /// Subscriber's name, for the live view.
    pub name: String,
    /// The operator it belongs to: whose share of the keyserver its exchanges are.
    pub operator: String,
    /// The gateway it registered through: where messages to it go.
    pub gateway: NodeName,
    /// Session.
    pub session: SessionId,
    /// Terminal → network key.
    pub t2n: SecretKey<32>,
    /// Network → terminal key.
    pub n2t: SecretKey<32>,
    /// Addresses the terminal registered with.
    pub addresses: Vec<IpAddr>,
    /// Seconds the registration lasts.
    pub lifetime_seconds: u32,
}

/// A [`DropReason`] by name, so that roles of different versions understand each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropCode(u16);

impl From<DropReason> for DropCode {
    fn from(reason: DropReason) -> Self {
        Self(reason as u16)
    }
}

impl DropCode {
    /// The reason, if this side knows it.
    pub fn reason(self) -> Option<DropReason> {
        DropReason::ALL.get(usize::from(self.0)).copied()
    }
}

/// One line of the live view: who, with whom, what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Subscriber's name, or its handle.
    pub subscriber: String,
    /// Terminal's address, if known.
    pub terminal: Option<IpAddr>,
    /// Peer's address, if any.
    pub peer: Option<IpAddr>,
    /// Our SPI of the IKE SA it is about, if any.
    pub ike: Option<u64>,
    /// Stable machine name, `snake_case`: `registered`, `proxy_request`, `ike_established`, `child_established`,
    /// `key_transferred`, `child_deleted`, `exchange_failed`, …
    pub kind: String,
    /// The rest, for people. Never key material.
    pub text: String,
}

/// The bytes do not decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Undecodable;

/// Encodes a message for a channel between machines.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    // Serialising into a growing vector fails only for types that refuse to serialise; ours do not.
    postcard::to_allocvec(message).unwrap_or_default()
}

/// Decodes what [`encode`] made.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Undecodable> {
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        _ => Err(Undecodable),
    }
}

#[cfg(test)]
mod tests {
    use towpath_base::sa::{Lifetime, Selectors};
    use towpath_base::selector::TrafficSelector;

    use super::*;

    fn install() -> FromKeyserver {
        let (local, remote) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let keys = EspKeys::split(EspSuite::Aes128Gcm16, &[7; 20]).unwrap();
        FromKeyserver::Install(Box::new(GatewaySa {
            subscriber: SubscriberHandle(1),
            local,
            remote,
            spi_in: Spi(0x1001),
            spi_out: Spi(0x1002),
            level: Some(0),
            keys: GatewayKeys::Full {
                peer: ChildSa {
                    local,
                    remote,
                    suite: EspSuite::Aes128Gcm16,
                    mode: Mode::Transport,
                    esn: true,
                    encap: None,
                    spi_in: Spi(0x1001),
                    spi_out: Spi(0x1002),
                    keys_in: keys.clone(),
                    keys_out: keys.clone(),
                    local_ts: Selectors::one(TrafficSelector::host(local)),
                    remote_ts: Selectors::one(TrafficSelector::host(remote)),
                    lifetime: Lifetime::default(),
                },
                segment_in: keys.clone(),
                segment_out: keys,
            },
        }))
    }

    #[test]
    fn a_message_survives_the_channel() {
        let message = install();
        assert_eq!(decode::<FromKeyserver>(&encode(&message)), Ok(message));
    }

    #[test]
    fn class_inspect_is_given_no_integrity_key_and_an_aead_nothing_at_all() {
        let FromKeyserver::Install(sa) = install() else {
            panic!()
        };
        let GatewayKeys::Full { mut peer, .. } = sa.keys else {
            panic!()
        };
        assert_eq!(InspectKeys::of(&peer), None);
        peer.suite = EspSuite::Aes128CbcSha256;
        peer.keys_in = EspKeys::split(peer.suite, &[1; 48]).unwrap();
        peer.keys_out = EspKeys::split(peer.suite, &[2; 48]).unwrap();
        let keys = InspectKeys::of(&peer).unwrap();
        assert_eq!((keys.cipher_in.len(), keys.cipher_out.len()), (16, 16));
        let bytes = encode(&GatewayKeys::Inspect(keys));
        assert!(
            !bytes
                .windows(17)
                .any(|window| window == [1; 17] || window == [2; 17])
        );
    }

    #[test]
    fn truncated_or_trailing_bytes_are_refused() {
        let mut bytes = encode(&install());
        for len in 0..bytes.len() {
            assert!(decode::<FromKeyserver>(&bytes[..len]).is_err(), "{len}");
        }
        bytes.push(0);
        assert!(decode::<FromKeyserver>(&bytes).is_err());
        assert_eq!(decode::<FromKeyserver>(&[0xff; 64]), Err(Undecodable));
    }
}
