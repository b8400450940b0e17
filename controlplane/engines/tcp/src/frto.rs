//! F-RTO: was the timeout spurious? (RFC 5682, the SACK-enhanced form).
//!
//! After a timeout the first segment goes again. If what the peer then reports as received is data that was
//! never sent again, the originals are arriving and the timeout came too early.

use crate::codec::choice;

/// Where the detection stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Frto {
    /// Not under way.
    #[default]
    Off,
    /// The first segment was sent again; waiting for the first acknowledgment (step 2).
    First,
    /// That acknowledged new data; new data went out; waiting for the second (step 3).
    Second,
}
choice!(Frto { Off = 0, First = 1, Second = 2 });

/// What an acknowledgment proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FrtoVerdict {
    /// Nothing yet.
    Undecided,
    /// Prefer new data to retransmissions until the next acknowledgment (step 2b).
    SendNew,
    /// The timeout was spurious.
    Spurious,
    /// The timeout was right: recover.
    Genuine,
}

impl Frto {
    /// Judges an acknowledgment: `advanced` SND.UNA, `original_delivered` data from before the timeout
    /// never sent again, `duplicate` reported a D-SACK, `past_recovery` covers everything sent before.
    pub(crate) const fn on_ack(
        &mut self,
        advanced: bool,
        original_delivered: bool,
        duplicate: bool,
        past_recovery: bool,
    ) -> FrtoVerdict {
        match *self {
            Self::Off => FrtoVerdict::Undecided,
            _ if duplicate => {
                *self = Self::Off;
                FrtoVerdict::Genuine
            }
            _ if original_delivered => {
                *self = Self::Off;
                FrtoVerdict::Spurious
            }
            Self::First if advanced && !past_recovery => {
                *self = Self::Second;
                FrtoVerdict::SendNew
            }
            _ => {
                *self = Self::Off;
                FrtoVerdict::Genuine
            }
        }
    }
}
