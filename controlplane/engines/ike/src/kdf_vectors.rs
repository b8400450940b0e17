//! Key derivation against NIST's values for SP 800-135 (IKEv2).
//!
//! The first set has the inputs of CAVP's `ikev2.rsp` and the SHA2-256 values OpenSSL's own tests know for them
//! (`evpkdf_ikev2.txt`); the second is ACVP's, `kdf-components-ikev2-1.0`, group 7, case 121, as quoted there. Those for
//! SHA2-384 and SHA2-512 are the samples of CAVP's `ikev2.rsp` in NSS's tests (`ike-sha384-vectors.h`,
//! `ike-sha512-vectors.h`, numbers 6 to 9). A KDF gives a stream: of long outputs as many bytes are compared as the keys
//! of a suite take, or as the vector has.

use alloc::vec::Vec;

use towpath_base::crypto::{KeyGenerator, Prf, Secret};
use towpath_base::ids::IkeSpi;
use towpath_base::sa::EspSuite;
use towpath_crypto::IkeCrypto;

use crate::keys::{IkeKeys, Inputs, Keying};
use crate::proposal::{IkeProposal, IkeSuite};

const NI: &str = "3651fef5c9c35e93";
const NR: &str = "c09a8b90a3f04d59";
const SPIS: (u64, u64) = (0x8e5c_3ae5_0722_1684, 0xb1f2_01bb_155c_3acd);
const SHARED: &str = "\
d084a30166a50fb7325c3960874a839449ef9741c2f4f947d0201dd8c1269273d79509f37e3ca3eb4fa2fe2a28254e28\
9cd3f34dad4eb4df1a07685a4b8a94fa61e2491f7598b3ce65547ff133b3f63d1ac4175eaa695033f3cedb026a6873a3\
6455172a8540b8a5d23a0143bed0390ee49b168269d75fffee9fb62be965993c";
const SHARED_NEW: &str = "\
52f00ab174c25d5b7139ae5ff4e8e9eddee5992d2e36adf8a559ffd90dab1442e4fbe429d320c0f33552a17d1557fa41\
ea70e8fb916c4fa27ed52b5f8ebd8461afa78f1159159a64055ac5f6319e29c28eae58cbc6847770f32c3fed1d047504\
84f854790f95e9ec01bc5bc461f24966462e359511329305038e94deb6dd42c2";
const SKEYSEED: &str = "efaa7ab0eaa85a3d0be2100cd4b6fe00ff5025a9eafddb3ef518e9f0d3fe60e6";
const DKM: &str = "\
462b9dd525d4fd71169174272779e704baf62c6231779ae9efe8c58b21916b42010164af2111ebd762f6916ca9a6f0ee\
05c8b320e4ee27705521de2589adea1878f1a551738af7c88dc4f0bb0c096a3f7d1f1a670fc79f49f678d60d665bb371\
0c8657f03ba9f62b9a818d7a228968c506e237ae9502aa6db395c61ea6a3e79504f86b7368bfb5423df79e48809bbccd\
49fd826d024f63d7c2a5566400a12e736aa034510428f5ea";
const DKM_CHILD: &str = "\
23647677e7d403fa1e3006f19840aee18ad9fecc4215814c4131bdeba98433d8b0e31bfbbddf822abcce5e06486aa388\
022b75e27e1e68aa5983028b65282c730c5d49ef7606770376cfdec41f7cc435d816029989bc353d3b67b9fd1168ddcb";
const DKM_CHILD_NEW: &str = "\
6a919387a5fa2835fe8a8237e4a14845bd2b9930db87eff7adf268f62186004902dba9aa942d0259a0edc4120b932a50\
3865b57ba8fb88117ef5df7b26799cd8ba37aa5438108cb1a4fe117907c9d0597b708c3f11151fefd624d2317202b7c8";
const SKEYSEED_NEW: &str = "90722c42bd849e9b72d240fc254174270fa8295de6f0338dafc303a9ec104f12";

const ACVP_NI: &str = "\
F096BC348F4C0BE7A0932E065F72DA82F9E312379CBEC86574837E535DEDD0F81E86FE52F9D89336B17BF5DC030E766E\
71D25B60D724AAEFE8B60C2383BD6395703214D6E04C545443E95B47ADB11C80A60110C083402B335CDF9E4E2CD6200D\
C3A28D1F8E1D6F8293DEA1025707CE870439F9A3CB2638FE52A3F350CEE833E4EBB34F7C3920B9A0A4DCE7BC3E7DD650\
2F6D365FBB0BC0131FC74048BD145E7B9BE07F2E58FDF53A98B5AF8C3958C592ECB1642D63CEC46BE1A77A2E5B525554\
682114040FC201949B992E8076A2BA99F59C9B1368C69CB0E48FF0599290D4C635262EF4F1BB2E87C4CDF4FF7EA9FAD2\
010CBF30198B7A961606BF3E49C5618F";
const ACVP_NR: &str = "\
AA241EAD5C65408AE109D09993DBA807FF23E00883A466F2F408BCED7A8BB37729ABB124DE79A7652CDD450911B4FF1A\
252D11B8D6EF065B48FD2703CB6D682712E24E92F6CE3511DBB6F78AFFAFEF1B0B875AE2B3C559783EA7F2138B831C23\
6845B800D00AA28010C47D2F6744033A10B286E791D16DCBE31E9C994E45D659E65ECF03EAFFCD916FEBB320913C97DB\
41415961DC02823849A2009D9C126CC4E50F6CFE1F447C691463EA1309B66DE3BC39ABBB0ABC69525DEF486669E1F45A\
FFBDD6FE1F5314EDFC631E4655DF289108697F906C6C82BC0D8C52343278CD32A93FF33247764D3CCA18278C7876DEB0\
247ADE36149D99F3EF1E746D90DE0524";
const ACVP_SHARED: &str = "\
9E3D6F5B906FAC77CC7C877948F19113FF2AAC2B51DDA3D03803808E09B840E1E73DC8489C31659BDD78218B367DA86D\
C0EA41408ACADC67860C8DF60A8AF0EE07BEF7F05E51FD416B37F62D4429DCC5FA8A19FAA648A0DF2D279A9A72D0D2D4\
A666B51342A2F7D9E4E7882AA90A8F20A7FFC6DD5E9755BDD23A92562BE228F462A037D34A84C4C1677791FB067219C0\
7EC57C9BC43474DE3A009707635F5175E38F9DC3CA0DE6249A8B12D37590BE6942F6B67C580C83FF6402E130A85F4C79\
4A078CC4DC5BB73542D5A74734D8E11C313F67B0D99C7D6F53791F824228F942D346AC56ACEFA9A9A79018D57CD67983\
842459A1A21FC0F65E38B386045EC55B";
const ACVP_SPIS: (u64, u64) = (0xdc90_d7d6_83d1_c342, 0x4bad_dac5_301b_550b);
const ACVP_SKEYSEED: &str = "CB5B5E3729A6E797A257EE0124A6EA6143E753B7545C1266413119F5C108FE2E";
const ACVP_DKM: &str = "\
CDDD59534E22D7306C94D07D5C14FAD33E58838E02C7A8FA9C421F66FB72E51B553BC4798039DC7DD51967D2DF6759C4\
196849E790D3874066C14443938FF6B04305B4A6E1297FC561554AF242F404342721A1A92F0AA5FD66EA1835DEC56404\
2326B81DDDE622818BFA1B413BD02817F3AADD4DC43DFD64AC1EC3F072088E972D871E1100A0C23EC40484A456858899\
73984A17E8E081D0E80C91267D152E6B258C18525124FD26";

/// One sample: an IKE SA and its rekeying.
struct Sample {
    prf: &'static str,
    ni: &'static str,
    nr: &'static str,
    spis: (u64, u64),
    shared: &'static str,
    skeyseed: &'static str,
    dkm: &'static str,
    shared_new: &'static str,
    skeyseed_new: &'static str,
}

const SAMPLES: [Sample; 2] = [
    Sample {
        prf: "prfsha384",
        ni: "fd1b572a8e735591",
        nr: "6013b0ef88dacd3d",
        spis: (0x2116_ad07_ce61_f749, 0x2488_0e55_f11a_65b7),
        shared: "d3288cd87565101e88fe3bad918f31939d8dd26ff1071f8b2d7f447524e58d7c",
        skeyseed: "\
69fe7a1ac94adaeb711295f5fe004b1a8d6a0b65d05692758ce8ad2f7a45f59d7d0b596f51f7dfcf3330061888f6a94f",
        dkm: "\
4f904c2025c90c817ea5ff9b662a6fdb445a73b57cdf09eacd379b95e1f03cacb04cd6deeda4f952191dd9bc1f7a9502\
471a648d74dc06d38112de48a42501f6b1a3ad55c2099cd9a648e5f17e5bf3e34bf9b5953decb768a34f875fe2b78dca\
0c2fcca81ec1a412006dfaed38fa06882e61f4c148105fb8e231fdb33c4d484c001721d4",
        shared_new: "3358f620539473aee8d07e779764c4c6a9aabddc79a28e136b3bac021dbde44a",
        skeyseed_new: "\
e0548c1682e13bce454026b3b1bdf42985b24e4e7408095a7c529de38c3d1fcb04c9fe6868042a34c9614c6c99e3fcea",
    },
    Sample {
        prf: "prfsha512",
        ni: "97c41a9b0a03e74c",
        nr: "a659fd06e1746600",
        spis: (0xff43_c5c6_89b9_5481, 0xe2ba_607f_3007_9bb7),
        shared: "276255c3eaace5c6db32b609aa86c0ef07bba4bf2dc4c262995efd95ca607c3f",
        skeyseed: "\
d6e74966b75fd2afab48be319d63d97c8a5d2ffe2e320763a462c664b36c3a944067d867c3a55fd8a7e5cca64b22e244\
15987e15549f09a81b455adaa5303df8",
        dkm: "\
22259105314717dc73c210919ee9cb3ded774dc087e866aa3960404c0ed7b8e78e79b993888388e2e5cb238d4bfcb4cd\
ee9da074a26e329d6c2f2f660cc9c711c941a2fb3d85a2e5d01e579c8f2c9d00fa6fabe76a137b00c7ff1b2918999065\
88c26f073d819063238c4c844f0f8d221b65b76dbc9ed6f6368e5dba86b3e81b60eb44a1",
        shared_new: "bb4015f7727b35532021336a9e4a6370ac8729b01fbb8f15d52236820fac4709",
        skeyseed_new: "\
ecdaf3ccb990abc898a453b03fd56f9975275f150e1e571b0560b3cb2ee67289e82b899cdc2129fd821fe8aebea796f1\
90765c25798f5883f923526551f16a4b",
    },
];

fn bytes(hex: &str) -> Vec<u8> {
    assert!(hex.len().is_multiple_of(2));
    let pairs = (0..hex.len()).step_by(2);
    pairs
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}

fn suite() -> IkeSuite {
    suite_of("prfsha256")
}

fn suite_of(prf: &str) -> IkeSuite {
    let text = ["aes256gcm16", prf, "modp2048"].join("-");
    let proposal: IkeProposal = text.parse().unwrap();
    IkeSuite {
        cipher: proposal.ciphers[0],
        integrity: None,
        prf: proposal.prfs[0],
        group: proposal.groups[0],
        additional: None,
    }
}

/// The keys in the order they are taken from the stream: nothing is left out, and nothing twice.
fn stream(keys: &IkeKeys) -> Vec<u8> {
    let parts = [
        &keys.sk_d,
        &keys.sk_i.authentication,
        &keys.sk_r.authentication,
        &keys.sk_i.encryption,
        &keys.sk_r.encryption,
        &keys.sk_pi,
        &keys.sk_pr,
    ];
    parts.map(|key| key.expose().to_vec()).concat()
}

fn first(nonces: (&[u8], &[u8]), spis: (u64, u64), shared: &str) -> IkeKeys {
    let inputs = Inputs {
        spi_i: IkeSpi(spis.0),
        spi_r: IkeSpi(spis.1),
        ni: nonces.0,
        nr: nonces.1,
    };
    IkeKeys::first(&IkeCrypto, suite(), &Secret::new(bytes(shared)), inputs).unwrap()
}

#[test]
fn an_ike_sa_and_its_rekeying_derive_what_sp_800_135_says() {
    let (ni, nr) = (bytes(NI), bytes(NR));
    let nonces = [&ni[..], &nr].concat();
    let seed = IkeCrypto.prf(Prf::HmacSha256, &nonces, &[&bytes(SHARED)]);
    assert_eq!(seed.expose(), bytes(SKEYSEED));
    let keys = first((&ni, &nr), SPIS, SHARED);
    assert_eq!(stream(&keys), bytes(DKM)[..168]);

    // SKEYSEED(Rekey) = prf(SK_d, g^ir (new) | Ni | Nr), of which the new SA's keys are made.
    let new = Secret::new(bytes(SHARED_NEW));
    let seed = IkeCrypto.prf(Prf::HmacSha256, keys.sk_d.expose(), &[new.expose(), &ni, &nr]);
    assert_eq!(seed.expose(), bytes(SKEYSEED_NEW));
    let inputs = Inputs {
        spi_i: IkeSpi(SPIS.1),
        spi_r: IkeSpi(SPIS.0),
        ni: &ni,
        nr: &nr,
    };
    let rekeyed = keys.rekeyed(&IkeCrypto, suite(), &new, None, inputs).unwrap();
    let (spi_i, spi_r) = (SPIS.1.to_be_bytes(), SPIS.0.to_be_bytes());
    let parts = [&ni[..], &nr, &spi_i, &spi_r];
    let expected = IkeCrypto.prf_plus(Prf::HmacSha256, &bytes(SKEYSEED_NEW), &parts, 168);
    assert_eq!(stream(&rekeyed), expected.expose());

    let (ni, nr) = (bytes(ACVP_NI), bytes(ACVP_NR));
    let nonces = [&ni[..], &nr].concat();
    let seed = IkeCrypto.prf(Prf::HmacSha256, &nonces, &[&bytes(ACVP_SHARED)]);
    assert_eq!(seed.expose(), bytes(ACVP_SKEYSEED));
    let keys = first((&ni, &nr), ACVP_SPIS, ACVP_SHARED);
    assert_eq!(stream(&keys), bytes(ACVP_DKM)[..168]);
}

#[test]
fn child_sas_derive_what_sp_800_135_says() {
    let (ni, nr) = (bytes(NI), bytes(NR));
    let keys = first((&ni, &nr), SPIS, SHARED);
    let new = Secret::new(bytes(SHARED_NEW));
    for (shared, expected) in [(None, DKM_CHILD), (Some(&new), DKM_CHILD_NEW)] {
        let keying = Keying {
            ni: &ni,
            nr: &nr,
            shared,
            additional: None,
        };
        let (out, back) = keys.keymat(&IkeCrypto, EspSuite::Aes256Gcm16, &keying).unwrap();
        let both = [out.cipher.expose(), back.cipher.expose()].concat();
        assert_eq!(both, bytes(expected)[..72]);
    }
}

#[test]
fn the_longer_hashes_derive_what_sp_800_135_says() {
    for sample in &SAMPLES {
        let (ni, nr) = (bytes(sample.ni), bytes(sample.nr));
        let suite = suite_of(sample.prf);
        let nonces = [&ni[..], &nr].concat();
        let shared = Secret::new(bytes(sample.shared));
        let seed = IkeCrypto.prf(suite.prf, &nonces, &[shared.expose()]);
        assert_eq!(seed.expose(), bytes(sample.skeyseed), "{}", sample.prf);
        let inputs = Inputs {
            spi_i: IkeSpi(sample.spis.0),
            spi_r: IkeSpi(sample.spis.1),
            ni: &ni,
            nr: &nr,
        };
        let keys = IkeKeys::first(&IkeCrypto, suite, &shared, inputs).unwrap();
        let expected = bytes(sample.dkm);
        assert_eq!(stream(&keys)[..expected.len()], expected, "{}", sample.prf);
        let new = bytes(sample.shared_new);
        let seed = IkeCrypto.prf(suite.prf, keys.sk_d.expose(), &[&new, &ni, &nr]);
        assert_eq!(seed.expose(), bytes(sample.skeyseed_new), "{}", sample.prf);
    }
}
