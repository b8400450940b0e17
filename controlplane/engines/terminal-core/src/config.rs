//! What a terminal is given when it starts.

use core::fmt;
use core::time::Duration;

use towpath_base::SubscriberHandle;
use towpath_base::key::SecretKey;
use towpath_keyx::frame::ReservedSpi;
use towpath_keyx::registration::Addresses;

/// What a terminal is provisioned with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Number the registry gave the subscriber.
    pub subscriber: SubscriberHandle,
    /// Subscriber key.
    pub ksub: SecretKey<32>,
    /// The terminal's addresses, at most four, at least one; the first of a family speaks for it.
    pub addresses: Addresses,
    /// Marks messages to and from the network.
    pub reserved: ReservedSpi,
    /// The last value [`Command::Persist`](crate::Command::Persist) stored; 0 in a new terminal.
    pub counter: u64,
    /// Time limits.
    pub timing: Timing,
}

/// Time limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// Wait after the first registration of an attempt, doubled after each.
    pub register_first: Duration,
    /// Longest wait between registrations of an attempt.
    pub register_longest: Duration,
    /// Wait after the first transmission of a proxy request, doubled after each.
    pub request_first: Duration,
    /// Longest wait between transmissions of a proxy request.
    pub request_longest: Duration,
    /// Transmissions of a proxy request before it is given up.
    pub request_transmissions: u32,
    /// Patience with a request the network accepted.
    pub request_accepted: Duration,
    /// Time without requests for a peer after a refusal that names none.
    pub hold_off: Duration,
    /// How long a packet waits for its SA.
    pub hold: Duration,
    /// How long a replaced SA still receives.
    pub linger: Duration,
    /// Packets sent for this long without any coming back: ask whether the network still knows the terminal.
    pub silence: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            register_first: Duration::from_secs(1),
            register_longest: Duration::from_secs(32),
            request_first: Duration::from_millis(500),
            request_longest: Duration::from_secs(8),
            request_transmissions: 8,
            request_accepted: Duration::from_secs(10),
            hold_off: Duration::from_secs(5),
            hold: Duration::from_secs(10),
            linger: Duration::from_secs(30),
            silence: Duration::from_secs(10),
        }
    }
}

/// The configuration cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InvalidConfig {
    /// More policies than the core was built for.
    TooManyPolicies,
    /// No address to register.
    NoAddress,
}

impl fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooManyPolicies => "more policies than this terminal holds",
            Self::NoAddress => "at least one address is needed",
        })
    }
}

impl core::error::Error for InvalidConfig {}
