//! Why a packet was dropped: one table makes the counter index, the name and the text people read.

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $text:literal;)+) => {
        /// A reason a packet was dropped; also the index of its counter.
        ///
        /// The discriminant is part of the kernel/user ABI: append, never reorder.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u16)]
        pub enum DropReason {
            $($(#[$doc])* #[doc = $text] $variant,)+
        }

        impl DropReason {
            /// Every reason, in counter order.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant,)+];

            /// Number of reasons, hence of counters.
            pub const COUNT: usize = Self::ALL.len();

            /// Stable machine name (`snake_case`), used in metrics and `--json`.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$variant => $name,)+ }
            }

            /// One line for people.
            pub const fn text(self) -> &'static str {
                match self { $(DropReason::$variant => $text,)+ }
            }
        }
    };
}

drop_reasons! {
    // -- seen by the XDP program ------------------------------------------------------------------
    Truncated = "truncated", "packet shorter than its headers say";
    BadIpHeader = "bad_ip_header", "IP version, header length or total length is not possible";
    TooManyExtensions = "too_many_extensions", "IPv6 extension header chain longer than the bound";
    TtlExpired = "ttl_expired", "TTL or hop limit reached zero";
    NoUserSpace = "no_user_space", "diverted, but no worker is attached to the queue";
    // -- sealed protocol between terminal and network ---------------------------------------------
    KeyxMalformed = "keyx_malformed", "sealed message too short, wrong version or unknown type";
    KeyxUnknownSubscriber = "keyx_unknown_subscriber", "no subscriber has this handle";
    KeyxUnknownSession = "keyx_unknown_session", "no registration session for this subscriber";
    KeyxForged = "keyx_forged", "authentication of a sealed message failed";
    KeyxReplayed = "keyx_replayed", "counter of a sealed message was seen before or is too old";
    KeyxWrongAddress = "keyx_wrong_address", "sealed message sent from an address it does not name";
    KeyxRateLimited = "keyx_rate_limited", "subscriber sent requests faster than its limit";
    // -- IPsec ------------------------------------------------------------------------------------
    EspMalformed = "esp_malformed", "ESP packet too short or not aligned";
    EspUnknownSpi = "esp_unknown_spi", "no SA for this destination and SPI";
    EspReplayed = "esp_replayed", "sequence number replayed or left of the window";
    EspAuthFailed = "esp_auth_failed", "integrity check failed";
    EspBadPadding = "esp_bad_padding", "ESP padding or next header is not valid";
    EspSelectorMismatch = "esp_selector_mismatch", "inner packet does not match the SA's selectors";
    EspSequenceExhausted = "esp_sequence_exhausted", "sequence number space used up";
    EspLifetimeExpired = "esp_lifetime_expired", "hard lifetime of the SA reached";
    NoHeadroom = "no_headroom", "buffer too small for the headers to add";
    TooBig = "too_big", "packet larger than the path MTU after sealing";
    PolicyDiscard = "policy_discard", "security policy says discard";
    HoldQueueFull = "hold_queue_full", "no room to hold the packet while its SA is set up";
    HoldTimeout = "hold_timeout", "the SA a held packet waited for did not arrive in time";
    // -- gateway ----------------------------------------------------------------------------------
    NotServed = "not_served", "diverted packet of an address that is not served here";
    NoRoute = "no_route", "no route or neighbour for the destination";
    ControlQueueFull = "control_queue_full", "control thread did not keep up";
    TransmitQueueFull = "transmit_queue_full", "no free transmit descriptor";
    // -- key exchange -----------------------------------------------------------------------------
    IkeMalformed = "ike_malformed", "IKE message does not parse";
    IkeUnknownSpi = "ike_unknown_spi", "IKE message for an SA that does not exist";
    IkeAuthFailed = "ike_auth_failed", "IKE message failed its integrity check";
    IkeUnexpected = "ike_unexpected", "IKE message not valid in the present state";
    IkeLimit = "ike_limit", "limit on half-open IKE SAs reached";
    // -- added later: rows are counter indexes, so they stay in order of arrival --------------------
    EspFragment = "esp_fragment", "fragment where IPsec needs the whole packet";
    EspDummy = "esp_dummy", "dummy packet (RFC 4303 2.6), discarded as it should be";
    SaRefused = "sa_refused", "the network refused the SA this packet needs";
    SequenceNotReserved = "sequence_not_reserved", "sequence numbers not reserved on disk yet: sending could repeat a nonce after a crash";
    RelayMalformed = "relay_malformed", "TCP segment inside an SA with a wrong checksum or header";
    RelayNoSa = "relay_no_sa", "no SA is left to carry a segment of the TCP relay";
    AhMalformed = "ah_malformed", "AH is missing, too short, or its length does not fit its algorithm";
    AhHeaderUnsupported = "ah_header_unsupported", "AH over a header whose changes on the way cannot be foretold";
    ReassemblyOverlap = "reassembly_overlap", "overlapping or contradicting fragments (RFC 5722), datagram refused";
    ReassemblyLimit = "reassembly_limit", "no room for another fragment";
    ReassemblyTimeout = "reassembly_timeout", "fragments whose rest did not arrive in time";
    FragmentKept = "fragment_kept", "fragment kept until the rest of its datagram arrives, no loss";
    EcnNotCapable = "ecn_not_capable", "congestion marked outside a packet that is not ECN-capable (RFC 6040 4.2)";
    IcmpNotOurs = "icmp_not_ours", "ICMP error that quotes nothing this SA may have sent";
    NatKeepalive = "nat_keepalive", "NAT keep-alive (RFC 3948 2.3) of an SA the gateway keeps alive itself, no loss";
    NoKeyserver = "no_keyserver", "no keyserver is reached: whoever sent the message repeats it";
    PolicyNoSa = "policy_no_sa", "security policy names SAs, and none of them can carry the packet";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_indexes_are_dense() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert!(
                DropReason::ALL[..index]
                    .iter()
                    .all(|other| other.name() != reason.name())
            );
        }
    }
}
