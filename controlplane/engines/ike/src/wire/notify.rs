//! Notify payloads (RFC 7296 §3.10).

use alloc::borrow::Cow;
use alloc::vec::Vec;
use core::fmt;

use super::{ParseError, Reader};

macro_rules! notifies {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $log:literal;)+) => {
        /// Notify Message Type.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct NotifyType(pub u16);

        impl NotifyType {
            $($(#[$doc])* pub const $name: Self = Self($number);)+

            /// Short name, as strongSwan's log has it.
            pub const fn name(self) -> Option<&'static str> {
                match self.0 { $($number => Some($log),)+ _ => None }
            }
        }
    };
}

notifies! {
    /// A payload with the critical bit was not understood; data: its type.
    UNSUPPORTED_CRITICAL_PAYLOAD = 1, "CRIT";
    /// No SA has these SPIs.
    INVALID_IKE_SPI = 4, "INVAL_IKE_SPI";
    /// Major version not supported.
    INVALID_MAJOR_VERSION = 5, "INVAL_MAJOR";
    /// Message malformed.
    INVALID_SYNTAX = 7, "INVAL_SYN";
    /// Message ID outside the window.
    INVALID_MESSAGE_ID = 9, "INVAL_MID";
    /// ESP packet with unknown SPI.
    INVALID_SPI = 11, "INVAL_SPI";
    /// No proposal acceptable.
    NO_PROPOSAL_CHOSEN = 14, "NO_PROP";
    /// Other group wanted; data: its number.
    INVALID_KE_PAYLOAD = 17, "INVAL_KE";
    /// Authentication failed.
    AUTHENTICATION_FAILED = 24, "AUTH_FAILED";
    /// One address pair only.
    SINGLE_PAIR_REQUIRED = 34, "SINGLE_PAIR";
    /// No further CHILD SAs.
    NO_ADDITIONAL_SAS = 35, "NO_ADD_SAS";
    /// No internal address.
    INTERNAL_ADDRESS_FAILURE = 36, "INT_ADDR_FAIL";
    /// Configuration payload wanted.
    FAILED_CP_REQUIRED = 37, "FAIL_CP_REQ";
    /// Selectors not acceptable.
    TS_UNACCEPTABLE = 38, "TS_UNACCEPT";
    /// Selectors not acceptable in this packet.
    INVALID_SELECTORS = 39, "INVAL_SEL";
    /// The addresses cannot be used (RFC 4555).
    UNACCEPTABLE_ADDRESSES = 40, "UNACC_ADDR";
    /// Try again later (RFC 7296 §2.25).
    TEMPORARY_FAILURE = 43, "TEMP_FAIL";
    /// The CHILD SA to rekey does not exist.
    CHILD_SA_NOT_FOUND = 44, "NO_CHILD_SA";
    /// Nothing is known of the exchange that this one continues (RFC 9370).
    STATE_NOT_FOUND = 47, "STATE_NOT_FOUND";
    /// The initiator has no other IKE SA with us.
    INITIAL_CONTACT = 16384, "INIT_CONTACT";
    /// Window size.
    SET_WINDOW_SIZE = 16385, "WINDOW_SIZE";
    /// More selectors could be had.
    ADDITIONAL_TS_POSSIBLE = 16386, "ADD_TS_POSS";
    /// IPComp offered.
    IPCOMP_SUPPORTED = 16387, "IPCOMP";
    /// Hash of SPIs, source address and port (RFC 7296 §2.23).
    NAT_DETECTION_SOURCE_IP = 16388, "NATD_S_IP";
    /// Hash of SPIs, destination address and port.
    NAT_DETECTION_DESTINATION_IP = 16389, "NATD_D_IP";
    /// Proof of return routability (RFC 7296 §2.6).
    COOKIE = 16390, "COOKIE";
    /// Transport mode wanted or agreed.
    USE_TRANSPORT_MODE = 16391, "USE_TRANSP";
    /// Certificates as hash and URL.
    HTTP_CERT_LOOKUP_SUPPORTED = 16392, "HTTP_CERT_LOOK";
    /// The SA that this request replaces.
    REKEY_SA = 16393, "REKEY_SA";
    /// No traffic flow confidentiality padding.
    ESP_TFC_PADDING_NOT_SUPPORTED = 16394, "ESP_TFC_PAD_N";
    /// Later fragments travel in an SA without port selectors.
    NON_FIRST_FRAGMENTS_ALSO = 16395, "NON_FIRST_FRAG";
    /// MOBIKE (RFC 4555).
    MOBIKE_SUPPORTED = 16396, "MOBIKE_SUP";
    /// Additional IPv4 address (RFC 4555).
    ADDITIONAL_IP4_ADDRESS = 16397, "ADD_4_ADDR";
    /// Additional IPv6 address (RFC 4555).
    ADDITIONAL_IP6_ADDRESS = 16398, "ADD_6_ADDR";
    /// No additional addresses (RFC 4555).
    NO_ADDITIONAL_ADDRESSES = 16399, "NO_ADD_ADDR";
    /// Addresses changed (RFC 4555).
    UPDATE_SA_ADDRESSES = 16400, "UPD_SA_ADDR";
    /// Return routability (RFC 4555).
    COOKIE2 = 16401, "COOKIE2";
    /// More than one authentication (RFC 4739).
    MULTIPLE_AUTH_SUPPORTED = 16404, "MULT_AUTH";
    /// Redirection (RFC 5685).
    REDIRECT_SUPPORTED = 16406, "REDIR_SUP";
    /// EAP alone authenticates (RFC 5998).
    EAP_ONLY_AUTHENTICATION = 16417, "EAP_ONLY";
    /// IKE SA without CHILD SA (RFC 6023).
    CHILDLESS_IKEV2_SUPPORTED = 16418, "CHDLESS_SUP";
    /// Fragmentation (RFC 7383).
    IKEV2_FRAGMENTATION_SUPPORTED = 16430, "FRAG_SUP";
    /// Signature hashes (RFC 7427).
    SIGNATURE_HASH_ALGORITHMS = 16431, "HASH_ALG";
    /// Puzzle (RFC 8019).
    PUZZLE = 16434, "PUZZLE";
    /// Post-quantum preshared keys (RFC 8784).
    USE_PPK = 16435, "USE_PPK";
    /// Identity of the post-quantum preshared key (RFC 8784).
    PPK_IDENTITY = 16436, "PPK_ID";
    /// Proof without the post-quantum preshared key (RFC 8784).
    NO_PPK_AUTH = 16437, "NO_PPK";
    /// Intermediate exchange (RFC 9242).
    INTERMEDIATE_EXCHANGE_SUPPORTED = 16438, "INTERMED_SUP";
    /// Additional key exchange follows (RFC 9370).
    ADDITIONAL_KEY_EXCHANGE = 16441, "ADD_KE";
}

impl NotifyType {
    /// Types below 16384 report errors (RFC 7296 §3.10.1).
    pub const fn is_error(self) -> bool {
        self.0 < 16384
    }
}

impl fmt::Display for NotifyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "({})", self.0),
        }
    }
}

/// A notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notify<'a> {
    /// Protocol ID of the SA it is about, 0 for none.
    pub protocol: u8,
    /// SPI of the SA it is about; empty for none.
    pub spi: Cow<'a, [u8]>,
    /// What is notified.
    pub kind: NotifyType,
    /// Data of the type.
    pub data: Cow<'a, [u8]>,
}

impl<'a> Notify<'a> {
    /// A notification about no SA in particular.
    pub fn new(kind: NotifyType, data: impl Into<Cow<'a, [u8]>>) -> Self {
        Self {
            protocol: 0,
            spi: Cow::Borrowed(&[]),
            kind,
            data: data.into(),
        }
    }

    pub(super) fn parse(body: &'a [u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(body);
        let protocol = reader.u8()?;
        let spi_len = reader.u8()?;
        let kind = NotifyType(reader.u16()?);
        let spi = reader.take(spi_len.into())?;
        Ok(Self {
            protocol,
            spi: Cow::Borrowed(spi),
            kind,
            data: Cow::Borrowed(reader.rest()),
        })
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        let spi = self.spi.get(..self.spi.len().min(255)).unwrap_or(&[]);
        out.extend_from_slice(&[self.protocol, spi.len() as u8]);
        out.extend_from_slice(&self.kind.0.to_be_bytes());
        out.extend_from_slice(spi);
        out.extend_from_slice(&self.data);
    }
}
