//! PEM (RFC 7468), as people keep certificates and keys in files.

use std::fmt::Write;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use zeroize::Zeroizing;

/// The certificates of a text, DER; `None` if there is none, or one is damaged.
pub fn certificates(text: &[u8]) -> Option<Vec<Vec<u8>>> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text)
        .map(|der| der.map(|der| der.to_vec()))
        .collect();
    found.ok().filter(|found| !found.is_empty())
}

/// The revocation lists of a text, DER; `None` if there is none, or one is damaged.
pub fn revocation_lists(text: &[u8]) -> Option<Vec<Vec<u8>>> {
    let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(text)
        .map(|der| der.map(|der| der.to_vec()))
        .collect();
    found.ok().filter(|found| !found.is_empty())
}

/// The first private key of a text (PKCS #8, SEC 1 or PKCS #1, not encrypted), DER.
pub fn private_key(text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let key = PrivateKeyDer::from_pem_slice(text).ok()?;
    Some(Zeroizing::new(key.secret_der().to_vec()))
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// One object as PEM.
pub fn encode(label: &str, der: &[u8]) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(der.len() * 2 + 64));
    // Writing into a String cannot fail.
    let _ = writeln!(text, "-----BEGIN {label}-----");
    for line in der.chunks(48) {
        for group in line.chunks(3) {
            let bits =
                group.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
            for at in 0..4 {
                let digit = DIGITS
                    .get((bits >> (18 - 6 * at) & 63) as usize)
                    .copied()
                    .unwrap_or(b'=');
                text.push(if at <= group.len() { char::from(digit) } else { '=' });
            }
        }
        text.push('\n');
    }
    let _ = writeln!(text, "-----END {label}-----");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for len in [1, 2, 3, 47, 48, 49, 100] {
            let der: Vec<u8> = (0..len).map(|byte: u8| byte.wrapping_mul(7)).collect();
            let two = format!(
                "{}text between\n{}",
                *encode("CERTIFICATE", &der),
                *encode("CERTIFICATE", &der)
            );
            assert_eq!(certificates(two.as_bytes()), Some(vec![der.clone(), der.clone()]));
            let key = encode("PRIVATE KEY", &der);
            assert_eq!(private_key(key.as_bytes()).unwrap().as_slice(), der);
            let list = encode("X509 CRL", &der);
            assert_eq!(revocation_lists(list.as_bytes()), Some(vec![der]));
        }
        assert_eq!(certificates(b""), None);
        assert_eq!(
            certificates(b"-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n"),
            None
        );
        assert!(private_key(b"none").is_none());
    }
}
