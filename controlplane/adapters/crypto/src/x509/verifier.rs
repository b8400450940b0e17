//! Whom a subscriber trusts.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use towpath_base::crypto::{PeerProof, PeerVerifier, SignatureScheme, Untrusted};
use webpki::{
    CertRevocationList, EndEntityCert, Error, ExpirationPolicy, ExtendedKeyUsageValidator, KeyPurposeIdIter,
    OwnedCertRevocationList, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
    anchor_from_trusted_cert, aws_lc_rs as algorithms,
};

use super::InvalidCredential;
use super::certificate::Certificate;

/// Seconds since 1970, from the system.
fn system_clock() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}

/// [`PeerVerifier`] over trusted authorities and their revocation lists.
///
/// Where there is a list of an authority, it must be valid now and is asked about every certificate of that
/// authority, intermediate ones too. Authorities without a list are not asked.
pub struct TrustVerifier {
    anchors: Vec<TrustAnchor<'static>>,
    hashes: Vec<[u8; 20]>,
    lists: Vec<CertRevocationList<'static>>,
    clock: fn() -> u64,
}

impl fmt::Debug for TrustVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} authorities, {} revocation lists",
            self.anchors.len(),
            self.lists.len()
        )
    }
}

impl TrustVerifier {
    /// Trusts `authorities`, certificates in DER, except what `revocation_lists`, in DER, take back.
    ///
    /// # Errors
    /// What does not parse.
    pub fn new(authorities: &[Vec<u8>], revocation_lists: &[Vec<u8>]) -> Result<Self, InvalidCredential> {
        let mut anchors = Vec::new();
        let mut hashes = Vec::new();
        for (index, der) in authorities.iter().enumerate() {
            let bad = InvalidCredential::Authority(index);
            let parsed = Certificate::parse(der).ok_or(bad)?;
            let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, parsed.spki);
            hashes.push(hash.as_ref().try_into().map_err(|_| bad)?);
            let der = CertificateDer::from(der.as_slice());
            anchors.push(anchor_from_trusted_cert(&der).map_err(|_| bad)?.to_owned());
        }
        let list = |(index, der): (usize, &Vec<u8>)| {
            let list = OwnedCertRevocationList::from_der(der);
            list.map(CertRevocationList::Owned)
                .map_err(|_| InvalidCredential::RevocationList(index))
        };
        Ok(Self {
            anchors,
            hashes,
            lists: revocation_lists
                .iter()
                .enumerate()
                .map(list)
                .collect::<Result<_, _>>()?,
            clock: system_clock,
        })
    }

    /// With a clock of the caller's: seconds since 1970.
    pub fn with_clock(self, clock: fn() -> u64) -> Self {
        Self { clock, ..self }
    }

    /// The path from the peer's certificate to an authority, every key on it strong enough.
    fn check_path(
        &self,
        end: &EndEntityCert<'_>,
        intermediates: &[CertificateDer<'_>],
    ) -> Result<(), Untrusted> {
        let lists: Vec<&CertRevocationList<'_>> = self.lists.iter().collect();
        let revocation = RevocationOptionsBuilder::new(&lists).ok().map(|builder| {
            builder
                .with_depth(RevocationCheckDepth::Chain)
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build()
        });
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs((self.clock)()));
        let path = end
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &self.anchors,
                intermediates,
                now,
                IkeUsage,
                revocation,
                None,
            )
            .map_err(reason)?;
        for certificate in path.intermediate_certificates() {
            let der = certificate.der();
            let parsed = Certificate::parse(&der).ok_or(Untrusted::BadCertificate)?;
            if parsed.is_weak() {
                return Err(Untrusted::WeakKey);
            }
        }
        Ok(())
    }
}

impl PeerVerifier for TrustVerifier {
    fn authorities(&self) -> &[[u8; 20]] {
        &self.hashes
    }

    fn verify(&self, proof: &PeerProof<'_>) -> Result<(), Untrusted> {
        let (first, others) = proof.certificates.split_first().ok_or(Untrusted::NoCertificate)?;
        let own = Certificate::parse(first).ok_or(Untrusted::BadCertificate)?;
        if own.is_weak() {
            return Err(Untrusted::WeakKey);
        }
        let der = CertificateDer::from(*first);
        let end = EndEntityCert::try_from(&der).map_err(reason)?;
        let intermediates: Vec<_> = others.iter().map(|der| CertificateDer::from(*der)).collect();
        self.check_path(&end, &intermediates)?;
        if !own.may_sign() {
            return Err(Untrusted::BadCertificate);
        }
        if !own.names(proof.id) {
            return Err(Untrusted::WrongIdentity);
        }
        let signed = |algorithm: &&&dyn SignatureVerificationAlgorithm| {
            end.verify_signature(**algorithm, proof.message, proof.signature)
                .is_ok()
        };
        if signature_algorithms(proof.scheme)
            .iter()
            .any(|algorithm| signed(&algorithm))
        {
            Ok(())
        } else {
            Err(Untrusted::BadSignature)
        }
    }
}

/// The algorithms behind a scheme: ECDSA does not say on which curve.
pub(super) fn signature_algorithms(
    scheme: SignatureScheme,
) -> &'static [&'static dyn SignatureVerificationAlgorithm] {
    use SignatureScheme as S;
    use algorithms as a;
    macro_rules! list {
        ($($name:ident),+) => {{
            static LIST: std::sync::LazyLock<Vec<&'static dyn SignatureVerificationAlgorithm>> =
                std::sync::LazyLock::new(|| vec![$(a::$name),+]);
            &LIST
        }};
    }
    match scheme {
        S::EcdsaSha256 => list!(ECDSA_P256_SHA256, ECDSA_P384_SHA256),
        S::EcdsaSha384 => list!(ECDSA_P384_SHA384, ECDSA_P256_SHA384),
        S::Ed25519 => list!(ED25519),
        S::RsaPssSha256 => list!(RSA_PSS_2048_8192_SHA256_LEGACY_KEY),
        S::RsaPssSha384 => list!(RSA_PSS_2048_8192_SHA384_LEGACY_KEY),
        S::RsaPssSha512 => list!(RSA_PSS_2048_8192_SHA512_LEGACY_KEY),
        S::RsaPkcs1Sha256 => list!(RSA_PKCS1_2048_8192_SHA256),
        S::RsaPkcs1Sha384 => list!(RSA_PKCS1_2048_8192_SHA384),
        S::RsaPkcs1Sha512 => list!(RSA_PKCS1_2048_8192_SHA512),
    }
}

/// Extended key usages of a certificate for IKE (RFC 4945 §5.1.3.12): none, ipsecIKE, iKEIntermediate, any; and
/// those of TLS, which deployed gateways have.
struct IkeUsage;

const USAGES: [&[usize]; 5] = [
    &[1, 3, 6, 1, 5, 5, 7, 3, 17],
    &[1, 3, 6, 1, 5, 5, 8, 2, 2],
    &[2, 5, 29, 37, 0],
    &[1, 3, 6, 1, 5, 5, 7, 3, 1],
    &[1, 3, 6, 1, 5, 5, 7, 3, 2],
];

impl ExtendedKeyUsageValidator for IkeUsage {
    fn validate(&self, usages: KeyPurposeIdIter<'_, '_>) -> Result<(), Error> {
        let mut empty = true;
        for usage in usages {
            let oid = usage?.to_decoded_oid();
            if USAGES.contains(&oid.as_slice()) {
                return Ok(());
            }
            empty = false;
        }
        if empty {
            Ok(())
        } else {
            Err(Error::EmptyEkuExtension)
        }
    }
}

fn reason(error: Error) -> Untrusted {
    match error {
        Error::UnknownIssuer | Error::InvalidSignatureForPublicKey => Untrusted::UnknownIssuer,
        Error::CertExpired { .. } | Error::CertNotValidYet { .. } => Untrusted::NotValidNow,
        Error::CertRevoked => Untrusted::Revoked,
        Error::CrlExpired { .. }
        | Error::InvalidCrlSignatureForPublicKey
        | Error::IssuerNotCrlSigner
        | Error::UnknownRevocationStatus => Untrusted::BadRevocationList,
        Error::NameConstraintViolation => Untrusted::NameConstraint,
        _ => Untrusted::BadCertificate,
    }
}
