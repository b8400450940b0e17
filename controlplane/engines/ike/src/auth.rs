//! Proving identities (RFC 7296 §2.15, RFC 7427): which method, what is signed, what is accepted.
//!
//! | Auth Method | proves by | sent | accepted |
//! |---|---|---|---|
//! | 2 | shared key | where the terminal has no certificate | where the policy trusts no authority |
//! | 14 | signature with its algorithm named | where the peer announced a hash of ours | yes |
//! | 9, 10 | ECDSA over P-256, P-384 (RFC 4754) | to peers that announced no hash | yes |
//! | 1 | RSA | never: its hash is SHA-1 by default | with SHA-2 inside only |

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;

use towpath_base::credentials::Ppk;
use towpath_base::crypto::{PeerProof, PeerVerifier, SignatureScheme, Signer, Untrusted};
use towpath_base::profile::IkeId;

/// Auth Method: RSA Digital Signature.
const RSA: u8 = 1;
/// Auth Method: Shared Key Message Integrity Code.
pub(crate) const SHARED_KEY: u8 = 2;
/// Auth Method: ECDSA with SHA-256 on the P-256 curve.
const ECDSA_256: u8 = 9;
/// Auth Method: ECDSA with SHA-384 on the P-384 curve.
const ECDSA_384: u8 = 10;
/// Auth Method: Digital Signature (RFC 7427).
const SIGNATURE: u8 = 14;

/// Longest signature: RSA of 8192 bits.
const MAX_SIGNATURE: usize = 1024;
/// Most certificates of a peer that are looked at.
pub(crate) const MAX_CERTIFICATES: usize = 8;
/// Longest certificate of a peer that is looked at, bytes.
pub(crate) const MAX_CERTIFICATE: usize = 8192;

/// Certificates and the post-quantum key of a policy. The default is a shared key alone.
#[derive(Clone, Default)]
pub struct Auth {
    /// The terminal proves itself by signing; by the pre-shared key when absent.
    pub signer: Option<Arc<dyn Signer>>,
    /// The peer must prove itself by a certificate this accepts; by the pre-shared key when absent.
    pub verifier: Option<Arc<dyn PeerVerifier>>,
    /// Post-quantum pre-shared key (RFC 8784).
    pub ppk: Option<Ppk>,
}

impl Auth {
    /// Whether signatures are made or checked.
    pub(crate) const fn signs(&self) -> bool {
        self.signer.is_some() || self.verifier.is_some()
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth")
            .field("signer", &self.signer)
            .field("verifier", &self.verifier)
            .field("ppk", &self.ppk.is_some())
            .finish()
    }
}

/// Keys are not compared: two are the same if they are one object.
impl PartialEq for Auth {
    fn eq(&self, other: &Self) -> bool {
        fn same<T: ?Sized>(a: Option<&Arc<T>>, b: Option<&Arc<T>>) -> bool {
            match (a, b) {
                (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                (a, b) => a.is_none() && b.is_none(),
            }
        }
        same(self.signer.as_ref(), other.signer.as_ref())
            && same(self.verifier.as_ref(), other.verifier.as_ref())
            && self.ppk == other.ppk
    }
}

impl Eq for Auth {}

/// Data of SIGNATURE_HASH_ALGORITHMS (RFC 7427 §4).
pub(crate) fn announced_hashes() -> Vec<u8> {
    SignatureScheme::HASHES
        .iter()
        .flat_map(|hash| hash.to_be_bytes())
        .collect()
}

/// The hashes of such data; odd bytes are left out.
pub(crate) fn parse_hashes(data: &[u8]) -> Vec<u16> {
    let pairs = data.chunks_exact(2).take(64);
    pairs
        .filter_map(|pair| Some(u16::from_be_bytes(pair.try_into().ok()?)))
        .collect()
}

/// Auth Method and Authentication Data over `octets`, in a form that a peer which announced `hashes` understands.
pub(crate) fn sign(signer: &dyn Signer, hashes: &[u16], octets: &[u8]) -> Option<(u8, Vec<u8>)> {
    let fitting = signer
        .schemes()
        .iter()
        .find(|scheme| hashes.contains(&scheme.hash_number()));
    if let Some(scheme) = fitting {
        let identifier = scheme.algorithm_identifier();
        let mut data = vec![u8::try_from(identifier.len()).ok()?];
        data.extend_from_slice(identifier);
        data.extend(signer.sign(*scheme, octets).ok()?);
        return Some((SIGNATURE, data));
    }
    if !hashes.is_empty() {
        return None;
    }
    let scheme = *signer.schemes().first()?;
    let (method, half) = match scheme {
        SignatureScheme::EcdsaSha256 => (ECDSA_256, 32),
        SignatureScheme::EcdsaSha384 => (ECDSA_384, 48),
        _ => return None,
    };
    Some((method, der_to_pair(&signer.sign(scheme, octets).ok()?, half)?))
}

/// Checks the signature of a peer that claims to be `id`.
pub(crate) fn verify(
    verifier: &dyn PeerVerifier,
    certificates: &[&[u8]],
    id: &IkeId,
    (method, data): (u8, &[u8]),
    octets: &[u8],
) -> Result<(), Untrusted> {
    let too_much = certificates.len() > MAX_CERTIFICATES
        || certificates
            .iter()
            .any(|certificate| certificate.len() > MAX_CERTIFICATE);
    if too_much {
        return Err(Untrusted::BadCertificate);
    }
    if certificates.is_empty() {
        return Err(Untrusted::NoCertificate);
    }
    let mut result = Err(Untrusted::BadSignature);
    for (scheme, signature) in candidates(method, data).ok_or(Untrusted::BadSignature)? {
        let proof = PeerProof {
            certificates,
            id,
            scheme,
            message: octets,
            signature: &signature,
        };
        result = verifier.verify(&proof);
        // Only the hash inside an old RSA signature is guessed.
        if result != Err(Untrusted::BadSignature) {
            break;
        }
    }
    result
}

/// What the data may be a signature by, and the signature. `None` for methods that are no signatures.
fn candidates(method: u8, data: &[u8]) -> Option<Vec<(SignatureScheme, Vec<u8>)>> {
    use SignatureScheme as S;
    let sane = |signature: &[u8]| (1..=MAX_SIGNATURE).contains(&signature.len());
    match method {
        SIGNATURE => {
            let (len, rest) = data.split_first()?;
            let (identifier, signature) = rest.split_at_checked(usize::from(*len))?;
            let scheme = *S::ALL
                .iter()
                .find(|scheme| scheme.algorithm_identifier() == identifier)?;
            sane(signature).then(|| vec![(scheme, signature.to_vec())])
        }
        ECDSA_256 => Some(vec![(S::EcdsaSha256, pair_to_der(data, 32)?)]),
        ECDSA_384 => Some(vec![(S::EcdsaSha384, pair_to_der(data, 48)?)]),
        RSA if sane(data) => {
            let schemes = [S::RsaPkcs1Sha256, S::RsaPkcs1Sha384, S::RsaPkcs1Sha512];
            Some(schemes.map(|scheme| (scheme, data.to_vec())).to_vec())
        }
        _ => None,
    }
}

/// `r | s`, each of `half` bytes (RFC 4754 §7), as Ecdsa-Sig-Value.
fn pair_to_der(pair: &[u8], half: usize) -> Option<Vec<u8>> {
    if pair.len() != 2 * half {
        return None;
    }
    let mut body = Vec::new();
    for number in pair.chunks_exact(half) {
        let start = number.iter().position(|byte| *byte != 0).unwrap_or(half - 1);
        let digits = number.get(start..)?;
        let positive = digits.first().is_some_and(|first| first & 0x80 != 0);
        body.extend_from_slice(&[2, (digits.len() + usize::from(positive)) as u8]);
        body.extend(positive.then_some(0));
        body.extend_from_slice(digits);
    }
    // Two numbers of 49 bytes at most: the length fits one byte.
    Some([&[0x30, body.len() as u8][..], &body].concat())
}

/// The reverse of [`pair_to_der`].
fn der_to_pair(der: &[u8], half: usize) -> Option<Vec<u8>> {
    use towpath_base::dn::take;
    let mut rest = der;
    let (_, mut numbers) = take(&mut rest).filter(|(tag, _)| *tag == 0x30)?;
    let mut pair = Vec::new();
    for _ in 0..2 {
        let (_, digits) = take(&mut numbers).filter(|(tag, _)| *tag == 2)?;
        let digits = digits.strip_prefix(&[0]).unwrap_or(digits);
        let padding = half.checked_sub(digits.len())?;
        pair.extend(core::iter::repeat_n(0, padding));
        pair.extend_from_slice(digits);
    }
    (rest.is_empty() && numbers.is_empty()).then_some(pair)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ecdsa_signatures_change_their_form_without_loss() {
        for (half, pair) in [
            (32, vec![0xff; 64]),
            (32, vec![0; 64]),
            (48, vec![1; 96]),
            (32, [vec![0; 20], vec![0x80; 12], vec![0x7f; 32]].concat()),
        ] {
            let der = pair_to_der(&pair, half).unwrap();
            assert_eq!(der_to_pair(&der, half), Some(pair));
            assert_eq!(der_to_pair(&[&der[..], &[0]].concat(), half), None);
        }
        assert_eq!(pair_to_der(&[1; 63], 32), None);
        assert_eq!(
            der_to_pair(&pair_to_der(&[0xff; 96], 48).unwrap(), 32),
            None,
            "too long"
        );
    }

    #[test]
    fn signatures_with_unknown_algorithms_or_impossible_lengths_are_refused() {
        let identifier = SignatureScheme::Ed25519.algorithm_identifier();
        let named = |len: u8, signature: &[u8]| [&[len][..], identifier, signature].concat();
        assert_eq!(candidates(14, &named(7, &[1; 64])).unwrap().len(), 1);
        for bad in [
            vec![],
            vec![255],
            named(8, &[1; 64]),
            named(6, &[1; 64]),
            named(7, &[]),
            named(7, &[1; MAX_SIGNATURE + 1]),
            named(255, &[1; 64]),
            // ecdsa-with-SHA1
            vec![11, 0x30, 9, 6, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1, 1, 1],
        ] {
            assert_eq!(candidates(14, &bad), None, "{bad:02x?}");
        }
        for (method, len) in [
            (9, 63),
            (9, 65),
            (9, 96),
            (10, 64),
            (1, 0),
            (1, 1025),
            (2, 32),
            (3, 40),
            (11, 132),
        ] {
            assert_eq!(candidates(method, &vec![1; len]), None, "{method} {len}");
        }
    }

    #[test]
    fn hashes_are_read_whatever_their_number() {
        assert_eq!(parse_hashes(&announced_hashes()), SignatureScheme::HASHES);
        assert_eq!(parse_hashes(&[0]), []);
        assert_eq!(parse_hashes(&[0, 2, 9]), [2]);
        assert_eq!(parse_hashes(&vec![1; 60_000]).len(), 64);
    }
}
