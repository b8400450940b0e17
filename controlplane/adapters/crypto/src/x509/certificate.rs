//! The few fields of a certificate that path validation does not look at (RFC 5280 §4.1).

use towpath_base::dn;
use towpath_base::profile::IkeId;

const BOOLEAN: u8 = 0x01;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
/// `[0] EXPLICIT Version`
const VERSION: u8 = 0xa0;
/// `[3] EXPLICIT Extensions`
const EXTENSIONS: u8 = 0xa3;

const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const RSA_ENCRYPTION: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];

/// A certificate's own fields, borrowed from its DER.
#[derive(Debug)]
pub(super) struct Certificate<'a> {
    /// Subject, a whole Name in DER.
    subject: &'a [u8],
    /// SubjectPublicKeyInfo, whole.
    pub(super) spki: &'a [u8],
    /// Algorithm of the key.
    key_algorithm: &'a [u8],
    /// Contents of the key's bit string.
    pub(super) public_key: &'a [u8],
    /// GeneralNames of the subject.
    alternative_names: Option<&'a [u8]>,
    /// Bits of KeyUsage.
    key_usage: Option<&'a [u8]>,
}

fn expect<'a>(bytes: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    dn::take(bytes)
        .filter(|(found, _)| *found == tag)
        .map(|(_, content)| content)
}

/// One whole element, tag and length included.
fn whole<'a>(bytes: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    let before = *bytes;
    expect(bytes, tag)?;
    before.get(..before.len() - bytes.len())
}

impl<'a> Certificate<'a> {
    /// `None` where the fields are not where RFC 5280 has them.
    pub(super) fn parse(der: &'a [u8]) -> Option<Self> {
        let mut rest = der;
        let mut certificate = expect(&mut rest, SEQUENCE)?;
        if !rest.is_empty() {
            return None;
        }
        let mut fields = expect(&mut certificate, SEQUENCE)?;
        if fields.first() == Some(&VERSION) {
            expect(&mut fields, VERSION)?;
        }
        expect(&mut fields, INTEGER)?;
        // Signature algorithm, issuer, validity.
        for _ in 0..3 {
            expect(&mut fields, SEQUENCE)?;
        }
        let subject = whole(&mut fields, SEQUENCE)?;
        let spki = whole(&mut fields, SEQUENCE)?;
        let mut key = expect(&mut { spki }, SEQUENCE)?;
        let mut algorithm = expect(&mut key, SEQUENCE)?;
        let key_algorithm = expect(&mut algorithm, OBJECT_IDENTIFIER)?;
        let public_key = expect(&mut key, BIT_STRING)?.strip_prefix(&[0])?;
        let mut parsed = Self {
            subject,
            spki,
            key_algorithm,
            public_key,
            alternative_names: None,
            key_usage: None,
        };
        while !fields.is_empty() {
            let (tag, mut content) = dn::take(&mut fields)?;
            if tag == EXTENSIONS {
                parsed.extensions(expect(&mut content, SEQUENCE)?)?;
            }
        }
        Some(parsed)
    }

    fn extensions(&mut self, mut list: &'a [u8]) -> Option<()> {
        while !list.is_empty() {
            let mut extension = expect(&mut list, SEQUENCE)?;
            let oid = expect(&mut extension, OBJECT_IDENTIFIER)?;
            if extension.first() == Some(&BOOLEAN) {
                expect(&mut extension, BOOLEAN)?;
            }
            let mut value = expect(&mut extension, OCTET_STRING)?;
            if oid == SUBJECT_ALT_NAME {
                self.alternative_names = Some(expect(&mut value, SEQUENCE)?);
            } else if oid == KEY_USAGE {
                self.key_usage = expect(&mut value, BIT_STRING)?.get(1..);
            }
        }
        Some(())
    }

    /// Whether the key may sign: digitalSignature or nonRepudiation, if usages are listed (RFC 4945 §5.1.3.2).
    pub(super) fn may_sign(&self) -> bool {
        self.key_usage
            .is_none_or(|bits| bits.first().is_some_and(|bits| bits & 0xc0 != 0))
    }

    /// Whether the certificate speaks for `id` (RFC 4945 §3.1): an entry of the same kind among the alternative
    /// names, or the subject for a distinguished name. A KEY_ID stands in no certificate.
    pub(super) fn names(&self, id: &IkeId) -> bool {
        if let IkeId::DistinguishedName(name) = id
            && dn::same(self.subject, name)
        {
            return true;
        }
        let mut names = self.alternative_names.unwrap_or_default();
        while let Some((tag, value)) = dn::take(&mut names) {
            let text = || std::str::from_utf8(value).ok().map(str::to_owned);
            let named = match (tag, id) {
                (0x81, IkeId::Rfc822(_)) => text().map(IkeId::Rfc822),
                (0x82, IkeId::Fqdn(_)) => text().map(IkeId::Fqdn),
                (0x87, IkeId::Address(_)) => address(value),
                (0xa4, IkeId::DistinguishedName(_)) => Some(IkeId::DistinguishedName(value.to_vec())),
                _ => None,
            };
            if named.is_some_and(|named| id.matches(&named)) {
                return true;
            }
        }
        false
    }

    /// An RSA key shorter than 2048 bits, or with an exponent below 65537 (FIPS 186-5 §5.1 e), or even.
    pub(super) fn is_weak(&self) -> bool {
        if self.key_algorithm != RSA_ENCRYPTION {
            return false;
        }
        let numbers = || {
            let mut key = expect(&mut { self.public_key }, SEQUENCE)?;
            let modulus = expect(&mut key, INTEGER)?;
            let exponent = expect(&mut key, INTEGER)?;
            Some((unsigned(modulus), unsigned(exponent)))
        };
        let Some((modulus, exponent)) = numbers() else {
            return true;
        };
        let bits = 8 * modulus.len() - modulus.first().map_or(0, |first| first.leading_zeros() as usize);
        let small = match exponent {
            [first, ..] if exponent.len() == 3 => *first == 0,
            exponent => exponent.len() < 3,
        };
        bits < 2048 || small || exponent.last().is_none_or(|last| last & 1 == 0)
    }
}

/// Digits without zeros in front.
fn unsigned(number: &[u8]) -> &[u8] {
    let start = number.iter().position(|byte| *byte != 0).unwrap_or(number.len());
    number.get(start..).unwrap_or_default()
}

fn address(value: &[u8]) -> Option<IkeId> {
    if let Ok(v4) = <[u8; 4]>::try_from(value) {
        return Some(IkeId::Address(v4.into()));
    }
    let v6 = <[u8; 16]>::try_from(value).ok()?;
    Some(IkeId::Address(v6.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rsa(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
        fn put(tag: u8, content: &[u8]) -> Vec<u8> {
            let len = u16::try_from(content.len()).unwrap();
            match len {
                0..=0x7f => [&[tag, len as u8][..], content].concat(),
                0x80..=0xff => [&[tag, 0x81, len as u8][..], content].concat(),
                _ => [&[tag, 0x82][..], &len.to_be_bytes(), content].concat(),
            }
        }
        put(
            SEQUENCE,
            &[put(INTEGER, modulus), put(INTEGER, exponent)].concat(),
        )
    }

    fn weak(modulus: &[u8], exponent: &[u8]) -> bool {
        let public_key = rsa(modulus, exponent);
        let certificate = Certificate {
            subject: &[],
            spki: &[],
            key_algorithm: RSA_ENCRYPTION,
            public_key: &public_key,
            alternative_names: None,
            key_usage: None,
        };
        certificate.is_weak()
    }

    #[test]
    fn small_moduli_and_exponents_are_weak() {
        let modulus = |first: u8, bytes: usize| [vec![0, first], vec![0xff; bytes - 1]].concat();
        let good = modulus(0x80, 256);
        assert!(!weak(&good, &[1, 0, 1]));
        assert!(!weak(&good, &[1, 0, 0, 1]));
        for exponent in [
            &[3][..],
            &[0x11],
            &[0xff, 0xff],
            &[0, 0, 3],
            &[1, 0, 2],
            &[],
            &[0],
        ] {
            assert!(weak(&good, exponent), "{exponent:?}");
        }
        assert!(weak(&modulus(0x7f, 256), &[1, 0, 1]));
        assert!(weak(&modulus(0xff, 128), &[1, 0, 1]));
        assert!(weak(&[], &[1, 0, 1]));
    }
}
