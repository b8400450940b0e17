//! What protects a manual SA, and the keys.

use alloc::vec::Vec;

use crate::ids::Spi;
use crate::key::Key;
use crate::sa::{Class, EspIntegrity, EspKeys, EspSuite};

/// Keys of a manual SA: what the gateway gets of them decides what it can do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[expect(clippy::large_enum_variant, reason = "rare, and moved once")]
pub enum ManualKeys {
    /// Class `none`: the gateway has no key.
    None,
    /// Class `full`: each segment has keys of its own.
    Segments {
        /// Peer → gateway.
        peer_in: EspKeys,
        /// Gateway → peer.
        peer_out: EspKeys,
        /// Gateway → terminal.
        segment_in: EspKeys,
        /// Terminal → gateway.
        segment_out: EspKeys,
    },
    /// Class `full` with the end-to-end keys: the gateway intervenes only while no nonce can meet its twin.
    Shared {
        /// Towards the terminal.
        keys_in: EspKeys,
        /// Towards the peer.
        keys_out: EspKeys,
    },
    /// Class `inspect`: cipher keys (with salt) alone.
    Inspect {
        /// Towards the terminal.
        cipher_in: Key,
        /// Towards the peer.
        cipher_out: Key,
    },
}

impl ManualKeys {
    /// The class they allow.
    pub const fn class(&self) -> Class {
        match self {
            Self::None => Class::None,
            Self::Inspect { .. } => Class::Inspect,
            Self::Segments { .. } | Self::Shared { .. } => Class::Full,
        }
    }

    /// Every key some sender uses: each must be another one.
    fn senders(&self) -> Vec<&EspKeys> {
        match self {
            Self::None | Self::Inspect { .. } => Vec::new(),
            Self::Shared { keys_in, keys_out } => [keys_in, keys_out].to_vec(),
            Self::Segments {
                peer_in,
                peer_out,
                segment_in,
                segment_out,
            } => [peer_in, peer_out, segment_in, segment_out].to_vec(),
        }
    }
}

/// Keys of both segments; each is another one.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Segments<K> {
    /// Peer → gateway.
    pub peer_in: K,
    /// Gateway → peer.
    pub peer_out: K,
    /// Gateway → terminal.
    pub segment_in: K,
    /// Terminal → gateway.
    pub segment_out: K,
}

impl<K> Segments<K> {
    fn all(&self) -> [&K; 4] {
        [&self.peer_in, &self.peer_out, &self.segment_in, &self.segment_out]
    }
}

/// Keys of an AH SA. There is no class `inspect`: AH hides nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
pub enum AhKeys {
    /// Class `none`: the gateway has no key.
    None,
    /// Class `full`: each segment has keys of its own.
    Segments(Segments<Key>),
    /// Class `full` with the end-to-end keys. An HMAC has no nonce: only sequence numbers have to agree.
    Shared {
        /// Towards the terminal.
        key_in: Key,
        /// Towards the peer.
        key_out: Key,
    },
}

/// AH as people ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields)
)]
pub struct AhForm {
    /// Algorithm.
    pub integrity: EspIntegrity,
    /// Over IPv4, too, a multiple of 8 bytes: what a Linux kernel expects of an SA without its flag `align4`.
    pub align8: bool,
}

/// What protects the packets of a manual SA, and the keys.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[expect(clippy::large_enum_variant, reason = "rare, and moved once")]
pub enum Protection {
    /// ESP.
    Esp {
        /// Algorithms.
        suite: EspSuite,
        /// Keys.
        keys: ManualKeys,
    },
    /// AH.
    Ah {
        /// Algorithm.
        form: AhForm,
        /// Keys.
        keys: AhKeys,
    },
    /// ESP inside AH (RFC 4301 appendix E), class `full` under segment keys. The SPIs of the SA are those of AH: what is
    /// seen from outside.
    EspInAh {
        /// Algorithms of ESP.
        suite: EspSuite,
        /// Keys of ESP.
        keys: Segments<EspKeys>,
        /// ESP's SPI of packets the terminal receives.
        spi_in: Spi,
        /// ESP's SPI of packets the terminal sends.
        spi_out: Spi,
        /// Algorithm of AH.
        form: AhForm,
        /// Keys of AH.
        ah: Segments<Key>,
    },
}

impl Protection {
    /// The class the keys allow.
    pub const fn class(&self) -> Class {
        match self {
            Self::Esp { keys, .. } => keys.class(),
            Self::Ah {
                keys: AhKeys::None, ..
            } => Class::None,
            Self::Ah { .. } | Self::EspInAh { .. } => Class::Full,
        }
    }

    /// Whether both ends and the gateway hold the same keys.
    pub const fn is_shared(&self) -> bool {
        matches!(
            self,
            Self::Esp {
                keys: ManualKeys::Shared { .. },
                ..
            } | Self::Ah {
                keys: AhKeys::Shared { .. },
                ..
            }
        )
    }

    /// ESP's algorithms, if there is ESP.
    pub const fn suite(&self) -> Option<EspSuite> {
        match self {
            Self::Esp { suite, .. } | Self::EspInAh { suite, .. } => Some(*suite),
            Self::Ah { .. } => None,
        }
    }

    /// AH's algorithm, if there is AH.
    pub const fn ah(&self) -> Option<AhForm> {
        match self {
            Self::Ah { form, .. } | Self::EspInAh { form, .. } => Some(*form),
            Self::Esp { .. } => None,
        }
    }

    /// Whether nonces of the gateway must be proven apart from those of another sender.
    pub const fn needs_proof(&self) -> bool {
        match self {
            Self::Esp {
                suite,
                keys: ManualKeys::Shared { .. },
            } => suite.is_counter_mode(),
            _ => false,
        }
    }

    /// Every key of ESP some sender uses.
    pub(super) fn esp_senders(&self) -> Vec<&EspKeys> {
        match self {
            Self::Esp { keys, .. } => keys.senders(),
            Self::Ah { .. } => Vec::new(),
            Self::EspInAh { keys, .. } => keys.all().to_vec(),
        }
    }

    /// Every key of AH some sender uses.
    pub(super) fn ah_senders(&self) -> Vec<&Key> {
        match self {
            Self::Esp { .. }
            | Self::Ah {
                keys: AhKeys::None, ..
            } => Vec::new(),
            Self::Ah {
                keys: AhKeys::Shared { key_in, key_out },
                ..
            } => [key_in, key_out].to_vec(),
            Self::Ah {
                keys: AhKeys::Segments(keys),
                ..
            } => keys.all().to_vec(),
            Self::EspInAh { ah, .. } => ah.all().to_vec(),
        }
    }
}
