//! Key derivation (RFC 7296 §2.13 to §2.18).

use towpath_base::Key;
use towpath_base::crypto::{Integrity, KeyGenerator, Secret, SkKeys};
use towpath_base::ids::IkeSpi;
use towpath_base::sa::{EspKeys, EspSuite};

use crate::proposal::IkeSuite;

/// Pads the shared secret before it authenticates (RFC 7296 §2.15).
const KEY_PAD: &[u8] = b"Key Pad for IKEv2";

/// SPIs and nonces that go into every derivation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inputs<'a> {
    pub(crate) spi_i: IkeSpi,
    pub(crate) spi_r: IkeSpi,
    pub(crate) ni: &'a [u8],
    pub(crate) nr: &'a [u8],
}

/// The keys of one IKE SA.
#[derive(Debug, Clone)]
pub(crate) struct IkeKeys {
    pub(crate) suite: IkeSuite,
    pub(crate) sk_d: Key,
    /// SK_ai and SK_ei: what the original initiator sends with.
    pub(crate) sk_i: SkKeys,
    /// SK_ar and SK_er.
    pub(crate) sk_r: SkKeys,
    pub(crate) sk_pi: Key,
    pub(crate) sk_pr: Key,
}

/// Takes the next `len` bytes of a key stream as a key.
fn take(stream: &mut &[u8], len: usize) -> Option<Key> {
    let (head, tail) = stream.split_at_checked(len)?;
    *stream = tail;
    Key::from_slice(head)
}

impl IkeKeys {
    /// SKEYSEED = prf(Ni | Nr, g^ir), then everything else (RFC 7296 §2.14).
    pub(crate) fn first<K: KeyGenerator>(
        keygen: &K,
        suite: IkeSuite,
        shared: &Secret,
        inputs: Inputs<'_>,
    ) -> Option<Self> {
        let nonces = [inputs.ni, inputs.nr].concat();
        let seed = keygen.prf(suite.prf, &nonces, &[shared.expose()]);
        Self::expand(keygen, suite, &seed, inputs)
    }

    /// SKEYSEED = prf(SK_d of the old SA, g^ir | Ni | Nr), by the old SA's PRF (RFC 7296 §2.18).
    pub(crate) fn rekeyed<K: KeyGenerator>(
        &self,
        keygen: &K,
        suite: IkeSuite,
        shared: &Secret,
        inputs: Inputs<'_>,
    ) -> Option<Self> {
        let parts = [shared.expose(), inputs.ni, inputs.nr];
        let seed = keygen.prf(self.suite.prf, self.sk_d.expose(), &parts);
        Self::expand(keygen, suite, &seed, inputs)
    }

    /// {SK_d | SK_ai | SK_ar | SK_ei | SK_er | SK_pi | SK_pr} = prf+(SKEYSEED, Ni | Nr | SPIi | SPIr)
    fn expand<K: KeyGenerator>(keygen: &K, suite: IkeSuite, seed: &Key, inputs: Inputs<'_>) -> Option<Self> {
        let (prf, auth) = (
            suite.prf.output_len(),
            suite.integrity.map_or(0, Integrity::key_len),
        );
        let cipher = suite.cipher.key_len();
        let (spi_i, spi_r) = (inputs.spi_i.0.to_be_bytes(), inputs.spi_r.0.to_be_bytes());
        let parts = [inputs.ni, inputs.nr, &spi_i, &spi_r];
        let stream = keygen.prf_plus(suite.prf, seed.expose(), &parts, 3 * prf + 2 * auth + 2 * cipher);
        let mut rest = stream.expose();
        let sk_d = take(&mut rest, prf)?;
        let (auth_i, auth_r) = (take(&mut rest, auth)?, take(&mut rest, auth)?);
        let (encr_i, encr_r) = (take(&mut rest, cipher)?, take(&mut rest, cipher)?);
        let sk = |authentication, encryption| SkKeys {
            cipher: suite.cipher,
            integrity: suite.integrity,
            encryption,
            authentication,
        };
        Some(Self {
            suite,
            sk_d,
            sk_i: sk(auth_i, encr_i),
            sk_r: sk(auth_r, encr_r),
            sk_pi: take(&mut rest, prf)?,
            sk_pr: take(&mut rest, prf)?,
        })
    }

    /// AUTH by a shared key (RFC 7296 §2.15): `message` is the signer's first message, `nonce` the other side's,
    /// `id` the body of the signer's identification payload.
    pub(crate) fn auth_psk<K: KeyGenerator>(
        &self,
        keygen: &K,
        psk: &[u8],
        by_initiator: bool,
        message: &[u8],
        nonce: &[u8],
        id: &[u8],
    ) -> Key {
        let prf = self.suite.prf;
        let sk_p = if by_initiator { &self.sk_pi } else { &self.sk_pr };
        let maced_id = keygen.prf(prf, sk_p.expose(), &[id]);
        let key = keygen.prf(prf, psk, &[KEY_PAD]);
        keygen.prf(prf, key.expose(), &[message, nonce, maced_id.expose()])
    }

    /// KEYMAT = prf+(SK_d, [g^ir] | Ni | Nr): keys from the exchange's initiator to its responder, then back
    /// (RFC 7296 §2.17).
    pub(crate) fn keymat<K: KeyGenerator>(
        &self,
        keygen: &K,
        suite: EspSuite,
        shared: Option<&Secret>,
        ni: &[u8],
        nr: &[u8],
    ) -> Option<(EspKeys, EspKeys)> {
        let len = suite.key_material_len();
        let parts = [shared.map_or(&[][..], Secret::expose), ni, nr];
        let stream = keygen.prf_plus(self.suite.prf, self.sk_d.expose(), &parts, 2 * len);
        let (to_responder, to_initiator) = stream.expose().split_at_checked(len)?;
        Some((
            EspKeys::split(suite, to_responder)?,
            EspKeys::split(suite, to_initiator)?,
        ))
    }
}
