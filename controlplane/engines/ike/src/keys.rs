//! Key derivation (RFC 7296 §2.13 to §2.18).

use alloc::vec::Vec;

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

/// What keying material of a CHILD SA is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keying<'a> {
    pub(crate) ni: &'a [u8],
    pub(crate) nr: &'a [u8],
    /// Of a key exchange in CREATE_CHILD_SA.
    pub(crate) shared: Option<&'a Secret>,
    /// Of the IKE_FOLLOWUP_KE exchange after it.
    pub(crate) additional: Option<&'a Secret>,
}

fn expose(secret: Option<&Secret>) -> &[u8] {
    secret.map_or(&[], Secret::expose)
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

    /// SKEYSEED = prf(SK_d of the old SA, g^ir | Ni | Nr | additional), by the old SA's PRF (RFC 7296 §2.18), where
    /// `additional` is the secret of an IKE_FOLLOWUP_KE exchange (RFC 9370 §2.2.4). An additional key exchange before AUTH
    /// derives likewise, from SK_d as it was and its own secret alone (RFC 9370 §2.2.2).
    pub(crate) fn rekeyed<K: KeyGenerator>(
        &self,
        keygen: &K,
        suite: IkeSuite,
        shared: &Secret,
        additional: Option<&Secret>,
        inputs: Inputs<'_>,
    ) -> Option<Self> {
        let parts = [shared.expose(), inputs.ni, inputs.nr, expose(additional)];
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

    /// What one side proves its identity over (RFC 7296 §2.15): `message | nonce | prf(SK_p, id) | intermediate`,
    /// where `message` is the signer's first message, `nonce` the other side's, `id` the body of the signer's
    /// identification payload, and `intermediate` covers the IKE_INTERMEDIATE exchanges (RFC 9242 §3.3.2).
    pub(crate) fn signed_octets<K: KeyGenerator>(
        &self,
        keygen: &K,
        by_initiator: bool,
        message: &[u8],
        nonce: &[u8],
        id: &[u8],
        intermediate: &[u8],
    ) -> Vec<u8> {
        let maced_id = keygen.prf(self.suite.prf, self.sk_p(by_initiator).expose(), &[id]);
        [message, nonce, maced_id.expose(), intermediate].concat()
    }

    /// SK_pi or SK_pr.
    pub(crate) const fn sk_p(&self, of_initiator: bool) -> &Key {
        if of_initiator { &self.sk_pi } else { &self.sk_pr }
    }

    /// AUTH by a shared key: prf(prf(key, pad), octets).
    pub(crate) fn auth_psk<K: KeyGenerator>(&self, keygen: &K, psk: &[u8], octets: &[u8]) -> Key {
        let prf = self.suite.prf;
        let key = keygen.prf(prf, psk, &[KEY_PAD]);
        keygen.prf(prf, key.expose(), &[octets])
    }

    /// The same with a post-quantum preshared key mixed in (RFC 8784 §3): SK_d, SK_pi and SK_pr each become
    /// prf+(PPK, old value).
    pub(crate) fn with_ppk<K: KeyGenerator>(&self, keygen: &K, ppk: &[u8]) -> Option<Self> {
        let mix = |key: &Key| {
            let stream = keygen.prf_plus(self.suite.prf, ppk, &[key.expose()], key.len());
            Key::from_slice(stream.expose())
        };
        Some(Self {
            sk_d: mix(&self.sk_d)?,
            sk_pi: mix(&self.sk_pi)?,
            sk_pr: mix(&self.sk_pr)?,
            ..self.clone()
        })
    }

    /// KEYMAT = prf+(SK_d, [g^ir] | Ni | Nr | [additional]): keys from the exchange's initiator to its responder, then back
    /// (RFC 7296 §2.17, RFC 9370 §2.2.4).
    pub(crate) fn keymat<K: KeyGenerator>(
        &self,
        keygen: &K,
        suite: EspSuite,
        keying: &Keying<'_>,
    ) -> Option<(EspKeys, EspKeys)> {
        let len = suite.key_material_len();
        let parts = [
            expose(keying.shared),
            keying.ni,
            keying.nr,
            expose(keying.additional),
        ];
        let stream = keygen.prf_plus(self.suite.prf, self.sk_d.expose(), &parts, 2 * len);
        let (to_responder, to_initiator) = stream.expose().split_at_checked(len)?;
        Some((
            EspKeys::split(suite, to_responder)?,
            EspKeys::split(suite, to_initiator)?,
        ))
    }
}

#[cfg(test)]
mod tests {
    //! The expected values were computed with another implementation of HMAC and prf+.

    use alloc::string::String;
    use core::fmt::Write;

    use towpath_crypto::IkeCrypto;

    use super::*;

    fn hex(bytes: &[u8]) -> String {
        let mut text = String::new();
        bytes.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
        text
    }

    fn range(from: u8) -> Vec<u8> {
        (from..from + 32).collect()
    }

    fn derive(suite: &str) -> (IkeKeys, Vec<u8>, Vec<u8>, Secret) {
        let proposal: crate::IkeProposal = suite.parse().unwrap();
        let suite = IkeSuite {
            cipher: proposal.ciphers[0],
            integrity: proposal.integrities.first().copied(),
            prf: proposal.prfs[0],
            group: proposal.groups[0],
            additional: None,
        };
        let (ni, nr, shared) = (range(0x10), range(0x40), Secret::new(range(0x80)));
        let keys = IkeKeys::first(&IkeCrypto, suite, &shared, inputs(&ni, &nr)).unwrap();
        (keys, ni, nr, shared)
    }

    fn keying<'a>(ni: &'a [u8], nr: &'a [u8], shared: Option<&'a Secret>) -> Keying<'a> {
        Keying {
            ni,
            nr,
            shared,
            additional: None,
        }
    }

    fn inputs<'a>(ni: &'a [u8], nr: &'a [u8]) -> Inputs<'a> {
        Inputs {
            spi_i: IkeSpi(0x0102_0304_0506_0708),
            spi_r: IkeSpi(0x1112_1314_1516_1718),
            ni,
            nr,
        }
    }

    #[test]
    fn an_aead_with_sha256() {
        let (keys, ni, nr, _) = derive("aes256gcm16-prfsha256-x25519");
        assert_eq!(
            hex(keys.sk_d.expose()),
            "c722ec79f3a6f0fdf87e7d7286473ceedfc74bf31ac7839e19182a1423795f9e"
        );
        assert_eq!(
            hex(keys.sk_i.encryption.expose()),
            "d5059c6d4aa25e27ad4c0f860b90ccd9ca06fb1931f2b2f36f0b0fa2f5e6374d9ef86245"
        );
        assert_eq!(
            hex(keys.sk_r.encryption.expose()),
            "814f6807fea335556ec21e4b17b916775a7ae93b8b2b04a0e5d51382010462b0dd90c5a9"
        );
        assert_eq!(
            hex(keys.sk_pr.expose()),
            "4a66752eb21ca7f0661cdc5db04232cff5fc6f18f6542a725ea13121d56eb411"
        );
        let id = b"\x02\0\0\0a.test";
        let octets = keys.signed_octets(&IkeCrypto, true, b"message one", &nr, id, &[]);
        let auth = keys.auth_psk(&IkeCrypto, b"swordfish", &octets);
        assert_eq!(
            hex(auth.expose()),
            "db75d2fb0c82641ce5d9820ff3c930f17a20047fffe7a7a4e8c360cb6b5d19e7"
        );
        let child = keys
            .keymat(&IkeCrypto, EspSuite::Aes256Gcm16, &keying(&ni, &nr, None))
            .unwrap();
        assert_eq!(
            hex(child.0.cipher.expose()) + &hex(child.1.cipher.expose()),
            concat!(
                "805d03c6852b82de66e86f2407798f6c03e6364920e12105b1e0bd6f25bd8c0a76d7646a",
                "381dab8cf3ec2a1ec97174f639109469d17a39b6c8f99eb39aaabf7f12a8648ec9f39988"
            )
        );
    }

    #[test]
    fn cbc_and_hmac_with_sha512() {
        let (keys, ni, nr, shared) = derive("aes256-sha512-x25519");
        assert_eq!(
            hex(keys.sk_i.authentication.expose()),
            concat!(
                "2d598e5078cdadb023ac2743b9ea3f14f74486c64786eeda8c9c463fac725a49",
                "0929fe6f2a03a038a06e1a9413dfe74653104cc490259a6219d36193caf0bc2c"
            )
        );
        assert_eq!(
            hex(keys.sk_r.encryption.expose()),
            "bbe086694a7c18e0ad7743be595b09532523102940b8a89ba73f699b55a55c6b"
        );
        // With an additional key exchange.
        let child = keys
            .keymat(
                &IkeCrypto,
                EspSuite::Aes128CbcSha256,
                &keying(&ni, &nr, Some(&shared)),
            )
            .unwrap();
        let parts = [
            &child.0.cipher,
            &child.0.integrity,
            &child.1.cipher,
            &child.1.integrity,
        ];
        assert_eq!(
            parts.map(|key| hex(key.expose())).concat(),
            concat!(
                "ced9e45dacefceae4c6dc689ed34d9185adfbd84d4a4cd41bab80cdd85e83f237850d11f2f41a6132ab862c380c25512",
                "a16ad5d4beaa433fb15cd7b0d97a5e933b0c4e7cdf35eb2db6f0537beb22d7a0ba7f772179b830516123946c41c2673f"
            )
        );
        // Rekeyed to another suite: SKEYSEED by the old PRF, the rest by the new one.
        let (gcm, ..) = derive("aes256gcm16-prfsha256-x25519");
        let rekeyed = keys
            .rekeyed(&IkeCrypto, gcm.suite, &shared, None, inputs(&ni, &nr))
            .unwrap();
        assert_eq!(
            hex(rekeyed.sk_d.expose()),
            "1dd6228284f0c2c888a0515f7b56105ff5ae9d3790249b156e64d0eb5178389f"
        );
    }

    /// RFC 9370 §2.2.4: what the additional key exchange brought goes in last.
    #[test]
    fn an_additional_secret_goes_behind_the_nonces() {
        let (keys, ni, nr, shared) = derive("aes256gcm16-prfsha384-x25519");
        let more = Secret::new(range(0xa0));
        let prf = keys.suite.prf;
        let rekeyed = keys
            .rekeyed(&IkeCrypto, keys.suite, &shared, Some(&more), inputs(&ni, &nr))
            .unwrap();
        let parts = [shared.expose(), &ni, &nr, more.expose()];
        let seed = IkeCrypto.prf(prf, keys.sk_d.expose(), &parts);
        let expected = IkeKeys::expand(&IkeCrypto, keys.suite, &seed, inputs(&ni, &nr)).unwrap();
        assert_eq!(hex(rekeyed.sk_d.expose()), hex(expected.sk_d.expose()));
        let with = Keying {
            additional: Some(&more),
            ..keying(&ni, &nr, Some(&shared))
        };
        let (out, _) = keys.keymat(&IkeCrypto, EspSuite::Aes256Gcm16, &with).unwrap();
        let stream = IkeCrypto.prf_plus(prf, keys.sk_d.expose(), &parts, 32);
        assert_eq!(hex(out.cipher.expose())[..64], hex(stream.expose()));
    }
}
