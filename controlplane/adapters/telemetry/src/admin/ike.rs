//! IKE SAs: what can be asked of a keyserver, and what it shows.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Something about IKE SAs. `ike` names one by either of its SPIs, as `towpath ike list` prints them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum IkeRequest {
    /// One of them. Answered by [`super::Reply::IkeList`] of one.
    Show {
        /// Which.
        #[serde(with = "hex")]
        ike: u64,
    },
    /// Start an exchange in a subscriber's name, as its terminal's request would. Answered by
    /// [`super::Reply::IkeStarted`] before it is known how it ends.
    Initiate {
        /// The subscriber's name.
        subscriber: String,
        /// The peer.
        peer: IpAddr,
    },
    /// Replace an IKE SA, or one of its CHILD SAs, by a new one. Answered by [`super::Reply::IkeStarted`].
    Rekey {
        /// Which.
        #[serde(with = "hex")]
        ike: u64,
        /// Either SPI of a CHILD SA; the IKE SA itself when absent.
        child: Option<u32>,
    },
    /// Prove again who we are: a new IKE SA takes over from this one. Answered by [`super::Reply::IkeStarted`].
    Reauthenticate {
        /// Which.
        #[serde(with = "hex")]
        ike: u64,
    },
    /// End an IKE SA, or one of its CHILD SAs. Answered by [`super::Reply::IkeStarted`].
    Terminate {
        /// Which.
        #[serde(with = "hex")]
        ike: u64,
        /// Either SPI of a CHILD SA; the IKE SA with all of them when absent.
        child: Option<u32>,
    },
    /// Its keys, for Wireshark, where the configuration permits it. Answered by [`super::Reply::IkeKeys`].
    Keys {
        /// Which; all when absent.
        ike: Option<u64>,
    },
}

/// A CHILD SA of an IKE SA.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IkeChild {
    /// SPI of packets the terminal receives; eight hex digits.
    pub spi_in: String,
    /// SPI of packets the terminal sends; eight hex digits.
    pub spi_out: String,
}

/// An IKE SA, without keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IkeInfo {
    /// Subscriber's name.
    pub subscriber: String,
    /// Terminal's address.
    pub local: IpAddr,
    /// Peer's address.
    pub remote: IpAddr,
    /// Identity shown as the terminal.
    pub local_id: Option<String>,
    /// Identity the peer proved.
    pub remote_id: Option<String>,
    /// Initiator's SPI, sixteen hex digits.
    pub spi_i: String,
    /// Responder's SPI, sixteen hex digits.
    pub spi_r: String,
    /// Whether the keyserver started the exchange.
    pub initiator: bool,
    /// State: `connecting`, `authenticating`, `established`, `deleting`.
    pub state: String,
    /// Chosen proposal (`aes256gcm16-prfsha256-x25519`).
    pub proposal: Option<String>,
    /// Seconds since it was established.
    pub age_seconds: u64,
    /// UDP port of the terminal's end.
    #[serde(default)]
    pub local_port: u16,
    /// UDP port of the peer's end.
    #[serde(default)]
    pub remote_port: u16,
    /// Sensitivity level it was made for: 0 for everything.
    #[serde(default)]
    pub level: u8,
    /// Its CHILD SAs.
    #[serde(default)]
    pub children: Vec<IkeChild>,
    /// Seconds until it is rekeyed, if it ever is.
    #[serde(default)]
    pub rekey_in_seconds: Option<u64>,
}

mod hex {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(spi: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{spi:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16).map_err(|_| D::Error::custom("expected sixteen hex digits"))
    }
}
