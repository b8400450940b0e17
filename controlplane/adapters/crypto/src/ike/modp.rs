//! MODP groups (RFC 3526), exponentiation in constant time.

use crypto_bigint::modular::{FixedMontyForm, FixedMontyParams};
use crypto_bigint::{Odd, U512, U2048, U3072, U4096};
use std::sync::LazyLock;
use towpath_base::crypto::{CryptoError, Rng, Secret};
use zeroize::{Zeroize, Zeroizing};

/// 2^2048 - 2^1984 - 1 + 2^64 * { [2^1918 pi] + 124476 }
pub(super) const PRIME_2048: &str = concat!(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74",
    "020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B302B0A6DF25F1437",
    "4FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED",
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF05",
    "98DA48361C55D39A69163FA8FD24CF5F83655D23DCA3AD961C62F356208552BB",
    "9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B",
    "E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF695581718",
    "3995497CEA956AE515D2261898FA051015728E5A8AACAA68FFFFFFFFFFFFFFFF"
);

/// 2^3072 - 2^3008 - 1 + 2^64 * { [2^2942 pi] + 1690314 }
pub(super) const PRIME_3072: &str = concat!(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74",
    "020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B302B0A6DF25F1437",
    "4FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED",
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF05",
    "98DA48361C55D39A69163FA8FD24CF5F83655D23DCA3AD961C62F356208552BB",
    "9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B",
    "E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF695581718",
    "3995497CEA956AE515D2261898FA051015728E5A8AAAC42DAD33170D04507A33",
    "A85521ABDF1CBA64ECFB850458DBEF0A8AEA71575D060C7DB3970F85A6E1E4C7",
    "ABF5AE8CDB0933D71E8C94E04A25619DCEE3D2261AD2EE6BF12FFA06D98A0864",
    "D87602733EC86A64521F2B18177B200CBBE117577A615D6C770988C0BAD946E2",
    "08E24FA074E5AB3143DB5BFCE0FD108E4B82D120A93AD2CAFFFFFFFFFFFFFFFF"
);

/// 2^4096 - 2^4032 - 1 + 2^64 * { [2^3966 pi] + 240904 }
pub(super) const PRIME_4096: &str = concat!(
    "FFFFFFFFFFFFFFFFC90FDAA22168C234C4C6628B80DC1CD129024E088A67CC74",
    "020BBEA63B139B22514A08798E3404DDEF9519B3CD3A431B302B0A6DF25F1437",
    "4FE1356D6D51C245E485B576625E7EC6F44C42E9A637ED6B0BFF5CB6F406B7ED",
    "EE386BFB5A899FA5AE9F24117C4B1FE649286651ECE45B3DC2007CB8A163BF05",
    "98DA48361C55D39A69163FA8FD24CF5F83655D23DCA3AD961C62F356208552BB",
    "9ED529077096966D670C354E4ABC9804F1746C08CA18217C32905E462E36CE3B",
    "E39E772C180E86039B2783A2EC07A28FB5C55DF06F4C52C9DE2BCBF695581718",
    "3995497CEA956AE515D2261898FA051015728E5A8AAAC42DAD33170D04507A33",
    "A85521ABDF1CBA64ECFB850458DBEF0A8AEA71575D060C7DB3970F85A6E1E4C7",
    "ABF5AE8CDB0933D71E8C94E04A25619DCEE3D2261AD2EE6BF12FFA06D98A0864",
    "D87602733EC86A64521F2B18177B200CBBE117577A615D6C770988C0BAD946E2",
    "08E24FA074E5AB3143DB5BFCE0FD108E4B82D120A92108011A723C12A787E6D7",
    "88719A10BDBA5B2699C327186AF4E23C1A946834B6150BDA2583E9CA2AD44CE8",
    "DBBBC2DB04DE8EF92E8EFC141FBECAA6287C59474E6BC05D99B2964FA090C3A2",
    "233BA186515BE7ED1F612970CEE2D7AFB81BDD762170481CD0069127D5B05AA9",
    "93B4EA988D8FDDC186FFB7DC90A6C08F4DF435C934063199FFFFFFFFFFFFFFFF"
);

/// An exponent of `bits` bits, a multiple of 8, with the highest bit set: never a short exponent, whatever the
/// source gives.
fn exponent(bits: u32, rng: &mut dyn Rng) -> U512 {
    let mut bytes = Zeroizing::new([0; 64]);
    let unused = bytes.len() - bits as usize / 8;
    if let Some(exponent) = bytes.get_mut(unused..) {
        rng.fill(exponent);
        if let Some(first) = exponent.first_mut() {
            *first |= 0x80;
        }
    }
    U512::from_be_slice(&*bytes)
}

macro_rules! modp {
    ($name:ident, $uint:ident, $prime:ident, $exponent_bits:literal, $doc:literal) => {
        #[doc = $doc]
        ///
        /// The exponent has the upper estimate of RFC 3526 §8 for the group's strength.
        #[derive(Zeroize)]
        #[zeroize(drop)]
        pub(super) struct $name(U512);

        impl $name {
            fn params() -> &'static FixedMontyParams<{ $uint::LIMBS }> {
                static PARAMS: LazyLock<FixedMontyParams<{ $uint::LIMBS }>> = LazyLock::new(|| {
                    let prime = Odd::new($uint::from_be_hex($prime)).expect("the prime is odd");
                    FixedMontyParams::new_vartime(prime)
                });
                &PARAMS
            }

            pub(super) fn generate(rng: &mut dyn Rng) -> Self {
                Self(exponent($exponent_bits, rng))
            }

            fn pow(&self, base: &$uint) -> $uint {
                FixedMontyForm::new(base, Self::params())
                    .pow_bounded_exp(&self.0, $exponent_bits)
                    .retrieve()
            }

            pub(super) fn public(&self) -> Vec<u8> {
                self.pow(&$uint::from_u8(2)).to_be_bytes().as_ref().to_vec()
            }

            pub(super) fn agree(&self, public: &[u8]) -> Result<Secret, CryptoError> {
                if public.len() != $uint::BYTES {
                    return Err(CryptoError::BadPublicValue);
                }
                let public = $uint::from_be_slice(public);
                let highest = Self::params().modulus().get().wrapping_sub(&$uint::ONE);
                // RFC 6989 §2.1: 1 < y < p - 1.
                if public <= $uint::ONE || public >= highest {
                    return Err(CryptoError::BadPublicValue);
                }
                let mut shared = self.pow(&public);
                let secret = Secret::new(shared.to_be_bytes().as_ref().to_vec());
                shared.zeroize();
                Ok(secret)
            }
        }
    };
}

modp!(
    Modp2048,
    U2048,
    PRIME_2048,
    320,
    "A private exponent of the 2048-bit group (RFC 3526 §3)."
);
modp!(
    Modp3072,
    U3072,
    PRIME_3072,
    416,
    "A private exponent of the 3072-bit group (RFC 3526 §4)."
);
modp!(
    Modp4096,
    U4096,
    PRIME_4096,
    480,
    "A private exponent of the 4096-bit group (RFC 3526 §5)."
);
