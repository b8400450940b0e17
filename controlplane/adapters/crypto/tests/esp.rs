//! The two ESP providers against each other: what one seals the other opens, and the bytes are the same.
#![allow(missing_docs)]

use proptest::prelude::*;
use towpath_base::crypto::{EspParts, EspProvider, EspTransform};
use towpath_base::sa::{EspCipher, EspKeys, EspSuite};
use towpath_crypto::AwsLcEsp;
use towpath_ipsec::soft::SoftEsp;

prop_compose! {
    fn keyed()(suite in prop::sample::select(EspSuite::ALL))(
        material in prop::collection::vec(any::<u8>(), suite.key_material_len()),
        iv in prop::collection::vec(any::<u8>(), suite.iv_len()),
        blocks in 1usize..=(1600 / suite.block_len()), fill in any::<u8>(), header in any::<[u8; 8]>(), esn_high in any::<Option<u32>>(),
        suite in Just(suite),
    ) -> (EspSuite, EspKeys, Vec<u8>, Vec<u8>, [u8; 8], Option<u32>) {
        let payload = (0..blocks * suite.block_len()).map(|i| fill.wrapping_add(i as u8)).collect();
        (suite, EspKeys::split(suite, &material).unwrap(), iv, payload, header, esn_high)
    }
}

proptest! {
    #[test]
    fn both_providers_make_and_take_the_same_packets((suite, keys, iv, plain, header, esn_high) in keyed()) {
        let mut ours = AwsLcEsp.transform(suite, &keys).unwrap();
        let mut other = SoftEsp.transform(suite, &keys).unwrap();
        let (mut a, mut a_icv) = (plain.clone(), vec![0; suite.icv_len()]);
        let (mut b, mut b_icv) = (plain.clone(), vec![0; suite.icv_len()]);
        ours.seal(EspParts { header, esn_high, iv: &iv, payload: &mut a, icv: &mut a_icv }).unwrap();
        other.seal(EspParts { header, esn_high, iv: &iv, payload: &mut b, icv: &mut b_icv }).unwrap();
        prop_assert_eq!((&a, &a_icv), (&b, &b_icv));
        prop_assert_eq!(a == plain, suite.cipher() == EspCipher::Null);
        ours.open(EspParts { header, esn_high, iv: &iv, payload: &mut b, icv: &mut b_icv }).unwrap();
        other.open(EspParts { header, esn_high, iv: &iv, payload: &mut a, icv: &mut a_icv }).unwrap();
        prop_assert_eq!((&a, &b), (&plain, &plain));
    }

    #[test]
    fn both_refuse_what_was_altered((suite, keys, iv, plain, header, esn_high) in keyed(), bit in any::<prop::sample::Index>()) {
        let mut ours = AwsLcEsp.transform(suite, &keys).unwrap();
        let mut sealed = plain;
        let mut icv = vec![0; suite.icv_len()];
        ours.seal(EspParts { header, esn_high, iv: &iv, payload: &mut sealed, icv: &mut icv }).unwrap();
        let mut all = [&header[..], &iv, &sealed, &icv].concat();
        let bit = bit.index(all.len() * 8);
        all[bit / 8] ^= 1 << (bit % 8);
        let refused = |transform: &mut dyn EspTransform| {
            let mut all = all.clone();
            let (header, rest) = all.split_first_chunk_mut::<8>().unwrap();
            let (iv, rest) = rest.split_at_mut(iv.len());
            let (payload, icv) = rest.split_at_mut(rest.len() - suite.icv_len());
            transform.open(EspParts { header: *header, esn_high, iv, payload, icv }).is_err()
        };
        prop_assert!(refused(&mut ours));
        prop_assert!(refused(&mut SoftEsp.transform(suite, &keys).unwrap()));
    }
}

#[test]
fn wrong_lengths_are_refused() {
    for suite in EspSuite::ALL {
        let keys = EspKeys::split(*suite, &vec![7; suite.key_material_len()]).unwrap();
        let mut transform = AwsLcEsp.transform(*suite, &keys).unwrap();
        let (iv, mut payload) = (vec![0; suite.iv_len()], [0; 32]);
        for icv_len in [0, 12, 15, 17, 31, 33] {
            let icv = &mut [0; 40][..icv_len];
            let parts = EspParts {
                header: [0; 8],
                esn_high: None,
                iv: &iv,
                payload: &mut payload,
                icv,
            };
            assert!(transform.open(parts).is_err(), "{suite} {icv_len}");
        }
        let other = EspSuite::ALL
            .iter()
            .find(|other| other.key_material_len() != suite.key_material_len())
            .unwrap();
        assert!(AwsLcEsp.transform(*other, &keys).is_err());
    }
}
