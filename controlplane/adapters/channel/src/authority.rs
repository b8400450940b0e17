//! The network's own certificate authority: two commands and no service.

use std::time::{SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, date_time_ymd,
};
use zeroize::Zeroizing;

use crate::identity::{node_dns, part_dns, valid_name};
use crate::{ChannelError, Part};

/// Years a certificate lasts.
const YEARS: i32 = 10;
/// Average seconds of a year.
const YEAR: u64 = 31_556_952;

/// An authority: whoever has its key can be any node.
pub struct Authority {
    key: KeyPair,
    certificate: String,
}

/// A certificate with its key, both PEM.
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub private_key: Zeroizing<String>,
}

impl Authority {
    /// A new one.
    ///
    /// # Errors
    /// [`ChannelError::Refused`] when keys cannot be made.
    pub fn create() -> Result<Self, ChannelError> {
        let key = KeyPair::generate().map_err(|error| failed(&error))?;
        let certificate = parameters(&key)?
            .self_signed(&key)
            .map_err(|error| failed(&error))?
            .pem();
        Ok(Self { key, certificate })
    }

    /// The authority of this certificate and key, PEM.
    ///
    /// # Errors
    /// [`ChannelError::Refused`] when the key is none.
    pub fn load(certificate: String, private_key: &str) -> Result<Self, ChannelError> {
        let key = KeyPair::from_pem(private_key).map_err(|error| failed(&error))?;
        Ok(Self { key, certificate })
    }

    /// Its certificate, PEM: what every node trusts.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// Its private key, PEM.
    pub fn private_key(&self) -> Zeroizing<String> {
        Zeroizing::new(self.key.serialize_pem())
    }

    /// Key and certificate for the node `name`, which may be what `parts` say.
    ///
    /// # Errors
    /// [`ChannelError::Refused`] for a name that cannot be one.
    pub fn issue(&self, name: &str, parts: &[Part]) -> Result<Issued, ChannelError> {
        if !valid_name(name) {
            let message = format!(
                "`{}`: expected 1 to 63 of a-z, 0-9 and inner `-`",
                name.escape_debug()
            );
            return Err(ChannelError::Refused(message));
        }
        let mut names = vec![node_dns(name)];
        names.extend(parts.iter().map(|part| part_dns(*part)));
        let mut wanted = CertificateParams::new(names).map_err(|error| failed(&error))?;
        wanted.distinguished_name = common_name(name);
        wanted.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        wanted.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        dates(&mut wanted);
        let key = KeyPair::generate().map_err(|error| failed(&error))?;
        // Name and key are all an issuer's certificate says about its signatures.
        let own = parameters(&self.key)?;
        let issuer = Issuer::from_params(&own, &self.key);
        let certificate = wanted
            .signed_by(&key, &issuer)
            .map_err(|error| failed(&error))?
            .pem();
        Ok(Issued {
            certificate,
            private_key: Zeroizing::new(key.serialize_pem()),
        })
    }
}

fn parameters(key: &KeyPair) -> Result<CertificateParams, ChannelError> {
    let mut wanted = CertificateParams::new(Vec::new()).map_err(|error| failed(&error))?;
    // Two authorities have two names, so that their certificates can stand in one file.
    let print: String = key
        .public_key_raw()
        .iter()
        .skip(1)
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    wanted.distinguished_name = common_name(&format!("Towpath authority {print}"));
    wanted.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    wanted.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    dates(&mut wanted);
    Ok(wanted)
}

fn common_name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

fn dates(wanted: &mut CertificateParams) {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let year = 1970 + i32::try_from(since / YEAR).unwrap_or(0);
    // A year back: clocks of nodes differ.
    wanted.not_before = date_time_ymd(year - 1, 1, 1);
    wanted.not_after = date_time_ymd(year + YEARS, 1, 1);
}

fn failed(error: &rcgen::Error) -> ChannelError {
    ChannelError::Refused(format!("certificate: {error}"))
}
