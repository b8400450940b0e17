//! Class `inspect`: with the cipher key alone one sees what the owner of all keys sealed.
#![allow(missing_docs)]

mod common;

use common::*;
use proptest::prelude::*;
use towpath_base::sa::{EspSuite, Mode};
use towpath_base::{DropReason, Instant};
use towpath_ipsec::OutboundSa;
use towpath_ipsec::inspect::Inspector;
use towpath_ipsec::soft::SoftEsp;

const NOW: Instant = Instant::from_secs(1);

proptest! {
    #[test]
    fn what_was_sealed_is_seen_and_goes_on_untouched(
        suite in prop::sample::select(EspSuite::ALL), mode in prop::sample::select(Mode::ALL),
        v6: bool, encap: bool, len in 0usize..1500,
    ) {
        let sa = child(suite, mode, v6, v6, encap, false);
        let made = Inspector::new(&SoftEsp, suite, mode, &sa.keys_in.cipher, &sa.keys_out.cipher);
        if suite.is_aead() {
            prop_assert!(made.is_err());
            return Ok(());
        }
        let mut inspector = made.unwrap();
        let plain = udp(local(v6), remote(v6), &vec![7; len]);
        let mut packet = Packet::new(&plain);
        let mut sender = OutboundSa::new(&SoftEsp, NOW, &sa).unwrap();
        packet.with(|p| sender.seal(NOW, p, &mut TestRng(1))).unwrap();
        let mut scratch = vec![0; 2048];
        let seen = inspector.look(true, packet.bytes(), &mut scratch).unwrap();
        prop_assert_eq!(seen.sequence, 1);
        prop_assert_eq!(&scratch[seen.plain], &plain[..]);
    }

    #[test]
    fn nothing_on_the_wire_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), cut in 0usize..120) {
        let sa = child(EspSuite::Aes128CbcSha256, Mode::Tunnel, false, false, false, false);
        let mut inspector =
            Inspector::new(&SoftEsp, sa.suite, sa.mode, &sa.keys_in.cipher, &sa.keys_out.cipher).unwrap();
        let _ = inspector.look(true, &bytes, &mut [0; 300]);
        let mut packet = Packet::new(&udp(local(false), remote(false), &[1; 40]));
        let mut sender = OutboundSa::new(&SoftEsp, NOW, &sa).unwrap();
        packet.with(|p| sender.seal(NOW, p, &mut TestRng(1))).unwrap();
        let whole = packet.bytes();
        let _ = inspector.look(false, &whole[..whole.len().min(cut)], &mut [0; 300]);
        prop_assert_eq!(inspector.look(true, whole, &mut [0; 10]), Err(DropReason::NoHeadroom));
    }
}
