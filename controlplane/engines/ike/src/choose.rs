//! Building offers and choosing from them (RFC 7296 §2.7, §2.9, §3.3).

use alloc::vec;
use alloc::vec::Vec;

use towpath_base::crypto::{DhGroup, Integrity, Prf, SkCipher};
use towpath_base::ids::Spi;
use towpath_base::sa::{EspSuite, MAX_SELECTORS};
use towpath_base::selector::TrafficSelector;

use crate::proposal::{IkeProposal, IkeSuite};
use crate::wire::{Proposal, Protocol, Transform, TransformType};

/// Transform ID 0: no such algorithm, for integrity, key exchange and extended sequence numbers alike.
const NONE: u16 = 0;
const ESN: u16 = 1;

fn number(index: usize) -> u8 {
    u8::try_from(index + 1).unwrap_or(u8::MAX)
}

fn cipher_transform(cipher: SkCipher) -> Transform {
    Transform {
        key_bits: cipher.key_bits(),
        ..Transform::new(TransformType::ENCR, cipher.number())
    }
}

/// Everything in `ours` as proposals of an SA payload. Without `additional`, which is for rekeyings of an IKE SA that has
/// none, what insists on an additional key exchange is left out, and so is the choice of one.
pub(crate) fn offer_ike(ours: &[IkeProposal], spi: &[u8], additional: bool) -> Vec<Proposal> {
    let offer = |(index, proposal): (usize, &IkeProposal)| {
        let plain = |kind, id| Transform::new(kind, id);
        let mut transforms: Vec<_> = proposal
            .ciphers
            .iter()
            .map(|cipher| cipher_transform(*cipher))
            .collect();
        transforms.extend(
            proposal
                .integrities
                .iter()
                .map(|value| plain(TransformType::INTEG, value.number())),
        );
        transforms.extend(
            proposal
                .prfs
                .iter()
                .map(|value| plain(TransformType::PRF, value.number())),
        );
        transforms.extend(
            proposal
                .groups
                .iter()
                .map(|value| plain(TransformType::KE, value.number())),
        );
        if additional {
            let additional = proposal.additional.iter().map(|value| value.number());
            let none = proposal.additional_optional.then_some(NONE);
            transforms.extend(additional.chain(none).map(|id| plain(TransformType::ADDKE1, id)));
        }
        Proposal {
            number: number(index),
            protocol: Protocol::IKE,
            spi: spi.to_vec(),
            transforms,
        }
    };
    let possible = |proposal: &&IkeProposal| {
        additional || proposal.additional.is_empty() || proposal.additional_optional
    };
    ours.iter()
        .filter(possible)
        .take(255)
        .enumerate()
        .map(offer)
        .collect()
}

/// Whether the list of one type holds `wanted`, attributes and all.
fn offers(theirs: &Proposal, wanted: Transform) -> bool {
    theirs.of(wanted.kind).any(|transform| *transform == wanted)
}

/// Whether a type is not asked for: nothing listed, or NONE among it.
fn optional(theirs: &Proposal, kind: TransformType) -> bool {
    theirs.of(kind).next().is_none() || offers(theirs, Transform::new(kind, NONE))
}

/// A proposal with a type we do not know cannot be accepted (RFC 7296 §3.3.6).
fn only_types(theirs: &Proposal, kinds: &[TransformType]) -> bool {
    theirs
        .transforms
        .iter()
        .all(|transform| kinds.contains(&transform.kind))
}

fn first_offered<T: Copy>(ours: &[T], theirs: &Proposal, transform: impl Fn(T) -> Transform) -> Option<T> {
    ours.iter()
        .copied()
        .find(|value| offers(theirs, transform(*value)))
}

/// The additional key exchange both sides want: `Some(None)` if they do without.
fn match_additional(ours: &IkeProposal, theirs: &Proposal, possible: bool) -> Option<Option<DhGroup>> {
    use TransformType as T;
    // Of several additional exchanges we do one at most.
    if !T::ADDKE[1..].iter().all(|kind| optional(theirs, *kind)) {
        return None;
    }
    let method = first_offered(&ours.additional, theirs, |value: DhGroup| {
        Transform::new(T::ADDKE1, value.number())
    });
    match method.filter(|_| possible) {
        Some(method) => Some(Some(method)),
        None => {
            let without = !possible || ours.additional.is_empty() || ours.additional_optional;
            (without && optional(theirs, T::ADDKE1)).then_some(None)
        }
    }
}

fn match_ike(ours: &IkeProposal, theirs: &Proposal, additional: Additional) -> Option<IkeSuite> {
    use TransformType as T;
    let known = [&[T::ENCR, T::PRF, T::INTEG, T::KE][..], &T::ADDKE].concat();
    if !only_types(theirs, &known) {
        return None;
    }
    if additional == Additional::Unsupported && !ours.additional.is_empty() && !ours.additional_optional {
        return None;
    }
    let plain = |kind| move |id| Transform::new(kind, id);
    let cipher = first_offered(&ours.ciphers, theirs, cipher_transform)?;
    let integrity = if cipher.is_aead() {
        optional(theirs, T::INTEG).then_some(None)?
    } else {
        Some(first_offered(&ours.integrities, theirs, |value: Integrity| {
            plain(T::INTEG)(value.number())
        })?)
    };
    Some(IkeSuite {
        cipher,
        integrity,
        prf: first_offered(&ours.prfs, theirs, |value: Prf| plain(T::PRF)(value.number()))?,
        group: first_offered(&ours.groups, theirs, |value: DhGroup| {
            plain(T::KE)(value.number())
        })?,
        additional: match_additional(ours, theirs, additional == Additional::Possible)?,
    })
}

/// Whether an additional key exchange can follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Additional {
    /// Both sides do IKE_INTERMEDIATE, or IKE_FOLLOWUP_KE in a rekeying.
    Possible,
    /// The other side does not: a policy that insists on one fails.
    Unsupported,
}

/// A chosen IKE suite, where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChosenIke {
    pub(crate) suite: IkeSuite,
    pub(crate) number: u8,
    /// SPI the other side gave, 8 bytes in a rekey, none in IKE_SA_INIT.
    pub(crate) spi: Vec<u8>,
}

impl ChosenIke {
    /// The answer, with our own SPI.
    pub(crate) fn answer(&self, spi: &[u8]) -> Proposal {
        let suite = &self.suite;
        let mut transforms = vec![cipher_transform(suite.cipher)];
        transforms.extend(
            suite
                .integrity
                .map(|value| Transform::new(TransformType::INTEG, value.number())),
        );
        transforms.push(Transform::new(TransformType::PRF, suite.prf.number()));
        transforms.push(Transform::new(TransformType::KE, suite.group.number()));
        transforms.extend(
            suite
                .additional
                .map(|value| Transform::new(TransformType::ADDKE1, value.number())),
        );
        Proposal {
            number: self.number,
            protocol: Protocol::IKE,
            spi: spi.to_vec(),
            transforms,
        }
    }
}

/// Our most preferred suite that the other side accepts.
pub(crate) fn choose_first(
    ours: &[IkeProposal],
    theirs: &[Proposal],
    additional: Additional,
) -> Option<ChosenIke> {
    choose(ours, theirs, 0, additional)
}

/// As [`choose_first`], for a rekeyed IKE SA, whose SPIs have `spi_len` bytes.
pub(crate) fn choose_ike(ours: &[IkeProposal], theirs: &[Proposal], spi_len: usize) -> Option<ChosenIke> {
    choose(ours, theirs, spi_len, Additional::Possible)
}

fn choose(
    ours: &[IkeProposal],
    theirs: &[Proposal],
    spi_len: usize,
    additional: Additional,
) -> Option<ChosenIke> {
    ours.iter().find_map(|our| {
        let mut fitting = theirs
            .iter()
            .filter(|p| p.protocol == Protocol::IKE && p.spi.len() == spi_len);
        fitting.find_map(|their| {
            Some(ChosenIke {
                suite: match_ike(our, their, additional)?,
                number: their.number,
                spi: their.spi.clone(),
            })
        })
    })
}

/// One proposal, at most one transform of each type.
fn single(theirs: &[Proposal]) -> Option<&Proposal> {
    let [only] = theirs else { return None };
    let repeated = |transform: &Transform| only.of(transform.kind).count() > 1;
    (!only.transforms.iter().any(repeated)).then_some(only)
}

/// What the other side chose from our offer: one proposal, one transform of each type.
pub(crate) fn accept_first(
    ours: &[IkeProposal],
    theirs: &[Proposal],
    additional: Additional,
) -> Option<ChosenIke> {
    single(theirs)?;
    choose(ours, theirs, 0, additional)
}

/// As [`accept_first`], for a rekeyed IKE SA.
pub(crate) fn accept_ike(
    ours: &[IkeProposal],
    theirs: &[Proposal],
    spi_len: usize,
    additional: Additional,
) -> Option<ChosenIke> {
    single(theirs)?;
    choose(ours, theirs, spi_len, additional)
}

fn esp_cipher(suite: EspSuite) -> Transform {
    let cipher = suite.cipher();
    let bits = 8 * suite.cipher_key_len() as u16;
    Transform {
        key_bits: cipher.has_key_length().then_some(bits),
        ..Transform::new(TransformType::ENCR, cipher.transform_id())
    }
}

fn esp_integrity(suite: EspSuite) -> Option<Transform> {
    let integrity = suite.integrity()?;
    Some(Transform::new(TransformType::INTEG, integrity.transform_id()))
}

fn esp_transforms(suite: EspSuite) -> Vec<Transform> {
    let mut transforms = vec![esp_cipher(suite)];
    transforms.extend(esp_integrity(suite));
    transforms
}

/// One proposal per suite. With `esn`, 64-bit sequence numbers are preferred, and 32-bit ones offered too.
pub(crate) fn offer_esp(suites: &[EspSuite], esn: bool, spi: Spi) -> Vec<Proposal> {
    let offer = |(index, suite): (usize, &EspSuite)| {
        let mut transforms = esp_transforms(*suite);
        let numbers: &[u16] = if esn { &[ESN, NONE] } else { &[NONE] };
        transforms.extend(numbers.iter().map(|id| Transform::new(TransformType::ESN, *id)));
        Proposal {
            number: number(index),
            protocol: Protocol::ESP,
            spi: spi.0.to_be_bytes().to_vec(),
            transforms,
        }
    };
    suites.iter().take(255).enumerate().map(offer).collect()
}

/// A chosen ESP suite, where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChosenEsp {
    pub(crate) suite: EspSuite,
    pub(crate) esn: bool,
    /// Group of a key exchange in CREATE_CHILD_SA.
    pub(crate) group: Option<DhGroup>,
    /// Method of an additional key exchange after it.
    pub(crate) additional: Option<DhGroup>,
    pub(crate) number: u8,
    /// SPI of packets to the other side.
    pub(crate) spi: Spi,
}

impl ChosenEsp {
    /// The answer, with our own SPI.
    pub(crate) fn answer(&self, spi: Spi) -> Proposal {
        let mut transforms = esp_transforms(self.suite);
        transforms.extend(
            self.group
                .map(|group| Transform::new(TransformType::KE, group.number())),
        );
        transforms.push(Transform::new(TransformType::ESN, u16::from(self.esn)));
        transforms.extend(
            self.additional
                .map(|method| Transform::new(TransformType::ADDKE1, method.number())),
        );
        Proposal {
            number: self.number,
            protocol: Protocol::ESP,
            spi: spi.0.to_be_bytes().to_vec(),
            transforms,
        }
    }
}

/// The first of a type that we have.
fn known_group(theirs: &Proposal, kind: TransformType) -> Option<DhGroup> {
    theirs
        .of(kind)
        .find_map(|transform| DhGroup::from_number(transform.id).filter(|_| !transform.unknown_attribute))
}

/// The additional key exchange an ESP proposal asks for, which follows one in CREATE_CHILD_SA: `Some(None)` if none.
fn additional_esp(theirs: &Proposal, group: Option<DhGroup>) -> Option<Option<DhGroup>> {
    let (first, rest) = TransformType::ADDKE.split_first()?;
    if !rest.iter().all(|kind| optional(theirs, *kind)) {
        return None;
    }
    match known_group(theirs, *first).filter(|_| group.is_some()) {
        Some(method) => Some(Some(method)),
        None => optional(theirs, *first).then_some(None),
    }
}

fn match_esp(suite: EspSuite, theirs: &Proposal, esn_wanted: bool, esn_possible: bool) -> Option<ChosenEsp> {
    use TransformType as T;
    let known = [&[T::ENCR, T::INTEG, T::KE, T::ESN][..], &T::ADDKE].concat();
    if theirs.protocol != Protocol::ESP || !only_types(theirs, &known) {
        return None;
    }
    // SPIs below 256 are reserved (RFC 4303 §2.1).
    let spi = u32::from_be_bytes(theirs.spi.as_slice().try_into().ok()?);
    let integrity = match esp_integrity(suite) {
        Some(wanted) => offers(theirs, wanted),
        None => optional(theirs, T::INTEG),
    };
    if spi < 256 || !integrity || !offers(theirs, esp_cipher(suite)) {
        return None;
    }
    let short = optional(theirs, T::ESN);
    let long = esn_possible && offers(theirs, Transform::new(T::ESN, ESN));
    let group = if optional(theirs, T::KE) {
        None
    } else {
        Some(known_group(theirs, T::KE)?)
    };
    let additional = additional_esp(theirs, group)?;
    (short || long).then_some(ChosenEsp {
        suite,
        esn: long && (esn_wanted || !short),
        group,
        additional,
        number: theirs.number,
        spi: Spi(spi),
    })
}

/// Our most preferred suite that the other side accepts. 64-bit sequence numbers are taken where both sides want
/// them or the other side insists.
pub(crate) fn choose_esp(suites: &[EspSuite], esn: bool, theirs: &[Proposal]) -> Option<ChosenEsp> {
    suites.iter().find_map(|suite| {
        theirs
            .iter()
            .find_map(|their| match_esp(*suite, their, esn, true))
    })
}

/// What the other side chose from our offer.
pub(crate) fn accept_esp(suites: &[EspSuite], esn: bool, theirs: &[Proposal]) -> Option<ChosenEsp> {
    let only = single(theirs)?;
    suites.iter().find_map(|suite| match_esp(*suite, only, esn, esn))
}

/// The traffic both sides want protected, at most [`MAX_SELECTORS`] selectors; empty if there is none.
pub(crate) fn narrow(ours: &[TrafficSelector], theirs: &[TrafficSelector]) -> Vec<TrafficSelector> {
    let mut common: Vec<TrafficSelector> = Vec::new();
    let pairs = theirs
        .iter()
        .flat_map(|their| ours.iter().filter_map(|our| their.intersect(our)));
    for selector in pairs {
        let covered = common
            .iter()
            .any(|known| known.intersect(&selector) == Some(selector));
        if !covered && common.len() < MAX_SELECTORS {
            common.push(selector);
        }
    }
    common
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours() -> Vec<IkeProposal> {
        ["aes256gcm16-prfsha256-x25519", "aes256-sha256-modp2048"]
            .map(|text| text.parse().unwrap())
            .to_vec()
    }

    #[test]
    fn our_order_decides_between_proposals() {
        let mut theirs = offer_ike(&ours(), &[], true);
        theirs.reverse();
        let chosen = choose_ike(&ours(), &theirs, 0).unwrap();
        assert_eq!((chosen.suite.group, chosen.number), (DhGroup::X25519, 1));
        let answer = [chosen.answer(&[])];
        assert_eq!(
            accept_ike(&ours(), &answer, 0, Additional::Possible),
            Some(chosen)
        );
    }

    #[test]
    fn an_answer_with_two_transforms_of_a_type_is_refused() {
        let mut answer = choose_ike(&ours(), &offer_ike(&ours(), &[], true), 0)
            .unwrap()
            .answer(&[]);
        answer.transforms.push(Transform::new(TransformType::KE, 14));
        assert_eq!(accept_ike(&ours(), &[answer], 0, Additional::Possible), None);
    }

    #[test]
    fn unknown_transform_types_and_attributes_are_not_chosen() {
        let mut theirs = offer_ike(&ours()[..1], &[], true);
        theirs[0].transforms.push(Transform::new(TransformType(6), 36));
        assert_eq!(
            choose_ike(&ours(), &theirs, 0),
            None,
            "an exchange we do not want"
        );
        theirs[0]
            .transforms
            .push(Transform::new(TransformType::ADDKE1, NONE));
        assert!(choose_ike(&ours(), &theirs, 0).is_some(), "which need not be");
        theirs[0].transforms.push(Transform::new(TransformType(13), 1));
        assert_eq!(choose_ike(&ours(), &theirs, 0), None);
        let mut theirs = offer_ike(&ours()[..1], &[], true);
        theirs[0].transforms[0].unknown_attribute = true;
        assert_eq!(choose_ike(&ours(), &theirs, 0), None);
    }

    #[test]
    fn an_additional_exchange_is_chosen_where_both_can_and_demanded_where_it_is_not_optional() {
        let parse = |text: &str| vec![text.parse::<IkeProposal>().unwrap()];
        let plain = parse("aes256gcm16-prfsha256-x25519");
        let must = parse("aes256gcm16-prfsha256-x25519-ke1_mlkem768");
        let may = parse("aes256gcm16-prfsha256-x25519-ke1_mlkem768-ke1_none");
        let kem = Some(Some(DhGroup::MlKem768));
        for (ours, theirs, additional, expected) in [
            (&must, &must, Additional::Possible, kem),
            (&must, &may, Additional::Possible, kem),
            (&may, &must, Additional::Possible, kem),
            (&may, &may, Additional::Possible, kem),
            (&may, &plain, Additional::Possible, Some(None)),
            (&plain, &may, Additional::Possible, Some(None)),
            (&plain, &must, Additional::Possible, None),
            (&must, &plain, Additional::Possible, None),
            (&may, &may, Additional::Unsupported, Some(None)),
            (&must, &may, Additional::Unsupported, None),
            (&may, &must, Additional::Unsupported, None),
        ] {
            let offer = offer_ike(theirs, &[], true);
            let chosen = choose_first(ours, &offer, additional);
            assert_eq!(
                chosen.as_ref().map(|chosen| chosen.suite.additional),
                expected,
                "{ours:?} {theirs:?} {additional:?}"
            );
            if let Some(chosen) = chosen {
                let answer = [chosen.answer(&[])];
                assert_eq!(accept_first(theirs, &answer, additional), Some(chosen));
            }
        }
        // A rekeyed IKE SA has one again, unless there was none before.
        let both = [&must[..], &may].concat();
        for (additional, expected) in [(true, Some(DhGroup::MlKem768)), (false, None)] {
            let offer = offer_ike(&both, &[7; 8], additional);
            assert_eq!(offer.len(), if additional { 2 } else { 1 });
            assert_eq!(choose_ike(&may, &offer, 8).unwrap().suite.additional, expected);
        }
        assert_eq!(choose_ike(&must, &offer_ike(&may, &[7; 8], false), 8), None);
    }

    #[test]
    fn every_esp_suite_is_offered_and_found() {
        let offer = offer_esp(EspSuite::ALL, false, Spi(0x1000));
        for suite in EspSuite::ALL {
            let chosen = choose_esp(&[*suite], false, &offer).unwrap();
            assert_eq!(chosen.suite, *suite);
            let answer = [chosen.answer(Spi(0x1000))];
            assert_eq!(accept_esp(EspSuite::ALL, false, &answer).unwrap().suite, *suite);
            let others: Vec<_> = EspSuite::ALL
                .iter()
                .copied()
                .filter(|other| other != suite)
                .collect();
            assert_eq!(accept_esp(&others, false, &answer), None, "{suite}");
        }
    }

    #[test]
    fn esn_is_taken_where_both_want_it_or_the_other_insists() {
        let suites = [EspSuite::Aes256Gcm16];
        let offer = |esn| offer_esp(&suites, esn, Spi(0x1000));
        assert!(choose_esp(&suites, true, &offer(true)).unwrap().esn);
        assert!(!choose_esp(&suites, false, &offer(true)).unwrap().esn);
        assert!(!choose_esp(&suites, true, &offer(false)).unwrap().esn);
        let mut insisting = offer(true);
        insisting[0].transforms.pop();
        assert!(choose_esp(&suites, false, &insisting).unwrap().esn);
        assert_eq!(
            accept_esp(&suites, false, &insisting),
            None,
            "we did not offer it"
        );
    }

    #[test]
    fn reserved_spis_are_refused() {
        let offer = offer_esp(&[EspSuite::Aes128Gcm16], false, Spi(255));
        assert_eq!(choose_esp(&[EspSuite::Aes128Gcm16], false, &offer), None);
    }

    #[test]
    fn narrowing_keeps_the_common_part_once() {
        let any = |text: &str| TrafficSelector::any_of(text.parse().unwrap());
        let host = |text: &str| TrafficSelector::host(text.parse().unwrap());
        // strongSwan sends the triggering packet first, then the configured selector.
        let theirs = [host("10.0.0.1"), any("10.0.0.0/24"), any("2001:db8::/64")];
        assert_eq!(narrow(&[host("10.0.0.1")], &theirs), [host("10.0.0.1")]);
        assert_eq!(
            narrow(&[any("0.0.0.0/0")], &theirs),
            [host("10.0.0.1"), any("10.0.0.0/24")]
        );
        assert!(narrow(&[host("192.0.2.1")], &theirs).is_empty());
    }
}
