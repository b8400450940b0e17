//! SAs and policies that people brought (scheme 1 of spec row T9): kept in the store, given to the workers.
//!
//! ```text
//!   command ─► check ─► store ─► worker            add; after a restart the middle step is there already
//!   worker ─► "numbers run out" ─► store ─► worker  a block further, never the other way round
//! ```
//!
//! **Architecture invariant:** a key that outlives the process sends only numbers whose mark is on disk
//! (`towpath_ipsec::highwater`). The mark belongs to the key, not to the SA: it survives removal, so the same key
//! brought again continues above it.

use std::collections::BTreeMap;
use std::fmt;

use towpath_base::manual::{AhForm, AhKeys, ManualKeys, ManualSa, Protection, Segments};
use towpath_base::policy::{IpsecProtocol, Policy, PolicyAction};
use towpath_base::sa::{Class, EspSuite};
use towpath_base::{Key, Spi, SubscriberHandle};
use towpath_fabric::{AhSegments, GatewayKeys, GatewaySa, InspectKeys};
use towpath_ipsec::highwater::BLOCK;
use towpath_ipsec::sad::{AhParameters, AtLimit, EspParameters, IvRule, Overflow, Sad, SadEntry, SadError};
use towpath_ipsec::shared::{SharedStart, Wanted};
use towpath_ipsec::spd::{Spd, SpdError};
use towpath_store::{KeyPrint, Ledger, Mark, Shelf, StoreError};

use crate::datapath::{SaKey, StoredStart};
use crate::windows::Windows;

/// Most manual SAs.
pub const MAX_SAS: usize = 100_000;
/// Most policies.
pub const MAX_POLICIES: usize = 100_000;
/// Decisions a worker remembers.
const DECISIONS: usize = 4096;

/// Why a command was refused or failed; nothing was changed.
#[derive(Debug)]
pub enum StoredError {
    /// The command makes no sense: one sentence.
    Invalid(String),
    /// What it names is not there.
    NotFound(String),
    /// What it would make collides with something.
    Conflict(String),
    /// The store failed.
    Store(StoreError),
    /// The file of replay windows failed.
    Windows(std::io::Error),
}

impl fmt::Display for StoredError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid(text) | Self::NotFound(text) | Self::Conflict(text) => f.write_str(text),
            Self::Store(error) => error.fmt(f),
            Self::Windows(error) => write!(f, "replay windows: {error}"),
        }
    }
}

impl std::error::Error for StoredError {}

impl From<StoreError> for StoredError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// What a worker is to be given: an SA and where its senders start.
#[derive(Debug)]
pub struct Installation {
    /// The SA.
    pub sa: GatewaySa,
    /// What is stored of its sending keys.
    pub start: StoredStart,
}

struct Known {
    sa: ManualSa,
    subscriber: SubscriberHandle,
    /// Prints of the keys the gateway sends with: to the peer, to the terminal.
    prints: Option<[KeyPrint; 2]>,
}

impl Known {
    fn key(&self) -> SaKey {
        key_of(&self.sa)
    }
}

/// Every manual SA and every policy of this gateway.
pub struct Stored {
    ledger: Box<dyn Ledger>,
    sas: BTreeMap<u64, Known>,
    sad: Sad,
    spd: Spd,
    /// What the SAs have used up.
    windows: Option<Windows>,
    /// Numbers start over: only to show that this is found.
    #[cfg(debug_assertions)]
    start_over: bool,
}

impl Stored {
    /// What `ledger` holds. `handle` finds a subscriber by operator and name; SAs of one that is gone stay stored
    /// and are not served. `seed` is random.
    ///
    /// # Errors
    /// The store failed or a record in it is damaged.
    pub fn open(
        ledger: Box<dyn Ledger>,
        seed: u64,
        handle: impl Fn(&str, &str) -> Option<SubscriberHandle>,
    ) -> Result<Self, StoredError> {
        let mut stored = Self {
            sas: BTreeMap::new(),
            sad: Sad::new(2 * MAX_SAS),
            spd: Spd::new(MAX_POLICIES, DECISIONS, seed),
            ledger,
            windows: None,
            #[cfg(debug_assertions)]
            start_over: false,
        };
        for (number, record) in stored.ledger.records(Shelf::ManualSas)? {
            let sa: ManualSa = read(Shelf::ManualSas, number, &record)?;
            let subscriber = handle(&sa.operator, &sa.subscriber).unwrap_or(SubscriberHandle(0));
            stored.know(sa, subscriber)?;
        }
        for (number, record) in stored.ledger.records(Shelf::Policies)? {
            let policy: Policy = read(Shelf::Policies, number, &record)?;
            stored.spd.insert(policy).map_err(refused_policy)?;
        }
        Ok(stored)
    }

    /// With replay windows and limits that survive the process, too. Call it before [`Stored::installations`].
    #[must_use]
    pub fn with_windows(mut self, windows: Windows) -> Self {
        self.windows = Some(windows);
        self
    }

    /// What the worker kept of windows and limits, onto the disk. About once a second.
    ///
    /// # Errors
    /// The file system's.
    pub fn sync(&self) -> std::io::Result<()> {
        self.windows.as_ref().map_or(Ok(()), Windows::sync)
    }

    /// What the workers are to be given after a start, blocks reserved.
    ///
    /// # Errors
    /// The store failed.
    pub fn installations(&self) -> Result<Vec<Installation>, StoredError> {
        let served = self.sas.values().filter(|known| known.subscriber.0 != 0);
        served.map(|known| self.installation(known)).collect()
    }

    /// The SAs.
    pub fn sas(&self) -> impl Iterator<Item = (&ManualSa, SubscriberHandle)> {
        self.sas.values().map(|known| (&known.sa, known.subscriber))
    }

    /// The SA with this name.
    pub fn find(&self, name: &str) -> Option<&ManualSa> {
        self.sas
            .values()
            .map(|known| &known.sa)
            .find(|sa| sa.name == name)
    }

    /// The database of SAs, one entry per direction.
    pub const fn sad(&self) -> &Sad {
        &self.sad
    }

    /// The policies.
    pub const fn spd(&self) -> &Spd {
        &self.spd
    }

    /// Adds an SA: checked, stored, then to be installed.
    ///
    /// # Errors
    /// Why not.
    pub fn add(
        &mut self,
        mut sa: ManualSa,
        subscriber: SubscriberHandle,
    ) -> Result<Installation, StoredError> {
        sa.check()
            .map_err(|error| StoredError::Invalid(error.to_string()))?;
        if self.find(&sa.name).is_some() {
            let text = format!("name: an SA `{}` exists; remove it first", sa.name.escape_debug());
            return Err(StoredError::Conflict(text));
        }
        if let Some(other) = self.sas.values().find(|known| known.sa.shares_a_key_with(&sa)) {
            let text = format!(
                "keys: SA `{}` uses one of them; two senders under one key would repeat nonces",
                other.sa.name.escape_debug()
            );
            return Err(StoredError::Conflict(text));
        }
        sa.id = self.ledger.take_number(Shelf::ManualSas)?;
        let (id, record) = (sa.id, write(&sa));
        self.know(sa, subscriber)?;
        let outcome = self
            .ledger
            .put(Shelf::ManualSas, id, &record)
            .map_err(StoredError::from)
            .and_then(|()| match self.sas.get(&id) {
                Some(known) => self.installation(known),
                None => Err(StoredError::NotFound("the SA is gone".into())),
            });
        if outcome.is_err() {
            self.forget(id);
        }
        outcome
    }

    /// Removes the SA with this name. The marks of its keys stay.
    ///
    /// # Errors
    /// Why not.
    pub fn remove(&mut self, name: &str) -> Result<SaKey, StoredError> {
        let sa = self.find(name).ok_or_else(|| no_sa(name))?;
        let (id, key) = (sa.id, key_of(sa));
        if let Some(policy) = self.spd.iter().find(|policy| names(policy).contains(&id)) {
            let text = format!("policy {} names SA {id}; remove the policy first", policy.id);
            return Err(StoredError::Conflict(text));
        }
        self.ledger.take(Shelf::ManualSas, id)?;
        self.forget(id);
        Ok(key)
    }

    /// Adds a policy; its number is given here.
    ///
    /// # Errors
    /// Why not.
    pub fn add_policy(&mut self, mut policy: Policy) -> Result<Policy, StoredError> {
        if let Some(unknown) = names(&policy).iter().find(|id| !self.sas.contains_key(id)) {
            return Err(StoredError::NotFound(format!(
                "sa: there is no manual SA {unknown}"
            )));
        }
        if policy.name.len() > 64 || policy.name.contains(char::is_control) {
            let text = "name: expected at most 64 characters, no control characters";
            return Err(StoredError::Invalid(text.into()));
        }
        let number = self.ledger.take_number(Shelf::Policies)?;
        policy.id =
            u32::try_from(number).map_err(|_| StoredError::Invalid("policy numbers ran out".into()))?;
        self.spd.insert(policy.clone()).map_err(refused_policy)?;
        if let Err(error) = self.ledger.put(Shelf::Policies, number, &write(&policy)) {
            self.spd.remove(policy.id);
            return Err(error.into());
        }
        Ok(policy)
    }

    /// Removes a policy.
    ///
    /// # Errors
    /// Why not.
    pub fn remove_policy(&mut self, id: u32) -> Result<Policy, StoredError> {
        if self.spd.get(id).is_none() {
            return Err(StoredError::NotFound(format!("there is no policy {id}")));
        }
        self.ledger.take(Shelf::Policies, id.into())?;
        let removed = self.spd.remove(id);
        removed.ok_or_else(|| StoredError::NotFound(format!("there is no policy {id}")))
    }

    /// A worker's sender wants numbers: stored first. What is returned is to be granted.
    ///
    /// # Errors
    /// The store failed: the sender goes on as far as it may and then drops.
    pub fn reserve(
        &mut self,
        key: &SaKey,
        to_peer: bool,
        wanted: Wanted,
    ) -> Result<Option<Wanted>, StoredError> {
        let Some(print) = self.print_of(key, to_peer) else {
            return Ok(None);
        };
        let mark = self.ledger.raise(
            &print,
            Mark {
                limit: wanted.limit,
                top: wanted.top,
                degraded: false,
            },
        )?;
        // Another half was proven before, or the rule was broken: nothing is granted under this key.
        let granted = !mark.degraded && (mark.top == wanted.top || wanted.top.is_none());
        Ok(granted.then_some(wanted))
    }

    /// The other sender under a shared key broke the rule.
    ///
    /// # Errors
    /// The store failed.
    pub fn degraded(&mut self, key: &SaKey, to_peer: bool) -> Result<(), StoredError> {
        if let Some(print) = self.print_of(key, to_peer) {
            let mark = Mark {
                degraded: true,
                ..Mark::default()
            };
            self.ledger.raise(&print, mark)?;
        }
        Ok(())
    }

    fn print_of(&self, key: &SaKey, to_peer: bool) -> Option<KeyPrint> {
        let known = self.sas.values().find(|known| known.key() == *key)?;
        let [peer, terminal] = known.prints?;
        Some(if to_peer { peer } else { terminal })
    }

    fn know(&mut self, sa: ManualSa, subscriber: SubscriberHandle) -> Result<(), StoredError> {
        let [one, other] = entries(&sa);
        self.sad.insert(one).map_err(refused_sa)?;
        if let Err(error) = self.sad.insert(other) {
            self.sad.remove(one.id);
            return Err(refused_sa(error));
        }
        let prints = sa
            .gateway_senders()
            .map(|keys| keys.map(|key| self.ledger.print(key)));
        self.sas.insert(
            sa.id,
            Known {
                sa,
                subscriber,
                prints,
            },
        );
        Ok(())
    }

    fn forget(&mut self, id: u64) {
        self.sas.remove(&id);
        for number in direction_ids(id) {
            self.sad.remove(number);
        }
    }

    /// The SA with blocks reserved where its senders may begin at once.
    fn installation(&self, known: &Known) -> Result<Installation, StoredError> {
        let sa = &known.sa;
        let keys = given(sa);
        let proof_needed = sa.protection.needs_proof();
        let (used, age) = match &self.windows {
            Some(windows) => windows.resume(sa.id).map_err(StoredError::Windows)?,
            None => Default::default(),
        };
        let start = match known.prints {
            None => StoredStart::default(),
            Some([peer, terminal]) => StoredStart {
                to_peer: self.start(&peer, proof_needed)?,
                to_terminal: self.start(&terminal, proof_needed)?,
                replay_window: Some(sa.replay_window),
                number: sa.id,
                used,
                age,
            },
        };
        Ok(Installation {
            sa: GatewaySa {
                subscriber: known.subscriber,
                keys,
                local: sa.terminal,
                remote: sa.peer,
                spi_in: sa.spi_in,
                spi_out: sa.spi_out,
                level: None,
            },
            start,
        })
    }

    /// From now on what is stored of sequence numbers is not believed: nonces will be used twice. It exists to show that a
    /// test would notice, and not in release builds.
    #[cfg(debug_assertions)]
    pub const fn danger_start_over(&mut self) {
        self.start_over = true;
    }

    /// Jumps over everything a former process may have sent, and reserves the first block.
    fn start(&self, print: &KeyPrint, proof_needed: bool) -> Result<SharedStart, StoredError> {
        let mark = self.ledger.mark(print)?;
        let may_begin = !mark.degraded && (!proof_needed || mark.top.is_some());
        let limit = if may_begin {
            let next = Mark {
                limit: mark.limit.saturating_add(BLOCK),
                ..mark
            };
            self.ledger.raise(print, next)?.limit
        } else {
            mark.limit
        };
        #[cfg(debug_assertions)]
        let mark = Mark {
            limit: if self.start_over { 0 } else { mark.limit },
            ..mark
        };
        Ok(SharedStart {
            stored: mark.limit,
            limit,
            top: mark.top,
            degraded: mark.degraded,
        })
    }
}

fn key_of(sa: &ManualSa) -> SaKey {
    SaKey {
        local: sa.terminal,
        remote: sa.peer,
        spi_in: sa.spi_in,
        spi_out: sa.spi_out,
    }
}

fn names(policy: &Policy) -> &[u64] {
    match &policy.action {
        PolicyAction::Protect { sas, .. } => sas,
        PolicyAction::Bypass | PolicyAction::Discard => &[],
    }
}

/// Numbers of the two entries of a pair in the SAD: towards the terminal, towards the peer.
const fn direction_ids(id: u64) -> [u64; 2] {
    [2 * id, 2 * id + 1]
}

/// What the gateway is given: no key beyond the class.
fn given(sa: &ManualSa) -> GatewayKeys {
    match &sa.protection {
        Protection::Esp { suite, keys } => given_esp(sa, *suite, keys),
        Protection::Ah { form, keys } => match keys {
            AhKeys::None => GatewayKeys::None,
            AhKeys::Segments(keys) => GatewayKeys::Ah(ah_segments(sa, *form, keys)),
            AhKeys::Shared { key_in, key_out } => GatewayKeys::AhShared {
                sa: sa.ah(*form, key_in, key_out),
            },
        },
        Protection::EspInAh {
            suite,
            keys,
            form,
            ah,
            ..
        } => GatewayKeys::EspInAh {
            peer: sa.child(*suite, &keys.peer_in, &keys.peer_out),
            segment_in: keys.segment_in.clone(),
            segment_out: keys.segment_out.clone(),
            ah: ah_segments(sa, *form, ah),
        },
    }
}

fn given_esp(sa: &ManualSa, suite: EspSuite, keys: &ManualKeys) -> GatewayKeys {
    match keys {
        ManualKeys::None => GatewayKeys::None,
        ManualKeys::Segments {
            peer_in,
            peer_out,
            segment_in,
            segment_out,
        } => GatewayKeys::Full {
            peer: sa.child(suite, peer_in, peer_out),
            segment_in: segment_in.clone(),
            segment_out: segment_out.clone(),
        },
        ManualKeys::Shared { keys_in, keys_out } => GatewayKeys::Shared {
            sa: sa.child(suite, keys_in, keys_out),
        },
        ManualKeys::Inspect {
            cipher_in,
            cipher_out,
        } => GatewayKeys::Inspect(InspectKeys {
            suite,
            mode: sa.mode,
            cipher_in: cipher_in.clone(),
            cipher_out: cipher_out.clone(),
        }),
    }
}

fn ah_segments(sa: &ManualSa, form: AhForm, keys: &Segments<Key>) -> AhSegments {
    AhSegments {
        peer: sa.ah(form, &keys.peer_in, &keys.peer_out),
        segment_in: keys.segment_in.clone(),
        segment_out: keys.segment_out.clone(),
    }
}

fn iv_rule(suite: EspSuite, shared: bool) -> IvRule {
    match (suite.is_counter_mode(), shared) {
        (true, true) => IvRule::CounterInHalf,
        (true, false) => IvRule::Counter,
        (false, _) if suite.iv_len() == 0 => IvRule::None,
        (false, _) => IvRule::Random,
    }
}

fn entries(sa: &ManualSa) -> [SadEntry; 2] {
    let (protection, lifetime) = (&sa.protection, sa.lifetime);
    let esp = protection.suite().map(|suite| EspParameters {
        suite,
        iv: iv_rule(suite, protection.is_shared()),
        lifetime,
    });
    let ah = protection.ah().map(|form| AhParameters {
        hmac_bits: form.integrity.key_len() as u16 * 8,
        lifetime,
    });
    let full = protection.class() == Class::Full;
    let entry = |id, spi: Spi, destination| SadEntry {
        id,
        spi,
        destination,
        protocol: match (esp, ah) {
            (Some(_), Some(_)) => IpsecProtocol::EspAh,
            (None, Some(_)) => IpsecProtocol::Ah,
            (_, None) => IpsecProtocol::Esp,
        },
        sequence: 0,
        overflow: Overflow::Stop,
        window: if full { sa.replay_window } else { 0 },
        esn: sa.esn,
        ah,
        esp,
        lifetime,
        at_limit: AtLimit::Delete,
        mode: sa.mode,
        path_mtu: None,
    };
    let [inward, outward] = direction_ids(sa.id);
    [
        entry(inward, sa.spi_in, sa.terminal),
        entry(outward, sa.spi_out, sa.peer),
    ]
}

fn no_sa(name: &str) -> StoredError {
    StoredError::NotFound(format!(
        "no manual SA `{}`; `towpath sa list --manual` shows those there are",
        name.escape_debug()
    ))
}

fn refused_sa(error: SadError) -> StoredError {
    match error {
        SadError::Exists => StoredError::Conflict(
            "spi: an SA with this SPI and destination exists; choose another SPI".into(),
        ),
        error => StoredError::Invalid(error.to_string()),
    }
}

fn refused_policy(error: SpdError) -> StoredError {
    StoredError::Invalid(error.to_string())
}

fn write<T: serde::Serialize>(record: &T) -> zeroize::Zeroizing<Vec<u8>> {
    zeroize::Zeroizing::new(towpath_fabric::encode(record))
}

fn read<T: serde::de::DeserializeOwned>(shelf: Shelf, number: u64, bytes: &[u8]) -> Result<T, StoredError> {
    towpath_fabric::decode(bytes).map_err(|_| {
        StoredError::Store(StoreError::DamagedRecord {
            shelf: match shelf {
                Shelf::ManualSas => "manual_sas",
                Shelf::Policies => "policies",
            },
            number,
        })
    })
}

#[cfg(test)]
mod tests;
