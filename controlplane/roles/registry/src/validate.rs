//! What a subscriber's record must satisfy before it is stored: each message names field, value, expectation.

use std::net::IpAddr;

use towpath_base::credentials::Credentials;
use towpath_base::profile::{Attachment, IkeId, PeerPolicy, Subscriber, SubscriberSecrets};
use towpath_base::sa::{Class, MAX_SELECTORS};
use towpath_base::selector::Prefix;
use towpath_crypto::{CertificateSigner, TrustVerifier};
use towpath_ike::IkeProposal;
use towpath_telemetry::admin::AdminError;

/// Most addresses of one subscriber.
pub const MAX_ADDRESSES: usize = 16;

/// Most peers of one subscriber.
pub const MAX_PEERS: usize = 64;

/// Most certificates a subscriber shows.
pub(crate) const MAX_CERTIFICATES: usize = 8;

/// Most authorities a subscriber trusts with one peer.
pub(crate) const MAX_AUTHORITIES: usize = 16;

/// Longest pre-shared key, bytes.
pub const MAX_PSK: usize = 1024;

type Checked = Result<(), AdminError>;

fn invalid(subscriber: &Subscriber, field: &str, problem: impl std::fmt::Display) -> AdminError {
    let name = subscriber.name.escape_debug();
    AdminError::invalid(format!("subscriber `{name}`: {field}: {problem}"))
}

/// Checks a record as it would be stored.
pub fn validate(subscriber: &Subscriber, secrets: &SubscriberSecrets) -> Checked {
    validate_subscriber(subscriber)?;
    if secrets.credentials.len() != subscriber.peers.len() {
        let (keys, peers) = (secrets.credentials.len(), subscriber.peers.len());
        return Err(invalid(
            subscriber,
            "psk",
            format!("{keys} for {peers} peers, expected one for each"),
        ));
    }
    for (index, given) in secrets.credentials.iter().enumerate() {
        credentials(given).map_err(|(field, problem)| {
            invalid(subscriber, &format!("{field} of peers[{index}]"), problem)
        })?;
    }
    Ok(())
}

/// What is wrong with the credentials for one peer: the field and the problem.
fn credentials(given: &Credentials) -> Result<(), (&'static str, String)> {
    if let Some(psk) = &given.psk {
        let length = psk.expose().len();
        if !(1..=MAX_PSK).contains(&length) {
            return Err(("psk", format!("{length} bytes, expected 1 to {MAX_PSK}")));
        }
    }
    if let Some(certificate) = &given.certificate {
        let count = certificate.chain.len();
        if count > MAX_CERTIFICATES {
            return Err((
                "certificate",
                format!("{count} certificates, expected at most {MAX_CERTIFICATES}"),
            ));
        }
        if let Err(error) = CertificateSigner::new(certificate) {
            return Err(("certificate", error.to_string()));
        }
    }
    if given.authorities.len() > MAX_AUTHORITIES {
        let count = given.authorities.len();
        return Err((
            "authorities",
            format!("{count}, expected at most {MAX_AUTHORITIES}"),
        ));
    }
    if let Err(error) = TrustVerifier::new(&given.authorities, &given.revocation_lists) {
        return Err(("authorities", error.to_string()));
    }
    if let Some(ppk) = &given.ppk {
        if !(1..=255).contains(&ppk.id.len()) {
            return Err(("ppk_id", format!("{} bytes, expected 1 to 255", ppk.id.len())));
        }
        let length = ppk.secret.expose().len();
        if !(32..=MAX_PSK).contains(&length) {
            return Err((
                "ppk",
                format!("{length} bytes, expected 32 to {MAX_PSK} (RFC 8784 §6)"),
            ));
        }
    }
    if !given.is_complete() {
        return Err((
            "psk",
            "is missing, expected a pre-shared key, or a certificate with its key and authorities".into(),
        ));
    }
    Ok(())
}

/// [`validate`] for what is not secret.
pub fn validate_subscriber(subscriber: &Subscriber) -> Checked {
    name("name", &subscriber.name)?;
    name("operator", &subscriber.operator)?;
    identification(subscriber)?;
    addresses(subscriber)?;
    if subscriber.peers.len() > MAX_PEERS {
        let count = subscriber.peers.len();
        return Err(invalid(
            subscriber,
            "peers",
            format!("{count}, expected at most {MAX_PEERS}"),
        ));
    }
    for (index, policy) in subscriber.peers.iter().enumerate() {
        peer(subscriber, index, policy)?;
    }
    profile(subscriber)
}

fn name(field: &str, value: &str) -> Checked {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._@+-".contains(c);
    if (1..=64).contains(&value.len()) && value.chars().all(allowed) && !value.starts_with('-') {
        return Ok(());
    }
    Err(AdminError::invalid(format!(
        "{field} `{}`: expected 1 to 64 letters, digits and `._@+-`, not starting with `-`",
        value.escape_debug()
    )))
}

fn identification(subscriber: &Subscriber) -> Checked {
    let identification = &subscriber.identification;
    if let Some(telephone) = &identification.telephone {
        let digits = telephone.strip_prefix('+').unwrap_or(telephone);
        if !(1..=15).contains(&digits.len()) || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
            let problem = format!(
                "`{}`, expected up to 15 digits (E.164), `+` in front allowed",
                telephone.escape_debug()
            );
            return Err(invalid(subscriber, "telephone", problem));
        }
    }
    for (field, value, limit) in [
        ("nai", &identification.nai, 253),
        ("aaa-entry", &identification.aaa_entry, 253),
    ] {
        let Some(value) = value else { continue };
        if !(1..=limit).contains(&value.len()) || value.chars().any(|c| c.is_control() || c.is_whitespace()) {
            let problem = format!(
                "`{}`, expected 1 to {limit} bytes without blanks",
                value.escape_debug()
            );
            return Err(invalid(subscriber, field, problem));
        }
    }
    if identification.telephone.is_none()
        && identification.nai.is_none()
        && identification.aaa_entry.is_none()
    {
        return Err(invalid(
            subscriber,
            "identification",
            "none, expected a telephone number, an NAI or a database entry",
        ));
    }
    Ok(())
}

fn addresses(subscriber: &Subscriber) -> Checked {
    let count = subscriber.addresses.len();
    if !(1..=MAX_ADDRESSES).contains(&count) {
        return Err(invalid(
            subscriber,
            "addresses",
            format!("{count}, expected 1 to {MAX_ADDRESSES}"),
        ));
    }
    for prefix in &subscriber.addresses {
        if prefix.bits() == 0 || !unicast(*prefix) {
            let problem = format!("`{prefix}`, expected unicast addresses a terminal can have");
            return Err(invalid(subscriber, "address", problem));
        }
    }
    Ok(())
}

fn unicast(prefix: Prefix) -> bool {
    [prefix.address(), prefix.last()].iter().all(|address| {
        let special = address.is_multicast() || address.is_loopback();
        let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
        !special && !(prefix.is_host() && (address.is_unspecified() || broadcast))
    })
}

fn peer(subscriber: &Subscriber, index: usize, policy: &PeerPolicy) -> Checked {
    let fail =
        |field: &str, problem: String| Err(invalid(subscriber, &format!("peers[{index}].{field}"), problem));
    let peer = policy.peer;
    if peer.bits() > 0 && !unicast(peer) {
        return fail("peer", format!("`{peer}`, expected unicast addresses"));
    }
    for (field, id) in [
        ("local_id", Some(&policy.local_id)),
        ("remote_id", policy.remote_id.as_ref()),
    ] {
        let length = match id {
            Some(IkeId::Fqdn(text) | IkeId::Rfc822(text)) => text.len(),
            Some(IkeId::KeyId(bytes) | IkeId::DistinguishedName(bytes)) => bytes.len(),
            Some(IkeId::Address(_)) | None => 1,
        };
        if !(1..=255).contains(&length) {
            return fail(field, format!("{length} bytes, expected 1 to 255"));
        }
    }
    if policy.ike_proposals.is_empty() {
        return fail("ike_proposals", "none, expected at least one".into());
    }
    if policy.esp_suites.is_empty() {
        return fail("esp_suites", "none, expected at least one".into());
    }
    for text in &policy.ike_proposals {
        if let Err(error) = text.parse::<IkeProposal>() {
            return fail("ike_proposals", format!("`{}`: {error}", text.escape_debug()));
        }
    }
    if policy.class == Class::Inspect {
        return fail(
            "class",
            "`inspect` is not implemented yet, expected `full` or `none`".into(),
        );
    }
    for (field, selectors) in [("local_ts", &policy.local_ts), ("remote_ts", &policy.remote_ts)] {
        if selectors.len() > MAX_SELECTORS {
            let count = selectors.len();
            return fail(
                field,
                format!("{count} selectors, expected at most {MAX_SELECTORS}"),
            );
        }
    }
    let lifetime = &policy.lifetime;
    let ordered = |soft: u64, hard: u64| hard == 0 || soft < hard;
    if !ordered(lifetime.soft_seconds.into(), lifetime.hard_seconds.into()) {
        let (soft, hard) = (lifetime.soft_seconds, lifetime.hard_seconds);
        return fail(
            "lifetime",
            format!("soft limit {soft} s, expected less than the hard limit {hard} s"),
        );
    }
    if !ordered(lifetime.soft_bytes, lifetime.hard_bytes) {
        let (soft, hard) = (lifetime.soft_bytes, lifetime.hard_bytes);
        return fail(
            "lifetime",
            format!("soft limit {soft} bytes, expected less than the hard limit {hard}"),
        );
    }
    Ok(())
}

/// The profile must fit the classifier's maps, wherever the terminal is.
fn profile(subscriber: &Subscriber) -> Checked {
    let profile = match subscriber.attachment {
        Attachment::Fixed => subscriber.profile.at(&subscriber.addresses),
        Attachment::Registered => subscriber.profile.clone(),
    };
    let sample: Vec<IpAddr> = subscriber.addresses.iter().map(Prefix::address).collect();
    match towpath_bpf::compile(subscriber.handle, &profile, &sample) {
        Ok(_) => Ok(()),
        Err(error) => Err(invalid(subscriber, "profile", error)),
    }
}

#[cfg(test)]
mod tests {
    use towpath_base::profile::{Condition, ConditionAddress, Psk};
    use towpath_base::sa::Lifetime;
    use towpath_store::contract::record;

    use super::*;

    fn refused(change: impl FnOnce(&mut Subscriber, &mut SubscriberSecrets)) -> String {
        let (mut subscriber, mut secrets) = record("default", "alice", Attachment::Registered, &["10.0.0.1"]);
        validate(&subscriber, &secrets).unwrap();
        change(&mut subscriber, &mut secrets);
        validate(&subscriber, &secrets).unwrap_err().message
    }

    #[test]
    fn each_refusal_names_field_value_and_expectation() {
        let terminal = |port| Condition {
            address: ConditionAddress::Terminal,
            peer: None,
            port,
        };
        for (message, expected) in [
            (
                refused(|s, _| s.name = "a b".into()),
                "name `a b`: expected 1 to 64 letters",
            ),
            (
                refused(|s, _| s.operator.clear()),
                "operator ``: expected 1 to 64",
            ),
            (
                refused(|s, _| s.addresses.clear()),
                "addresses: 0, expected 1 to 16",
            ),
            (
                refused(|s, _| s.addresses[0] = "224.0.0.1".parse().unwrap()),
                "address: `224.0.0.1`, expected unicast",
            ),
            (
                refused(|s, _| s.addresses[0] = "::/0".parse().unwrap()),
                "address: `::/0`, expected unicast",
            ),
            (
                refused(|s, _| s.identification.telephone = Some("12-34".into())),
                "telephone: `12-34`, expected up to 15 digits",
            ),
            (
                refused(|s, _| s.identification.nai = None),
                "identification: none, expected",
            ),
            (
                refused(|_, k| k.credentials.clear()),
                "psk: 0 for 1 peers, expected one for each",
            ),
            (
                refused(|_, k| k.credentials[0].psk = Some(Psk::new(Vec::new()))),
                "psk of peers[0]: 0 bytes, expected 1 to 1024",
            ),
            (
                refused(|s, _| s.peers[0].class = Class::Inspect),
                "peers[0].class: `inspect` is not implemented",
            ),
            (
                refused(|s, _| s.peers[0].ike_proposals = vec!["des".into()]),
                "peers[0].ike_proposals: `des`: ",
            ),
            (
                refused(|s, _| {
                    s.peers[0].lifetime = Lifetime {
                        soft_seconds: 9,
                        hard_seconds: 8,
                        ..Lifetime::default()
                    };
                }),
                "soft limit 9 s, expected less than the hard limit 8 s",
            ),
            (
                refused(|s, _| s.profile.to_terminal = (1..=5).map(terminal).collect()),
                "profile: more than 4 different ports",
            ),
        ] {
            assert!(message.contains(expected), "{message}\n{expected}");
        }
    }
}
