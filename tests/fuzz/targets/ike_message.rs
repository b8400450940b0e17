//! IKE header and every payload parser; what was understood is written and understood the same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towpath_ike::wire::{Header, encode_payloads, parse_payloads, summary};

fuzz_target!(|message: &[u8]| {
    let Ok((header, body)) = Header::parse(message) else {
        return;
    };
    let Ok(payloads) = parse_payloads(header.next_payload, body) else {
        return;
    };
    let line = summary(&header, &payloads);
    assert!(
        !line.contains(char::is_control),
        "one line of log, whatever is inside"
    );
    let mut again = Vec::new();
    encode_payloads(&payloads, &mut again);
    let first = payloads.first().map_or(0, |payload| payload.kind().0);
    let read = parse_payloads(first, &again).expect("what we write we understand");
    assert_eq!(read, payloads);
});
