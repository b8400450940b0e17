//! Against independent implementations and published vectors.

use aes::cipher::{BlockModeEncrypt, KeyIvInit, StreamCipher, block_padding::NoPadding};
use aes_gcm::aead::{AeadInOut, KeyInit};
use hmac::Mac;
use proptest::prelude::*;
use towpath_base::crypto::{CryptoError, DhGroup, Integrity, KeyGenerator, Prf, SkCipher, SkKeys, SkParts};
use towpath_base::testutil::SeededRng;
use towpath_base::{Key, crypto::Rng};

use super::IkeCrypto;

fn hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

#[test]
fn both_sides_agree_in_every_group() {
    for group in DhGroup::ALL {
        for seed in 0..4 {
            let mut rng = SeededRng::new(seed);
            let (private, public_i) = IkeCrypto.initiate(*group, &mut rng).unwrap();
            assert_eq!(public_i.len(), group.public_len());
            let (public_r, secret_r) = IkeCrypto.respond(*group, &public_i, &mut rng).unwrap();
            assert_eq!(public_r.len(), group.answer_len());
            assert_eq!(IkeCrypto.finish(private, &public_r).unwrap(), secret_r);
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_public_values() {
    for group in DhGroup::ALL.iter().filter(|group| !group.is_kem()) {
        let [one, two] = [0, 0].map(|_| IkeCrypto.initiate(*group, &mut SeededRng::new(7)).unwrap().1);
        assert_eq!(one, two);
    }
}

#[test]
fn x25519_agrees_with_dalek() {
    let mut rng = SeededRng::new(3);
    let mut bytes = [0; 32];
    rng.clone().fill(&mut bytes);
    let (private, public) = IkeCrypto.initiate(DhGroup::X25519, &mut rng).unwrap();
    let same = x25519_dalek::StaticSecret::from(bytes);
    assert_eq!(public, x25519_dalek::PublicKey::from(&same).as_bytes());
    let other = x25519_dalek::StaticSecret::from([9; 32]);
    let other_public = x25519_dalek::PublicKey::from(&other);
    assert_eq!(
        IkeCrypto
            .finish(private, other_public.as_bytes())
            .unwrap()
            .expose(),
        same.diffie_hellman(&other_public).as_bytes()
    );
}

/// The private values are chosen by giving the generator the bytes it asks for.
struct Fixed(Vec<u8>);

impl Rng for Fixed {
    fn fill(&mut self, bytes: &mut [u8]) {
        bytes.copy_from_slice(&self.0);
    }
}

/// RFC 5903 §8.1.
#[test]
fn p256_gives_the_rfc_5903_example() {
    let i = hex("C88F01F510D9AC3F70A292DAA2316DE544E9AAB8AFE84049C62A9C57862D1433");
    let r = hex("C6EF9C5D78AE012A011164ACB397CE2088685D8F06BF9BE0B283AB46476BEE53");
    let gi = hex(concat!(
        "DAD0B65394221CF9B051E1FECA5787D098DFE637FC90B9EF945D0C3772581180",
        "5271A0461CDB8252D61F1C456FA3E59AB1F45B33ACCF5F58389E0577B8990BB3"
    ));
    let gr = hex(concat!(
        "D12DFB5289C8D4F81208B70270398C342296970A0BCCB74C736FC7554494BF63",
        "56FBF3CA366CC23E8157854C13C58D6AAC23F046ADA30F8353E74F33039872AB"
    ));
    let shared = hex("D6840F6B42F6EDAFD13116E0E12565202FEF8E9ECE7DCE03812464D04B9442DE");
    let (private, public) = IkeCrypto.initiate(DhGroup::Ecp256, &mut Fixed(i)).unwrap();
    assert_eq!(public, gi);
    assert_eq!(IkeCrypto.finish(private, &gr).unwrap().expose(), shared);
    let (public, secret) = IkeCrypto.respond(DhGroup::Ecp256, &gi, &mut Fixed(r)).unwrap();
    assert_eq!((public, secret.expose()), (gr, &shared[..]));
}

/// RFC 5903 §8.2.
#[test]
fn p384_gives_the_rfc_5903_example() {
    let i = hex(
        "099F3C7034D4A2C699884D73A375A67F7624EF7C6B3C0F160647B67414DCE655E35B538041E649EE3FAEF896783AB194",
    );
    let gi = hex(concat!(
        "667842D7D180AC2CDE6F74F37551F55755C7645C20EF73E31634FE72B4C55EE6DE3AC808ACB4BDB4C88732AEE95F41AA",
        "9482ED1FC0EEB9CAFC4984625CCFC23F65032149E0E144ADA024181535A0F38EEB9FCFF3C2C947DAE69B4C634573A81C"
    ));
    let gr = hex(concat!(
        "E558DBEF53EECDE3D3FCCFC1AEA08A89A987475D12FD950D83CFA41732BC509D0D1AC43A0336DEF96FDA41D0774A3571",
        "DCFBEC7AACF3196472169E838430367F66EEBE3C6E70C416DD5F0C68759DD1FFF83FA40142209DFF5EAAD96DB9E6386C"
    ));
    let shared = hex(
        "11187331C279962D93D604243FD592CB9D0A926F422E47187521287E7156C5C4D603135569B9E9D09CF5D4A270F59746",
    );
    let (private, public) = IkeCrypto.initiate(DhGroup::Ecp384, &mut Fixed(i)).unwrap();
    assert_eq!(public, gi);
    assert_eq!(IkeCrypto.finish(private, &gr).unwrap().expose(), shared);
}

/// 2^e mod p for e = a5a5…, computed with another implementation: first and last 16 bytes.
#[test]
fn modp_agrees_with_other_arithmetic() {
    for (group, len, first, last) in [
        (
            DhGroup::Modp2048,
            40,
            "1ad337012772a4f800c0ff25ed623ded",
            "01b31b5dd60b93370f052bb1b47dd5af",
        ),
        (
            DhGroup::Modp3072,
            52,
            "30556d205c9801086c8bbc122396ea38",
            "8d6572d287b95feb5b4cde656943018c",
        ),
        (
            DhGroup::Modp4096,
            60,
            "d0dcb93f71286fd0d4356212522e7047",
            "a2a016f346775955c21ee245bb50ebdc",
        ),
    ] {
        let (_, public) = IkeCrypto.initiate(group, &mut Fixed(vec![0xa5; len])).unwrap();
        assert_eq!(public[..16], hex(first), "{group}");
        assert_eq!(public[public.len() - 16..], hex(last), "{group}");
    }
}

fn two(len: usize) -> Vec<u8> {
    [vec![0; len - 1], vec![2]].concat()
}

fn modp_primes() -> [(DhGroup, Vec<u8>); 3] {
    use super::modp::{PRIME_2048, PRIME_3072, PRIME_4096};
    [
        (DhGroup::Modp2048, hex(PRIME_2048)),
        (DhGroup::Modp3072, hex(PRIME_3072)),
        (DhGroup::Modp4096, hex(PRIME_4096)),
    ]
}

#[test]
fn public_values_that_leak_are_refused() {
    let mut rng = SeededRng::new(5);
    let below = |mut number: Vec<u8>, by| {
        *number.last_mut().unwrap() -= by;
        number
    };
    let mut cases = vec![
        (DhGroup::X25519, vec![0; 32]),
        (DhGroup::X25519, [vec![1], vec![0; 31]].concat()),
        // Coefficients of 12 bits must be below 3329 (FIPS 203 §7.2).
        (DhGroup::MlKem768, vec![0xff; 1184]),
    ];
    for (group, prime) in modp_primes() {
        let number = |value: u8| below(two(prime.len()), 2 - value);
        let bad = [number(0), number(1), prime.clone(), below(prime.clone(), 1)];
        cases.extend(bad.map(|value| (group, value)));
        cases.push((group, vec![0xff; prime.len()]));
        for good in [number(2), below(prime.clone(), 2)] {
            assert!(IkeCrypto.respond(group, &good, &mut rng).is_ok());
        }
    }
    for group in [DhGroup::Ecp256, DhGroup::Ecp384] {
        cases.push((group, vec![0; group.public_len()]));
        cases.push((group, vec![1; group.public_len()]));
    }
    cases.extend(
        DhGroup::ALL
            .iter()
            .flat_map(|g| [(*g, vec![]), (*g, vec![2; g.public_len() + 1])]),
    );
    for (group, public) in cases {
        let refused = IkeCrypto.respond(group, &public, &mut rng).map(|_| ());
        assert_eq!(refused, Err(CryptoError::BadPublicValue), "{group} {public:02x?}");
    }
}

#[test]
fn a_kem_refuses_wrong_sizes_and_gives_unrelated_secrets_for_wrong_ciphertexts() {
    let mut rng = SeededRng::new(5);
    let start = || {
        IkeCrypto
            .initiate(DhGroup::MlKem768, &mut SeededRng::new(1))
            .unwrap()
    };
    for len in [0, 1087, 1089, 1184] {
        let (private, _) = start();
        assert_eq!(
            IkeCrypto.finish(private, &vec![1; len]),
            Err(CryptoError::BadPublicValue),
            "{len}"
        );
    }
    let (private, public) = start();
    let (mut ciphertext, secret) = IkeCrypto.respond(DhGroup::MlKem768, &public, &mut rng).unwrap();
    ciphertext[7] ^= 1;
    assert_ne!(IkeCrypto.finish(private, &ciphertext).unwrap(), secret);
}

/// RFC 4231 test case 2, and RFC 3174's "abc".
#[test]
fn prf_and_hash_give_the_rfc_examples() {
    let data: &[&[u8]] = &[b"what do ya want ", b"for nothing?"];
    for (prf, digest) in [
        (
            Prf::HmacSha256,
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
        ),
        (
            Prf::HmacSha384,
            "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649",
        ),
    ] {
        assert_eq!(IkeCrypto.prf(prf, b"Jefe", data).expose(), hex(digest));
    }
    assert_eq!(
        IkeCrypto.sha1(&[b"a", b"bc"])[..],
        hex("a9993e364706816aba3e25717850c26c9cd0d89d")
    );
}

#[test]
fn prf_plus_is_the_chain_of_the_rfc() {
    let t1 = IkeCrypto.prf(Prf::HmacSha512, b"key", &[b"seed", &[1]]);
    let t2 = IkeCrypto.prf(Prf::HmacSha512, b"key", &[t1.expose(), b"seed", &[2]]);
    let stream = IkeCrypto.prf_plus(Prf::HmacSha512, b"key", &[b"se", b"ed"], 100);
    assert_eq!(stream.expose(), &[t1.expose(), t2.expose()].concat()[..100]);
    assert!(
        IkeCrypto
            .prf_plus(Prf::HmacSha256, b"key", &[], 255 * 32 + 1)
            .expose()
            .is_empty()
    );
}

fn keys(cipher: SkCipher, integrity: Option<Integrity>, seed: u64) -> SkKeys {
    let mut bytes = [0; 128];
    SeededRng::new(seed).fill(&mut bytes);
    SkKeys {
        cipher,
        integrity,
        encryption: Key::from_slice(&bytes[..cipher.key_len()]).unwrap(),
        authentication: Key::from_slice(&bytes[64..64 + integrity.map_or(0, Integrity::key_len)]).unwrap(),
    }
}

/// Ciphertext and checksum by RustCrypto.
fn oracle(keys: &SkKeys, header: &[u8], iv: &[u8], text: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let mut out = text.to_vec();
    let key = keys.encryption.expose();
    let nonce = [&key[key.len() - 4..], iv].concat();
    match keys.cipher {
        SkCipher::Aes128Gcm16 => {
            let gcm = aes_gcm::Aes128Gcm::new_from_slice(&key[..16]).unwrap();
            let nonce = aes_gcm::Nonce::try_from(&nonce[..]).unwrap();
            let tag = gcm
                .encrypt_inout_detached(&nonce, header, (&mut out[..]).into())
                .unwrap();
            return (out, tag.to_vec());
        }
        SkCipher::Aes256Gcm16 => {
            let gcm = aes_gcm::Aes256Gcm::new_from_slice(&key[..32]).unwrap();
            let nonce = aes_gcm::Nonce::try_from(&nonce[..]).unwrap();
            let tag = gcm
                .encrypt_inout_detached(&nonce, header, (&mut out[..]).into())
                .unwrap();
            return (out, tag.to_vec());
        }
        SkCipher::ChaCha20Poly1305 => {
            let cipher = chacha20poly1305::ChaCha20Poly1305::new_from_slice(&key[..32]).unwrap();
            let nonce = chacha20poly1305::Nonce::try_from(&nonce[..]).unwrap();
            let tag = cipher
                .encrypt_inout_detached(&nonce, header, (&mut out[..]).into())
                .unwrap();
            return (out, tag.to_vec());
        }
        SkCipher::Aes128Ctr => {
            let block = [&nonce[..], &[0, 0, 0, 1]].concat();
            let mut ctr = ctr::Ctr32BE::<aes::Aes128>::new_from_slices(&key[..16], &block).unwrap();
            ctr.apply_keystream(&mut out);
        }
        SkCipher::Aes256Ctr => {
            let block = [&nonce[..], &[0, 0, 0, 1]].concat();
            let mut ctr = ctr::Ctr32BE::<aes::Aes256>::new_from_slices(&key[..32], &block).unwrap();
            ctr.apply_keystream(&mut out);
        }
        SkCipher::Aes128Cbc => {
            let cbc = cbc::Encryptor::<aes::Aes128>::new_from_slices(key, iv).unwrap();
            cbc.encrypt_padded::<NoPadding>(&mut out, text.len()).unwrap();
        }
        SkCipher::Aes256Cbc => {
            let cbc = cbc::Encryptor::<aes::Aes256>::new_from_slices(key, iv).unwrap();
            cbc.encrypt_padded::<NoPadding>(&mut out, text.len()).unwrap();
        }
    }
    let message = [header, iv, &out].concat();
    let key = keys.authentication.expose();
    macro_rules! mac {
        ($hash:ty) => {{
            let mut mac = <hmac::Hmac<$hash> as hmac::KeyInit>::new_from_slice(key).unwrap();
            mac.update(&message);
            mac.finalize().into_bytes().to_vec()
        }};
    }
    let integrity = keys.integrity.unwrap();
    let mut tag = match integrity {
        Integrity::HmacSha256 => mac!(sha2::Sha256),
        Integrity::HmacSha384 => mac!(sha2::Sha384),
        Integrity::HmacSha512 => mac!(sha2::Sha512),
    };
    tag.truncate(integrity.icv_len());
    (out, tag)
}

fn every_protection() -> Vec<(SkCipher, Option<Integrity>)> {
    let mut all = Vec::new();
    for cipher in SkCipher::ALL {
        match cipher.is_aead() {
            true => all.push((*cipher, None)),
            false => all.extend(Integrity::ALL.iter().map(|integrity| (*cipher, Some(*integrity)))),
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn sealing_agrees_with_the_oracle_and_opening_undoes_it(
        which in any::<prop::sample::Index>(), seed in any::<u64>(), blocks in 1usize..9, flip in any::<prop::sample::Index>(),
    ) {
        let all = every_protection();
        let (cipher, integrity) = all[which.index(all.len())];
        let keys = keys(cipher, integrity, seed);
        let (header, iv) = (hex("0102030405"), vec![seed as u8; cipher.iv_len()]);
        let plain = vec![0x5a; blocks * 16];
        let mut text = plain.clone();
        let mut icv = vec![0; keys.icv_len()];
        IkeCrypto.seal(&keys, SkParts { header: &header, iv: &iv, text: &mut text, icv: &mut icv }).unwrap();
        prop_assert_eq!((text.clone(), icv.clone()), oracle(&keys, &header, &iv, &plain));

        let sealed = [header, iv, text, icv].concat();
        let open = |message: &mut [u8]| {
            let (header, rest) = message.split_at_mut(5);
            let (iv, rest) = rest.split_at_mut(cipher.iv_len());
            let (text, icv) = rest.split_at_mut(plain.len());
            IkeCrypto.open(&keys, SkParts { header, iv, text, icv }).map(|()| text.to_vec())
        };
        prop_assert_eq!(open(&mut sealed.clone()), Ok(plain.clone()));
        let mut forged = sealed;
        let at = flip.index(forged.len());
        forged[at] ^= 1;
        prop_assert_eq!(open(&mut forged), Err(CryptoError::Forged));
    }
}

#[test]
fn wrong_lengths_are_errors() {
    let keys = keys(SkCipher::Aes128Gcm16, None, 1);
    let (mut text, mut icv) = ([0; 16], [0; 16]);
    let parts = SkParts {
        header: &[],
        iv: &[0; 7],
        text: &mut text,
        icv: &mut icv,
    };
    assert_eq!(IkeCrypto.seal(&keys, parts), Err(CryptoError::Unsupported));
}
