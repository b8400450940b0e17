//! IP-in-IP and GRE: what is taken off is put back, whatever became of the packet inside.
#![allow(missing_docs)]

mod common;

use common::*;
use proptest::prelude::*;
use towpath_common::wire::checksum;
use towpath_ipsec::wrapped::{self, Wrap};

#[derive(Debug, Clone, Copy)]
enum Kind {
    Ip,
    Gre { sum: bool, key: Option<u32> },
}

fn kinds() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Ip),
        (any::<bool>(), any::<Option<u32>>()).prop_map(|(sum, key)| Kind::Gre { sum, key }),
    ]
}

fn gre(sum: bool, key: Option<u32>, inner: &[u8]) -> Vec<u8> {
    let flags = u16::from(sum) << 15 | u16::from(key.is_some()) << 13;
    let version = if inner[0] >> 4 == 4 { 0x0800u16 } else { 0x86dd };
    let mut out = [flags.to_be_bytes(), version.to_be_bytes()].concat();
    if sum {
        out.extend([0; 4]);
    }
    out.extend(key.map(u32::to_be_bytes).iter().flatten());
    out.extend(inner);
    if sum {
        let value = checksum(&out).to_be_bytes();
        out[4..6].copy_from_slice(&value);
    }
    out
}

/// `inner` inside a packet between two agents, made here from nothing but the RFCs.
fn around(kind: Kind, outer_v6: bool, options: bool, tos: u8, inner: &[u8]) -> Vec<u8> {
    let (protocol, body) = match kind {
        Kind::Ip if inner[0] >> 4 == 4 => (4, inner.to_vec()),
        Kind::Ip => (41, inner.to_vec()),
        Kind::Gre { sum, key } => (47, gre(sum, key, inner)),
    };
    if outer_v6 {
        let mut out = vec![0x60 | tos >> 4, tos << 4, 0, 0];
        out.extend((body.len() as u16).to_be_bytes());
        out.extend([protocol, 61]);
        out.extend([0xfd; 16]);
        out.extend([0xfe; 16]);
        out.extend(body);
        return out;
    }
    let header = if options { 24 } else { 20 };
    let mut out = vec![0x40 | (header / 4) as u8, tos];
    out.extend((body.len() as u16 + header).to_be_bytes());
    out.extend([0x77, 0x01, 0, 0, 61, protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    if options {
        out.extend([0x94, 4, 0, 0]);
    }
    let sum = checksum(&out).to_be_bytes();
    out[10..12].copy_from_slice(&sum);
    out.extend(body);
    out
}

fn put(wrap: &Wrap, inner: &[u8]) -> Option<Vec<u8>> {
    let mut packet = Packet::new(inner);
    packet.with(|p| wrap.put(p))?;
    Some(packet.bytes().to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn what_is_taken_off_is_put_back_around_any_other_packet(
        kind in kinds(), outer_v6: bool, inner_v6: bool, options: bool, tos: u8, len in 0usize..1500, other in 0usize..1500, padding in 0usize..20,
    ) {
        let inner = udp(local(inner_v6), remote(inner_v6), &vec![0xa5; len]);
        let whole = around(kind, outer_v6, options, tos, &inner);
        let padded = [&whole[..], &vec![0; padding]].concat();
        let (wrap, at) = wrapped::unwrap(&padded).unwrap();
        prop_assert_eq!(&padded[at], &inner[..]);
        prop_assert_eq!(usize::from(wrap.len()), whole.len() - inner.len());
        prop_assert_eq!(put(&wrap, &inner).unwrap(), whole);
        // Another packet of the same family: what its sender would have made of it.
        let inner = udp(local(inner_v6), remote(inner_v6), &vec![0x5a; other]);
        prop_assert_eq!(put(&wrap, &inner).unwrap(), around(kind, outer_v6, options, tos, &inner));
    }

    #[test]
    fn a_packet_of_the_gateways_own_has_its_own_name_and_mark_and_goes_back_the_same_way(
        kind in kinds(), outer_v6: bool, inner_v6: bool, options: bool, tos: u8, mark in 0u8..4, name: u16,
    ) {
        let inner = udp(local(inner_v6), remote(inner_v6), b"a body");
        let (wrap, _) = wrapped::unwrap(&around(kind, outer_v6, options, tos, &inner)).unwrap();
        let mut marked = inner.clone();
        marked[1] = if inner_v6 { mark << 4 } else { mark };
        let fresh = put(&wrap.fresh(name, &marked), &marked).unwrap();
        let mut expected = around(kind, outer_v6, options, tos & !3 | mark, &marked);
        if !outer_v6 {
            expected[4..6].copy_from_slice(&name.to_be_bytes());
            expected[10..12].fill(0);
            let header = usize::from(expected[0] & 15) * 4;
            let sum = checksum(&expected[..header]).to_be_bytes();
            expected[10..12].copy_from_slice(&sum);
        }
        prop_assert_eq!(&fresh, &expected);
        let back = wrap.reversed();
        prop_assert_eq!(back.is_none(), options && !outer_v6);
        if let Some(back) = back {
            let (source, destination) = wrap.ends().unwrap();
            prop_assert_eq!(back.ends().unwrap(), (destination, source));
            prop_assert_eq!(back.reversed(), Some(wrap));
            let (again, _) = wrapped::unwrap(&put(&back, &inner).unwrap()).unwrap();
            prop_assert_eq!(again.ends(), back.ends());
        }
    }

    #[test]
    fn no_bytes_from_the_wire_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in kinds(), v6: bool, flip in any::<prop::sample::Index>()) {
        let _ = wrapped::unwrap(&bytes);
        let mut whole = around(kind, v6, false, 0, &udp(local(!v6), remote(!v6), &bytes));
        let at = flip.index(whole.len() * 8);
        whole[at / 8] ^= 1 << (at % 8);
        if let Some((wrap, inner)) = wrapped::unwrap(&whole) {
            prop_assert!(put(&wrap, &whole[inner]).is_some());
        }
    }
}

/// What could not be put back, or is not whole, is left alone.
#[test]
fn fragments_numbered_gre_and_broken_insides_are_left_alone() {
    let inner = udp(local(false), remote(false), b"inside");
    let good = around(Kind::Ip, false, false, 0, &inner);
    assert!(wrapped::unwrap(&good).is_some());
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        wrapped::unwrap(&bytes)
    };
    assert_eq!(changed(&|bytes| bytes[6] = 0x20), None, "the first fragment");
    assert_eq!(
        changed(&|bytes| bytes[9] = 41),
        None,
        "IPv4 where IPv6 is said to be"
    );
    assert_eq!(
        changed(&|bytes| bytes[22..24].fill(0)),
        None,
        "an inner length of nothing"
    );
    assert_eq!(
        changed(&|bytes| bytes.truncate(40)),
        None,
        "less than the header says"
    );
    let key = Some(42);
    for flags in [0x10u8, 0x40, 0x08, 0x04] {
        let mut numbered = around(Kind::Gre { sum: false, key }, false, false, 0, &inner);
        numbered[20] |= flags;
        assert_eq!(wrapped::unwrap(&numbered), None, "flags {flags:#x}");
    }
    let mut summed = around(Kind::Gre { sum: true, key }, true, false, 0, &inner);
    assert!(wrapped::unwrap(&summed).is_some());
    *summed.last_mut().unwrap() ^= 1;
    assert_eq!(wrapped::unwrap(&summed), None, "a wrong checksum");
    let long = vec![0x5a; 65_500];
    let (wrap, _) = wrapped::unwrap(&good).unwrap();
    let mut buffer = vec![0; 66_000];
    buffer[100..100 + long.len()].copy_from_slice(&long);
    let mut packet = towpath_base::packet::PacketBuf::new(&mut buffer, 100, 65_516).unwrap();
    assert_eq!(wrap.put(&mut packet), None, "longer than IP allows");
}
