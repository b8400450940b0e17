//! Messages between gateway, keyserver and registry, as they come out of a channel.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towpath_fabric::{FromKeyserver, FromRegistry, ToKeyserver, ToRegistry, decode, encode};

macro_rules! round_trip {
    ($bytes:expr, $($message:ty),+) => {$(
        if let Ok(message) = decode::<$message>($bytes) {
            assert_eq!(decode::<$message>(&encode(&message)), Ok(message));
        }
    )+};
}

fuzz_target!(|bytes: &[u8]| {
    round_trip!(bytes, ToKeyserver, FromKeyserver, ToRegistry, FromRegistry);
});
