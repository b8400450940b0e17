//! Tables of the database and how their records are written.

use std::net::IpAddr;

use redb::TableDefinition;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use towpath_base::credentials::Credentials;
use towpath_base::profile::{
    Attachment, Identification, IkeId, PeerPolicy, Psk, ServiceProfile, Subscriber, SubscriberSecrets,
};
use towpath_base::sa::{Class, EspSuite, Lifetime, Mode};
use towpath_base::selector::{Prefix, TrafficSelector};
use towpath_base::{SecretKey, SubscriberHandle};
use zeroize::Zeroizing;

use crate::{Result, StoreError};

/// Layout of the tables below. A change that older programs would misread counts it up.
pub(crate) const SCHEMA: u64 = 1;

/// Numbers of the store itself, by name.
pub(crate) const NUMBERS: TableDefinition<'_, &str, u64> = TableDefinition::new("numbers");
/// Key of [`NUMBERS`]: [`SCHEMA`].
pub(crate) const SCHEMA_KEY: &str = "schema";
/// Key of [`NUMBERS`]: the handle of the next subscriber.
pub(crate) const NEXT_HANDLE_KEY: &str = "next_handle";
/// Key of [`NUMBERS`]: starts of the network.
pub(crate) const EPOCH_KEY: &str = "epoch";

/// A known text sealed under the key-encryption key, to tell a wrong key at once.
pub(crate) const KEY_CHECK: TableDefinition<'_, (), &[u8]> = TableDefinition::new("key_check");

/// Handle → [`Subscriber`].
pub(crate) const SUBSCRIBERS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("subscribers");

/// (operator, name) → handle.
pub(crate) const NAMES: TableDefinition<'_, (&str, &str), u64> = TableDefinition::new("names");

/// Handle → sealed secrets.
pub(crate) const SECRETS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("secrets");

/// Prefix (see [`prefix_key`]) → handle, of subscribers with a fixed attachment. No two overlap.
pub(crate) const FIXED: TableDefinition<'_, &[u8], u64> = TableDefinition::new("fixed");

/// Handle → counter of the last registration accepted.
pub(crate) const COUNTERS: TableDefinition<'_, u64, u64> = TableDefinition::new("counters");

/// Handle → [`crate::Location`].
pub(crate) const LOCATIONS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("locations");

/// Version of the encoding of records, their first byte.
const ENCODING: u8 = 1;

/// The same for subscribers: 1 knew no sensitivity levels.
const SUBSCRIBER_ENCODING: u8 = 2;

/// The same for secrets: 1 held a pre-shared key for each peer, 2 holds credentials of every kind.
const SECRETS_ENCODING: u8 = 2;

/// A record as bytes: version, then postcard.
pub(crate) fn encode<T: Serialize>(record: &T) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(vec![ENCODING]);
    // Serialising into a growing vector fails only for types that refuse to serialise; ours do not.
    let body = Zeroizing::new(postcard::to_allocvec(record).unwrap_or_default());
    bytes.extend_from_slice(&body);
    bytes
}

/// [`encode`] for secrets.
pub(crate) fn encode_secrets(secrets: &SubscriberSecrets) -> Zeroizing<Vec<u8>> {
    let mut bytes = encode(secrets);
    if let Some(version) = bytes.first_mut() {
        *version = SECRETS_ENCODING;
    }
    bytes
}

/// [`encode`] for subscribers.
pub(crate) fn encode_subscriber(subscriber: &Subscriber) -> Zeroizing<Vec<u8>> {
    let mut bytes = encode(subscriber);
    if let Some(version) = bytes.first_mut() {
        *version = SUBSCRIBER_ENCODING;
    }
    bytes
}

/// A subscriber as it was stored before there were levels: everything before its peers, and these.
#[derive(Deserialize)]
struct UnleveledSubscriber(
    SubscriberHandle,
    String,
    String,
    Identification,
    Vec<Prefix>,
    Attachment,
    ServiceProfile,
    Vec<UnleveledPolicy>,
);

#[derive(Deserialize)]
struct UnleveledPolicy(
    Prefix,
    IkeId,
    Option<IkeId>,
    Vec<String>,
    Vec<EspSuite>,
    bool,
    Mode,
    Class,
    Vec<TrafficSelector>,
    Vec<TrafficSelector>,
    Lifetime,
);

impl From<UnleveledPolicy> for PeerPolicy {
    fn from(policy: UnleveledPolicy) -> Self {
        Self {
            peer: policy.0,
            local_id: policy.1,
            remote_id: policy.2,
            ike_proposals: policy.3,
            esp_suites: policy.4,
            esn: policy.5,
            mode: policy.6,
            class: policy.7,
            local_ts: policy.8,
            remote_ts: policy.9,
            lifetime: policy.10,
            level: 0,
        }
    }
}

/// [`decode`] for subscribers, of either encoding.
pub(crate) fn decode_subscriber(handle: SubscriberHandle, bytes: &[u8]) -> Result<Subscriber> {
    let Some((&SUBSCRIBER_ENCODING, body)) = bytes.split_first() else {
        let before: UnleveledSubscriber = decode(handle, bytes)?;
        return Ok(Subscriber {
            handle: before.0,
            name: before.1,
            operator: before.2,
            identification: before.3,
            addresses: before.4,
            attachment: before.5,
            profile: before.6,
            peers: before.7.into_iter().map(PeerPolicy::from).collect(),
        });
    };
    match postcard::take_from_bytes(body) {
        Ok((subscriber, [])) => Ok(subscriber),
        _ => Err(StoreError::Damaged(handle)),
    }
}

/// Secrets as they were stored before there were certificates.
#[derive(Deserialize)]
struct PskSecrets {
    ksub: SecretKey<32>,
    psks: Vec<Psk>,
}

/// [`decode`] for secrets, of either encoding.
pub(crate) fn decode_secrets(handle: SubscriberHandle, bytes: &[u8]) -> Result<SubscriberSecrets> {
    let Some((&SECRETS_ENCODING, body)) = bytes.split_first() else {
        let PskSecrets { ksub, psks } = decode(handle, bytes)?;
        let credentials = psks.into_iter().map(Credentials::psk).collect();
        return Ok(SubscriberSecrets { ksub, credentials });
    };
    match postcard::take_from_bytes(body) {
        Ok((secrets, [])) => Ok(secrets),
        _ => Err(StoreError::Damaged(handle)),
    }
}

/// The record of `handle` from its bytes.
pub(crate) fn decode<T: DeserializeOwned>(handle: SubscriberHandle, bytes: &[u8]) -> Result<T> {
    let damaged = StoreError::Damaged(handle);
    let Some((&ENCODING, body)) = bytes.split_first() else {
        return Err(damaged);
    };
    match postcard::take_from_bytes(body) {
        Ok((record, [])) => Ok(record),
        _ => Err(damaged),
    }
}

/// What a subscriber's secrets are bound to: operator, name and handle, each with its length in front.
pub(crate) fn place(subscriber: &Subscriber) -> Vec<u8> {
    let mut place = b"towpath secrets 1".to_vec();
    for part in [&subscriber.operator, &subscriber.name] {
        place.extend_from_slice(&u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        place.extend_from_slice(part.as_bytes());
    }
    place.extend_from_slice(&subscriber.handle.0.to_be_bytes());
    place
}

/// Length of [`prefix_key`].
pub(crate) const PREFIX_KEY_LEN: usize = 18;

/// Orders prefixes by family, first address and length: family (4 or 6), address in 16 bytes, length.
pub(crate) fn prefix_key(prefix: Prefix) -> [u8; PREFIX_KEY_LEN] {
    let mut key = address_key(prefix.address());
    if let Some(last) = key.last_mut() {
        *last = prefix.bits();
    }
    key
}

/// The lowest key of a prefix that starts at `address`.
pub(crate) fn address_key(address: IpAddr) -> [u8; PREFIX_KEY_LEN] {
    let mut key = [0; PREFIX_KEY_LEN];
    let (family, bits) = match address {
        IpAddr::V4(v4) => (4, u128::from(v4.to_bits()) << 96),
        IpAddr::V6(v6) => (6, v6.to_bits()),
    };
    let [first, middle @ .., _] = &mut key;
    *first = family;
    middle.copy_from_slice(&bits.to_be_bytes());
    key
}

/// The prefix of a key.
pub(crate) fn key_prefix(key: &[u8]) -> Option<Prefix> {
    let [family, middle @ .., bits] = key else {
        return None;
    };
    let address = u128::from_be_bytes(middle.try_into().ok()?);
    let address = match family {
        4 => IpAddr::from(u32::try_from(address >> 96).ok()?.to_be_bytes()),
        _ => IpAddr::from(address.to_be_bytes()),
    };
    Prefix::new(address, *bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_stored_before_certificates_are_read() {
        let handle = SubscriberHandle(1);
        let ksub = [7u8; 32];
        let before = encode(&(
            SecretKey::new(ksub),
            vec![Psk::new(vec![1]), Psk::new(vec![0, 1])],
        ));
        let read = decode_secrets(handle, &before).unwrap();
        assert_eq!(read.ksub.expose(), &ksub);
        let psks = [vec![1], vec![0, 1]].map(|psk| Credentials::psk(Psk::new(psk)));
        assert_eq!(read.credentials, psks);
        let again = decode_secrets(handle, &encode_secrets(&read)).unwrap();
        assert_eq!(again.credentials, read.credentials);
        let mut other = encode_secrets(&read);
        other[0] = 3;
        assert!(decode_secrets(handle, &other).is_err());
    }

    #[test]
    fn subscribers_stored_before_levels_are_read() {
        let (mut subscriber, _) = crate::contract::record("north", "alice", Attachment::Fixed, &["10.0.0.1"]);
        subscriber.peers[0].level = 3;
        let bytes = encode_subscriber(&subscriber);
        assert_eq!(decode_subscriber(subscriber.handle, &bytes).unwrap(), subscriber);
        // The level is the last byte of the last peer, and that the last of the record.
        assert_eq!(bytes.last(), subscriber.peers.last().map(|peer| &peer.level));
        let mut before = bytes[..bytes.len() - 1].to_vec();
        before[0] = ENCODING;
        let read = decode_subscriber(subscriber.handle, &before).unwrap();
        let mut expected = subscriber;
        expected.peers[0].level = 0;
        assert_eq!(read, expected);
        before[0] = 3;
        assert!(decode_subscriber(read.handle, &before).is_err());
    }

    #[test]
    fn prefixes_are_read_back_and_ordered_by_address() {
        let prefixes = ["10.0.0.0/8", "10.0.0.1", "192.0.2.0/24", "::/0", "2001:db8::/32"];
        let keys: Vec<_> = prefixes.map(|text| prefix_key(text.parse().unwrap())).to_vec();
        assert!(keys.is_sorted());
        for (key, text) in keys.iter().zip(prefixes) {
            assert_eq!(key_prefix(key).unwrap().to_string(), text);
        }
    }
}
