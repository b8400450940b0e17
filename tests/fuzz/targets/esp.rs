//! ESP of strangers, and of somebody who has the keys: every suite, mode, family and encapsulation.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towpath_base::Instant;
use towpath_base::crypto::{EspParts, EspProvider, EspTransform};
use towpath_base::packet::PacketBuf;
use towpath_base::sa::EspSuite;
use towpath_fuzz::ipsec::{self, SPI_IN};
use towpath_ipsec::soft::SoftEsp;
use towpath_ipsec::{Flow, InboundSa, locate};

/// A genuine ESP packet around `text`, which replaces payload and trailer.
fn sealed(suite: EspSuite, v6: bool, text: &[u8]) -> Vec<u8> {
    let sa = ipsec::child(suite, v6, false);
    let mut transform = SoftEsp.transform(suite, &sa.keys_in).unwrap();
    let mut payload = text.to_vec();
    payload.resize(
        payload
            .len()
            .next_multiple_of(suite.block_len())
            .max(suite.block_len()),
        0,
    );
    let (iv, mut icv) = (vec![9; suite.iv_len()], vec![0; suite.icv_len()]);
    let mut header = [0; 8];
    header[..4].copy_from_slice(&SPI_IN.0.to_be_bytes());
    header[7] = 1;
    let parts = EspParts {
        header,
        esn_high: None,
        iv: &iv,
        payload: &mut payload,
        icv: &mut icv,
    };
    transform.seal(parts).unwrap();
    let body = [&header[..], &iv, &payload, &icv].concat();
    ipsec::ip(v6, 50, &body)
}

fuzz_target!(|input: (u8, u8, Vec<u8>)| {
    let (flags, number, bytes) = input;
    let suite = EspSuite::ALL[usize::from(number) % EspSuite::ALL.len()];
    let (v6, tunnel, genuine) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
    let bytes = bytes.get(..2000).unwrap_or(&bytes);
    let packet = if genuine {
        sealed(suite, v6, bytes)
    } else {
        bytes.to_vec()
    };
    let _ = locate::esp(&packet);
    let _ = Flow::of(&packet);
    let sa = ipsec::child(suite, v6, tunnel);
    let now = Instant::from_secs(1);
    let mut inbound: InboundSa<_> = InboundSa::new(&SoftEsp, now, &sa).unwrap();
    let mut buffer = vec![0; 256 + packet.len() + 64];
    buffer[256..256 + packet.len()].copy_from_slice(&packet);
    let mut frame = PacketBuf::new(&mut buffer, 256, packet.len()).unwrap();
    let opened = inbound.open(now, &mut frame);
    assert!(frame.len() <= packet.len());
    if opened.is_ok() {
        assert!(genuine, "nobody guesses a tag");
        let mut buffer = vec![0; 256 + packet.len() + 64];
        buffer[256..256 + packet.len()].copy_from_slice(&packet);
        let mut frame = PacketBuf::new(&mut buffer, 256, packet.len()).unwrap();
        assert!(inbound.open(now, &mut frame).is_err(), "never twice");
    }
});
