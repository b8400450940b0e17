//! Newtypes for identifiers that would otherwise all be integers.

use core::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty), $format:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "(", $format, ")"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, $format, self.0)
            }
        }
    };
}

id!(
    /// Security Parameters Index of an ESP or AH SA (RFC 4301 §4.1), host byte order.
    /// Values below 256 are reserved and never allocated.
    Spi(u32),
    "{:08x}"
);
id!(
    /// Initiator's or responder's SPI of an IKE SA (RFC 7296 §2.6), the eight bytes as a big-endian number.
    IkeSpi(u64),
    "{:016x}"
);
id!(
    /// Message ID of an IKE message (RFC 7296 §2.2).
    MessageId(u32),
    "{}"
);
id!(
    /// Number the registry gave a subscriber; stands in sealed messages and in the classifier's maps.
    SubscriberHandle(u64),
    "{}"
);
