//! What people and files say about policies: addresses, ranges, ports, selectors, proposals, suites.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towpath_base::policy::{AddressRange, IpsecProtocol, PortRange};
use towpath_base::sa::EspSuite;
use towpath_base::selector::{Prefix, TrafficSelector};
use towpath_ike::IkeProposal;

macro_rules! read_back {
    ($text:expr, $($kind:ty),+) => {$(
        if let Ok(value) = $text.parse::<$kind>() {
            let written = value.to_string();
            assert_eq!(written.parse::<$kind>().ok(), Some(value), "{written}");
        }
    )+};
}

fuzz_target!(|text: &str| {
    read_back!(
        text,
        AddressRange,
        PortRange,
        IpsecProtocol,
        Prefix,
        EspSuite,
        TrafficSelector,
        IkeProposal
    );
});
