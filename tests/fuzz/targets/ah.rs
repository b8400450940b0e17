//! AH of strangers, and genuine AH around packets of any kind: options, extension headers, fragments.
#![no_main]

use libfuzzer_sys::fuzz_target;
use towpath_base::packet::PacketBuf;
use towpath_base::sa::{AhSa, EspIntegrity, Lifetime, Mode};
use towpath_base::{Instant, Key};
use towpath_fuzz::ipsec::{self, SPI_IN};
use towpath_ipsec::soft::SoftEsp;
use towpath_ipsec::{AhInbound, AhOutbound, ah};

const ROOM: usize = 256;

fn sa(integrity: EspIntegrity, mode: Mode, v6: bool) -> AhSa {
    let suite = towpath_base::sa::EspSuite::Aes128Gcm16;
    let like = ipsec::child(suite, v6, false);
    let key = Key::from_slice(&vec![5; integrity.key_len()]).expect("fits");
    AhSa {
        local: like.local,
        remote: like.remote,
        integrity,
        mode,
        esn: false,
        align8: false,
        bundled: false,
        spi_in: SPI_IN,
        spi_out: SPI_IN,
        key_in: key.clone(),
        key_out: key,
        local_ts: like.local_ts,
        remote_ts: like.remote_ts,
        lifetime: Lifetime::default(),
    }
}

fn with<R>(packet: &[u8], work: impl FnOnce(&mut PacketBuf<'_>) -> R) -> (R, Vec<u8>) {
    let mut buffer = vec![0; ROOM + packet.len() + ROOM];
    buffer[ROOM..ROOM + packet.len()].copy_from_slice(packet);
    let mut frame = PacketBuf::new(&mut buffer, ROOM, packet.len()).expect("there is room");
    let outcome = work(&mut frame);
    let bytes = frame.bytes().to_vec();
    (outcome, bytes)
}

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (flags, number, bytes) = input;
    let bytes = bytes.get(..2000).unwrap_or(bytes);
    let integrity = EspIntegrity::ALL[usize::from(number) % EspIntegrity::ALL.len()];
    let (v6, tunnel, genuine) = (flags & 1 != 0, flags & 2 != 0, flags & 4 != 0);
    let mode = if tunnel { Mode::Tunnel } else { Mode::Transport };
    let sa = sa(integrity, mode, v6);
    let now = Instant::from_secs(1);
    let _ = ah::locate(bytes);
    let mut inbound: AhInbound<_> = AhInbound::new(&SoftEsp, now, &sa).expect("key fits");
    if !genuine {
        let (opened, _) = with(bytes, |packet| inbound.open(now, packet));
        assert!(opened.is_err(), "nobody guesses an ICV");
        return;
    }
    // From the far end: its remote is our local.
    let far = AhSa {
        local: sa.remote,
        remote: sa.local,
        ..sa.clone()
    };
    let mut outbound = AhOutbound::new(&SoftEsp, now, &far).expect("key fits");
    let (sealed, on_wire) = with(bytes, |packet| outbound.seal(now, packet));
    if sealed.is_err() {
        return;
    }
    let mut flipped = on_wire.clone();
    if let Some(byte) = flipped.last_mut() {
        *byte ^= 1;
    }
    let (opened, plain) = with(&on_wire, |packet| inbound.open(now, packet));
    if opened.is_ok() {
        // Link padding behind the packet is not sealed, and a header is given its right checksum.
        let mut expected = bytes.get(..plain.len()).expect("not longer").to_vec();
        if plain.first().is_some_and(|first| first >> 4 == 4) {
            expected[10..12].copy_from_slice(&plain[10..12]);
        }
        assert_eq!(plain, expected, "what was sealed comes out");
        let (again, _) = with(&on_wire, |packet| inbound.open(now, packet));
        assert!(again.is_err(), "never twice");
    }
    let mut other: AhInbound<_> = AhInbound::new(&SoftEsp, now, &sa).expect("key fits");
    let (opened, _) = with(&flipped, |packet| other.open(now, packet));
    assert!(opened.is_err(), "a changed bit is seen");
});
