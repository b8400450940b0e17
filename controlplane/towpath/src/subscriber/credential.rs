//! Credentials on their way in and out: pre-shared keys, certificates, authorities, post-quantum keys.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use towpath_base::credentials::{CertificateKey, Credentials, Ppk};
use towpath_base::profile::Psk;
use towpath_crypto::x509::pem;
use zeroize::Zeroizing;

use super::document::Invalid;
use super::secret;

/// Longest file of certificates or revocation lists, bytes.
const MAX_PEM: u64 = 4 << 20;

/// Credentials of one peer in a file. Everything in PEM stands here as text, or in a file of its own.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct CredentialDocument {
    /// Certificate shown as the terminal's, then those between it and what the peer trusts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) certificate: Option<String>,
    /// File with them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) certificate_file: Option<PathBuf>,
    /// Private key of the certificate. Never printed, only exported with `--with-secrets`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<Zeroizing<String>>,
    /// File with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key_file: Option<PathBuf>,
    /// Authorities the peer's certificate must come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) authorities: Option<String>,
    /// Files with them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) authority_files: Vec<PathBuf>,
    /// Their revocation lists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) revocation_lists: Option<String>,
    /// Files with them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) revocation_list_files: Vec<PathBuf>,
    /// Name of the post-quantum pre-shared key (RFC 8784).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ppk_id: Option<String>,
    /// The key in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ppk_hex: Option<Zeroizing<String>>,
    /// File with the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ppk_file: Option<PathBuf>,
    /// Refuse a peer that does not use it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) ppk_required: bool,
}

fn invalid(key: &str, problem: impl Into<String>) -> Invalid {
    (key.into(), problem.into())
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let cannot = |error: std::io::Error| format!("{}: cannot be read: {error}", path.display());
    let size = fs::metadata(path).map_err(cannot)?.len();
    if size > MAX_PEM {
        return Err(format!("{}: more than {MAX_PEM} bytes", path.display()));
    }
    fs::read(path).map(Zeroizing::new).map_err(cannot)
}

/// Text, or what the file holds; both is an error.
fn text_or_file(
    key: &str,
    text: Option<&str>,
    file: Option<&Path>,
) -> Result<Option<Zeroizing<Vec<u8>>>, Invalid> {
    match (text, file) {
        (None, None) => Ok(None),
        (Some(text), None) => Ok(Some(Zeroizing::new(text.as_bytes().to_vec()))),
        (None, Some(path)) => read(path)
            .map(Some)
            .map_err(|problem| invalid(&format!("{key}_file"), problem)),
        (Some(_), Some(_)) => Err(invalid(
            &format!("{key}_file"),
            format!("expected `{key}` or `{key}_file`, not both"),
        )),
    }
}

type Ders = Option<Vec<Vec<u8>>>;

fn many(
    key: &str,
    text: Option<&str>,
    files: &[PathBuf],
    parse: fn(&[u8]) -> Ders,
    what: &str,
) -> Result<Vec<Vec<u8>>, Invalid> {
    let mut all = Vec::new();
    if let Some(text) = text {
        all.extend(parse(text.as_bytes()).ok_or_else(|| invalid(key, format!("expected {what} in PEM")))?);
    }
    for path in files {
        let bytes = read(path).map_err(|problem| invalid(key, problem))?;
        let found = parse(&bytes);
        all.extend(found.ok_or_else(|| invalid(key, format!("{}: expected {what} in PEM", path.display())))?);
    }
    Ok(all)
}

impl CredentialDocument {
    /// The credentials, with the pre-shared key there is.
    pub(crate) fn into_credentials(self, psk: Option<Psk>) -> Result<Credentials, Invalid> {
        let certificate = self.certificate_key()?;
        let certificates = "certificates";
        let lists = "revocation lists";
        Ok(Credentials {
            psk,
            certificate,
            authorities: many(
                "authorities",
                self.authorities.as_deref(),
                &self.authority_files,
                pem::certificates,
                certificates,
            )?,
            revocation_lists: many(
                "revocation_lists",
                self.revocation_lists.as_deref(),
                &self.revocation_list_files,
                pem::revocation_lists,
                lists,
            )?,
            ppk: self.ppk()?,
        })
    }

    fn certificate_key(&self) -> Result<Option<CertificateKey>, Invalid> {
        let chain = text_or_file(
            "certificate",
            self.certificate.as_deref(),
            self.certificate_file.as_deref(),
        )?;
        let key = text_or_file(
            "key",
            self.key.as_ref().map(|text| text.as_str()),
            self.key_file.as_deref(),
        )?;
        match (chain, key) {
            (None, None) => Ok(None),
            (Some(chain), Some(key)) => {
                let chain = pem::certificates(&chain)
                    .ok_or_else(|| invalid("certificate", "expected certificates in PEM"))?;
                let key = pem::private_key(&key)
                    .ok_or_else(|| invalid("key", "expected a private key in PEM (value not shown)"))?;
                Ok(Some(CertificateKey {
                    chain,
                    key: Psk::new(key.to_vec()),
                }))
            }
            (Some(_), None) => Err(invalid(
                "key",
                "is missing, expected the certificate's private key",
            )),
            (None, Some(_)) => Err(invalid(
                "certificate",
                "is missing, expected that of the private key",
            )),
        }
    }

    fn ppk(&self) -> Result<Option<Ppk>, Invalid> {
        let secret = match (&self.ppk_hex, &self.ppk_file) {
            (None, None) => None,
            (Some(text), None) => {
                let bytes = secret::unhex(text)
                    .ok_or_else(|| invalid("ppk_hex", "expected hex digits (value not shown)"))?;
                Some(Psk::new(bytes.to_vec()))
            }
            (None, Some(path)) => {
                Some(secret::psk_file(path).map_err(|problem| invalid("ppk_file", problem))?)
            }
            _ => return Err(invalid("ppk_file", "expected `ppk_hex` or `ppk_file`, not both")),
        };
        match (&self.ppk_id, secret) {
            (None, None) => Ok(None),
            (Some(id), Some(secret)) => Ok(Some(Ppk {
                id: id.as_bytes().to_vec(),
                secret,
                required: self.ppk_required,
            })),
            (Some(_), None) => Err(invalid("ppk_hex", "is missing, expected `ppk_hex` or `ppk_file`")),
            (None, Some(_)) => Err(invalid("ppk_id", "is missing, expected the key's name")),
        }
    }

    /// The document of stored credentials; the pre-shared key stands elsewhere.
    pub(crate) fn from_credentials(credentials: &Credentials) -> Self {
        let pem = |label: &str, ders: &[Vec<u8>]| {
            let text: String = ders
                .iter()
                .map(|der| pem::encode(label, der).to_string())
                .collect();
            Some(text).filter(|text| !text.is_empty())
        };
        let certificate = credentials.certificate.as_ref();
        let ppk = credentials.ppk.as_ref();
        Self {
            certificate: certificate.and_then(|certificate| pem("CERTIFICATE", &certificate.chain)),
            key: certificate.map(|certificate| key_pem(certificate.key.expose())),
            authorities: pem("CERTIFICATE", &credentials.authorities),
            revocation_lists: pem("X509 CRL", &credentials.revocation_lists),
            ppk_id: ppk.map(|ppk| String::from_utf8_lossy(&ppk.id).into_owned()),
            ppk_hex: ppk.map(|ppk| secret::hex(ppk.secret.expose())),
            ppk_required: ppk.is_some_and(|ppk| ppk.required),
            ..Self::default()
        }
    }
}

/// A key as PEM, labelled by its form: SEC 1 and PKCS #1 start with a version other than PKCS #8's, or with one
/// followed by something else than an algorithm.
fn key_pem(der: &[u8]) -> Zeroizing<String> {
    const SEQUENCE: u8 = 0x30;
    const INTEGER: u8 = 0x02;
    let mut rest = der;
    let body = towpath_base::dn::take(&mut rest).filter(|(tag, _)| *tag == SEQUENCE);
    let mut body = body.map(|(_, content)| content).unwrap_or_default();
    let version = towpath_base::dn::take(&mut body).filter(|(tag, _)| *tag == INTEGER);
    let label = match (version.map(|(_, version)| version), body.first()) {
        (_, Some(&SEQUENCE)) => "PRIVATE KEY",
        (Some([1]), _) => "EC PRIVATE KEY",
        _ => "RSA PRIVATE KEY",
    };
    pem::encode(label, der)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate() -> (String, String) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["a.test".into()]).unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    }

    #[test]
    fn credentials_are_read_from_files_and_written_so_that_they_are_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let (certificate, key) = certificate();
        let document = CredentialDocument {
            certificate_file: Some(file("c", &certificate)),
            key_file: Some(file("k", &key)),
            authority_files: vec![
                file("a", &certificate),
                file("b", &(certificate.clone() + &certificate)),
            ],
            ppk_id: Some("p".into()),
            ppk_file: Some(file("p", &"x".repeat(32))),
            ppk_required: true,
            ..CredentialDocument::default()
        };
        let credentials = document.into_credentials(None).unwrap();
        assert_eq!(credentials.authorities.len(), 3);
        assert!(credentials.is_complete());
        let text = toml::to_string(&CredentialDocument::from_credentials(&credentials)).unwrap();
        let again: CredentialDocument = toml::from_str(&text).unwrap();
        assert_eq!(again.into_credentials(None).unwrap(), credentials);
    }

    #[test]
    fn what_is_missing_or_wrong_is_named_without_its_value() {
        let (certificate, key) = certificate();
        let refused = |change: &dyn Fn(&mut CredentialDocument)| {
            let mut document = CredentialDocument {
                certificate: Some(certificate.clone()),
                key: Some(Zeroizing::new(key.clone())),
                ..CredentialDocument::default()
            };
            change(&mut document);
            document.into_credentials(None).unwrap_err().0
        };
        assert_eq!(refused(&|d| d.key = None), "key");
        assert_eq!(refused(&|d| d.certificate = None), "certificate");
        assert_eq!(refused(&|d| d.certificate = Some("x".into())), "certificate");
        assert_eq!(refused(&|d| d.key = Some(Zeroizing::new("x".into()))), "key");
        assert_eq!(refused(&|d| d.key_file = Some("/x".into())), "key_file");
        assert_eq!(refused(&|d| d.authorities = Some("x".into())), "authorities");
        assert_eq!(
            refused(&|d| d.authority_files = vec!["/nowhere".into()]),
            "authorities"
        );
        assert_eq!(
            refused(&|d| d.revocation_lists = Some(certificate.clone())),
            "revocation_lists"
        );
        assert_eq!(refused(&|d| d.ppk_id = Some("p".into())), "ppk_hex");
        assert_eq!(
            refused(&|d| d.ppk_hex = Some(Zeroizing::new("00".into()))),
            "ppk_id"
        );
        assert_eq!(
            refused(&|d| d.ppk_hex = Some(Zeroizing::new("0".into()))),
            "ppk_hex"
        );
    }
}
