//! What is offered and what is chosen (RFC 7296 §2.7).

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use towpath_base::crypto::{DhGroup, Integrity, Prf, SkCipher};

/// Algorithms one proposal for an IKE SA accepts, each list in order of preference.
///
/// Text form is strongSwan's: `aes256gcm16-prfsha256-x25519`, `aes256-sha256-ecp256`. Several of a kind may be
/// named. Without a PRF, the PRFs over the hashes of the integrity algorithms are meant. An additional key exchange is
/// `ke1_mlkem768`; with `ke1_none` beside it, it is done only where the other side can.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IkeProposal {
    /// Ciphers, all AEAD or none; not empty.
    pub ciphers: Vec<SkCipher>,
    /// Integrity algorithms; empty exactly for AEAD ciphers.
    pub integrities: Vec<Integrity>,
    /// Pseudorandom functions; not empty.
    pub prfs: Vec<Prf>,
    /// Diffie-Hellman groups; not empty.
    pub groups: Vec<DhGroup>,
    /// Methods of an additional key exchange (RFC 9370), done before anybody proves who it is. Empty: none is.
    pub additional: Vec<DhGroup>,
    /// Whether to do without the additional key exchange where the other side lacks it.
    pub additional_optional: bool,
}

/// The algorithms of one IKE SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct IkeSuite {
    /// Cipher.
    pub cipher: SkCipher,
    /// Integrity algorithm; `None` exactly for an AEAD.
    pub integrity: Option<Integrity>,
    /// Pseudorandom function.
    pub prf: Prf,
    /// Diffie-Hellman group.
    pub group: DhGroup,
    /// Method of the additional key exchange.
    pub additional: Option<DhGroup>,
}

impl fmt::Display for IkeSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cipher)?;
        if let Some(integrity) = self.integrity {
            write!(f, "-{integrity}")?;
        }
        write!(f, "-{}-{}", self.prf, self.group)?;
        match self.additional {
            Some(method) => write!(f, "-ke1_{method}"),
            None => Ok(()),
        }
    }
}

/// The text is not a proposal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InvalidProposal {
    /// No algorithm has this name.
    UnknownName(String),
    /// No cipher named.
    NoCipher,
    /// AEAD and other ciphers in one proposal (RFC 7296 §3.3 wants two), or an AEAD with an integrity algorithm.
    MixedAead,
    /// A cipher that needs an integrity algorithm has none.
    NoIntegrity,
    /// An AEAD without a pseudorandom function.
    NoPrf,
    /// No Diffie-Hellman group named.
    NoGroup,
    /// A key encapsulation mechanism in place of a Diffie-Hellman group.
    KemAlone,
    /// `ke1_none` alone.
    NoAdditional,
}

impl fmt::Display for InvalidProposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownName(name) => {
                return write!(f, "unknown algorithm `{}`", name.escape_debug());
            }
            Self::NoCipher => "names no cipher (aes128gcm16, aes256gcm16, chacha20poly1305, aes128, aes256)",
            Self::MixedAead => {
                "mixes an AEAD with another cipher or an integrity algorithm; make two proposals"
            }
            Self::NoIntegrity => "names no integrity algorithm (sha256, sha384, sha512)",
            Self::NoPrf => "names no pseudorandom function (prfsha256, prfsha384, prfsha512)",
            Self::NoGroup => {
                "names no Diffie-Hellman group (x25519, ecp256, ecp384, modp2048, modp3072, modp4096)"
            }
            Self::KemAlone => "names mlkem768 as the group; name it beside one, as `ke1_mlkem768`",
            Self::NoAdditional => "names `ke1_none` without `ke1_mlkem768`",
        })
    }
}

impl core::error::Error for InvalidProposal {}

/// What comes before the name of a method of the additional key exchange.
const ADDITIONAL: &str = "ke1_";

fn by_name<T: Copy>(all: &[T], name: fn(T) -> &'static str, text: &str) -> Option<T> {
    all.iter().copied().find(|value| name(*value) == text)
}

impl FromStr for IkeProposal {
    type Err = InvalidProposal;

    fn from_str(text: &str) -> Result<Self, InvalidProposal> {
        let mut proposal = Self {
            ciphers: Vec::new(),
            integrities: Vec::new(),
            prfs: Vec::new(),
            groups: Vec::new(),
            additional: Vec::new(),
            additional_optional: false,
        };
        for word in text.split('-') {
            if let Some(cipher) = by_name(SkCipher::ALL, SkCipher::name, word) {
                proposal.ciphers.push(cipher);
            } else if let Some(integrity) = by_name(Integrity::ALL, Integrity::name, word) {
                proposal.integrities.push(integrity);
            } else if let Some(prf) = by_name(Prf::ALL, Prf::name, word) {
                proposal.prfs.push(prf);
            } else if let Some(group) = by_name(DhGroup::ALL, DhGroup::name, word) {
                if group.is_kem() {
                    return Err(InvalidProposal::KemAlone);
                }
                proposal.groups.push(group);
            } else if let Some(method) = word.strip_prefix(ADDITIONAL) {
                match by_name(DhGroup::ALL, DhGroup::name, method) {
                    Some(method) => proposal.additional.push(method),
                    None if method == "none" => proposal.additional_optional = true,
                    None => return Err(InvalidProposal::UnknownName(word.into())),
                }
            } else {
                return Err(InvalidProposal::UnknownName(word.into()));
            }
        }
        proposal.complete()
    }
}

impl IkeProposal {
    fn complete(mut self) -> Result<Self, InvalidProposal> {
        let Some(aead) = self.ciphers.first().map(|cipher| cipher.is_aead()) else {
            return Err(InvalidProposal::NoCipher);
        };
        if self.ciphers.iter().any(|cipher| cipher.is_aead() != aead) || aead && !self.integrities.is_empty()
        {
            return Err(InvalidProposal::MixedAead);
        }
        if !aead && self.integrities.is_empty() {
            return Err(InvalidProposal::NoIntegrity);
        }
        if self.prfs.is_empty() {
            self.prfs = self.integrities.iter().map(|integrity| integrity.prf()).collect();
        }
        if self.prfs.is_empty() {
            return Err(InvalidProposal::NoPrf);
        }
        if self.groups.is_empty() {
            return Err(InvalidProposal::NoGroup);
        }
        if self.additional_optional && self.additional.is_empty() {
            return Err(InvalidProposal::NoAdditional);
        }
        Ok(self)
    }
}

impl fmt::Display for IkeProposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = (self.ciphers.iter().map(|value| value.name()))
            .chain(self.integrities.iter().map(|value| value.name()))
            .chain(self.prfs.iter().map(|value| value.name()))
            .chain(self.groups.iter().map(|value| value.name()));
        for (index, name) in names.enumerate() {
            if index > 0 {
                f.write_str("-")?;
            }
            f.write_str(name)?;
        }
        for method in &self.additional {
            write!(f, "-{ADDITIONAL}{method}")?;
        }
        if self.additional_optional {
            write!(f, "-{ADDITIONAL}none")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn names_are_strongswans() {
        let gcm: IkeProposal = "aes256gcm16-prfsha256-x25519".parse().unwrap();
        assert_eq!(gcm.ciphers, [SkCipher::Aes256Gcm16]);
        assert_eq!(gcm.prfs, [Prf::HmacSha256]);
        assert_eq!(gcm.to_string(), "aes256gcm16-prfsha256-x25519");
        let cbc: IkeProposal = "aes128-aes256-sha256-sha512-modp2048-ecp256".parse().unwrap();
        assert_eq!(cbc.prfs, [Prf::HmacSha256, Prf::HmacSha512]);
        assert_eq!(cbc.groups, [DhGroup::Modp2048, DhGroup::Ecp256]);
        let text = "chacha20poly1305-prfsha384-ecp384-ke1_mlkem768-ke1_none";
        let hybrid: IkeProposal = text.parse().unwrap();
        assert_eq!(hybrid.additional, [DhGroup::MlKem768]);
        assert!(hybrid.additional_optional);
        assert_eq!(hybrid.to_string(), text);
    }

    #[test]
    fn what_is_missing_or_mixed_is_named() {
        for (text, error) in [
            ("", InvalidProposal::UnknownName("".into())),
            ("aes256-md5-modp1024", InvalidProposal::UnknownName("md5".into())),
            ("sha256-x25519", InvalidProposal::NoCipher),
            ("aes256-x25519", InvalidProposal::NoIntegrity),
            ("aes256gcm16-x25519", InvalidProposal::NoPrf),
            ("aes256gcm16-sha256-x25519", InvalidProposal::MixedAead),
            ("aes256gcm16-aes128-prfsha256-x25519", InvalidProposal::MixedAead),
            ("aes256gcm16-prfsha256", InvalidProposal::NoGroup),
            ("aes256gcm16-prfsha256-mlkem768", InvalidProposal::KemAlone),
            (
                "aes256gcm16-prfsha256-x25519-ke1_none",
                InvalidProposal::NoAdditional,
            ),
            (
                "aes256gcm16-prfsha256-x25519-ke1_md5",
                InvalidProposal::UnknownName("ke1_md5".into()),
            ),
        ] {
            assert_eq!(text.parse::<IkeProposal>(), Err(error), "{text}");
        }
    }
}
