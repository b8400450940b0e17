//! The 2048-bit MODP group (RFC 3526 §3), exponentiation in constant time.

use crypto_bigint::modular::{FixedMontyForm, FixedMontyParams};
use crypto_bigint::{Odd, U512, U2048};
use std::sync::LazyLock;
use towpath_base::crypto::{CryptoError, Rng, Secret};
use zeroize::{Zeroize, Zeroizing};

const PUBLIC_LEN: usize = 256;

/// 2^2048 - 2^1984 - 1 + 2^64 * { [2^1918 pi] + 124476 }
pub(super) const PRIME: &str = concat!(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74",
    "020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B302B0A6DF25F1437",
    "4FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED",
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF05",
    "98DA48361C55D39A69163FA8FD24CF5F83655D23DCA3AD961C62F356208552BB",
    "9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B",
    "E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF695581718",
    "3995497CEA956AE515D2261898FA051015728E5A8AACAA68FFFFFFFFFFFFFFFF"
);

static PARAMS: LazyLock<FixedMontyParams<{ U2048::LIMBS }>> = LazyLock::new(|| {
    let prime = Odd::new(U2048::from_be_hex(PRIME)).expect("the prime is odd");
    FixedMontyParams::new_vartime(prime)
});

/// A private exponent. 320 bits are the upper estimate of RFC 3526 §8 for this group's strength.
#[derive(Zeroize)]
#[zeroize(drop)]
pub(super) struct Modp2048(U512);

const EXPONENT_BITS: u32 = 320;

impl Modp2048 {
    pub(super) fn generate(rng: &mut dyn Rng) -> Self {
        let mut bytes = Zeroizing::new([0; 64]);
        let unused = bytes.len() - EXPONENT_BITS as usize / 8;
        if let Some(exponent) = bytes.get_mut(unused..) {
            rng.fill(exponent);
            // Never a short exponent, whatever the source gives.
            if let Some(first) = exponent.first_mut() {
                *first |= 0x80;
            }
        }
        Self(U512::from_be_slice(&*bytes))
    }

    fn pow(&self, base: &U2048) -> U2048 {
        FixedMontyForm::new(base, &PARAMS)
            .pow_bounded_exp(&self.0, EXPONENT_BITS)
            .retrieve()
    }

    pub(super) fn public(&self) -> Vec<u8> {
        self.pow(&U2048::from_u8(2)).to_be_bytes().as_ref().to_vec()
    }

    pub(super) fn agree(&self, public: &[u8]) -> Result<Secret, CryptoError> {
        if public.len() != PUBLIC_LEN {
            return Err(CryptoError::BadPublicValue);
        }
        let public = U2048::from_be_slice(public);
        let highest = PARAMS.modulus().get().wrapping_sub(&U2048::ONE);
        // RFC 6989 §2.1: 1 < y < p - 1.
        if public <= U2048::ONE || public >= highest {
            return Err(CryptoError::BadPublicValue);
        }
        let mut shared = self.pow(&public);
        let secret = Secret::new(shared.to_be_bytes().as_ref().to_vec());
        shared.zeroize();
        Ok(secret)
    }
}
