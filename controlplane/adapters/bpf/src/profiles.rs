//! Compiled conditions in the pinned maps, written with or without a running daemon.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use aya::maps::lpm_trie::Key;
use aya::maps::{Array, HashMap, LpmTrie, MapData, MapError};
use towpath_base::selector::Prefix;
use towpath_common::abi::{
    ABI_VERSION, Address, GLOBAL_GATEWAY, GLOBAL_PREFIXES4, GLOBAL_PREFIXES6, GLOBAL_TCP, GatewayCondition,
    GatewayKey, Globals, Key4, PairKey, ProfileEntry, map,
};

use crate::raw::{Raw, open};
use crate::{CompiledProfile, Error, bpffs};

type Hosts<K> = HashMap<MapData, Raw<K>, Raw<ProfileEntry>>;
type Prefixes<K> = LpmTrie<MapData, Raw<K>, Raw<ProfileEntry>>;

/// The profile maps of one data plane. Several processes may hold them: every change is made under a lock on
/// the pin directory.
pub struct ProfileMaps {
    pin_dir: PathBuf,
    globals: Array<MapData, Raw<Globals>>,
    hosts4: Hosts<Key4>,
    hosts6: Hosts<Address>,
    prefixes4: Prefixes<Key4>,
    prefixes6: Prefixes<Address>,
    pairs: HashMap<MapData, Raw<PairKey>, Raw<ProfileEntry>>,
    gateway: HashMap<MapData, Raw<GatewayKey>, Raw<GatewayCondition>>,
}

impl ProfileMaps {
    /// Opens the maps pinned at `dir`.
    ///
    /// # Errors
    /// [`Error::NotPinned`] if there are none, [`Error::AbiMismatch`] if they were made by another version.
    pub fn open_pinned(dir: &Path) -> Result<Self, Error> {
        if !dir.join(map::GLOBALS).exists() {
            return Err(Error::NotPinned(dir.into()));
        }
        let globals: Array<MapData, Raw<Globals>> = open(dir, map::GLOBALS)?;
        let found = globals
            .get(&0, 0)
            .map_err(Error::map(map::GLOBALS))?
            .0
            .abi_version;
        if found != ABI_VERSION {
            return Err(abi_mismatch(dir, found));
        }
        Ok(Self {
            pin_dir: dir.into(),
            globals,
            hosts4: open(dir, map::HOSTS4)?,
            hosts6: open(dir, map::HOSTS6)?,
            prefixes4: open(dir, map::PREFIXES4)?,
            prefixes6: open(dir, map::PREFIXES6)?,
            pairs: open(dir, map::PAIRS)?,
            gateway: open(dir, map::GATEWAY)?,
        })
    }

    /// The gateway's facts as the program sees them.
    pub fn globals(&self) -> Result<Globals, Error> {
        Ok(self.globals.get(&0, 0).map_err(Error::map(map::GLOBALS))?.0)
    }

    /// Puts a subscriber's conditions into the maps, over those it has for the same addresses.
    ///
    /// # Errors
    /// [`Error::Conflict`] if another subscriber holds one of the addresses; nothing is changed then.
    pub fn insert(&mut self, profile: &CompiledProfile) -> Result<(), Error> {
        let _lock = bpffs::lock(&self.pin_dir)?;
        self.refuse_conflicts(profile)?;
        // Pairs before the entries that point to them: no packet sees half a profile.
        for (terminal, peer, entry) in &profile.pairs {
            let key = pair_key(*terminal, *peer);
            self.pairs
                .insert(Raw(key), Raw(*entry), 0)
                .map_err(Error::map(map::PAIRS))?;
        }
        for (prefix, entry) in &profile.entries {
            self.insert_entry(prefix, entry)?;
        }
        for (address, port) in &profile.gateway {
            let condition = GatewayCondition {
                handle: profile.handle,
            };
            self.gateway
                .insert(Raw(gateway_key(*address, *port)), Raw(condition), 0)
                .map_err(Error::map(map::GATEWAY))?;
        }
        if profile.has_clear_tcp() {
            self.set_flag(GLOBAL_TCP)?;
        }
        self.update_flags()
    }

    /// Takes a subscriber's conditions out of the maps. What another subscriber holds stays; what is not there
    /// is no error.
    pub fn remove(&mut self, profile: &CompiledProfile) -> Result<(), Error> {
        let _lock = bpffs::lock(&self.pin_dir)?;
        self.remove_locked(profile)?;
        self.update_flags()
    }

    /// Replaces the conditions of a subscriber: addresses it keeps are served without a gap.
    pub fn replace(&mut self, old: &CompiledProfile, new: &CompiledProfile) -> Result<(), Error> {
        self.insert(new)?;
        let gone = CompiledProfile {
            handle: old.handle,
            entries: without(&old.entries, |(prefix, _)| {
                new.entries.iter().any(|(kept, _)| kept == prefix)
            }),
            pairs: without(&old.pairs, |(terminal, peer, _)| {
                new.pairs.iter().any(|(a, b, _)| (a, b) == (terminal, peer))
            }),
            gateway: without(&old.gateway, |condition| new.gateway.contains(condition)),
        };
        self.remove(&gone)
    }

    /// Takes everything of a subscriber out, whatever it is. Walks all entries: for the command line.
    pub fn remove_subscriber(&mut self, handle: u64) -> Result<bool, Error> {
        match self.list()?.into_iter().find(|profile| profile.handle == handle) {
            Some(profile) => self.remove(&profile).map(|()| true),
            None => Ok(false),
        }
    }

    /// Every subscriber's conditions, by handle. Walks all entries; changes made meanwhile may be missed.
    pub fn list(&self) -> Result<Vec<CompiledProfile>, Error> {
        let mut profiles: BTreeMap<u64, CompiledProfile> = BTreeMap::new();
        let mut of = |handle: u64, add: &mut dyn FnMut(&mut CompiledProfile)| {
            add(profiles.entry(handle).or_insert_with(|| CompiledProfile {
                handle,
                ..Default::default()
            }));
        };
        for item in self.hosts4.iter() {
            let (Raw(key), Raw(entry)) = item.map_err(Error::map(map::HOSTS4))?;
            let prefix = Prefix::host(Address::mapped(key.word).ip());
            of(entry.handle, &mut |profile| profile.entries.push((prefix, entry)));
        }
        for item in self.hosts6.iter() {
            let (Raw(key), Raw(entry)) = item.map_err(Error::map(map::HOSTS6))?;
            of(entry.handle, &mut |profile| {
                profile.entries.push((Prefix::host(key.ip()), entry))
            });
        }
        for item in self.prefixes4.iter() {
            let (key, Raw(entry)) = item.map_err(Error::map(map::PREFIXES4))?;
            let prefix = Prefix::new(Address::mapped(key.data().0.word).ip(), key.prefix_len() as u8);
            let entry = ProfileEntry {
                prefix_bits: 0,
                ..entry
            };
            of(entry.handle, &mut |profile| {
                profile.entries.extend(prefix.map(|prefix| (prefix, entry)))
            });
        }
        for item in self.prefixes6.iter() {
            let (key, Raw(entry)) = item.map_err(Error::map(map::PREFIXES6))?;
            let prefix = Prefix::new(key.data().0.ip(), key.prefix_len() as u8);
            let entry = ProfileEntry {
                prefix_bits: 0,
                ..entry
            };
            of(entry.handle, &mut |profile| {
                profile.entries.extend(prefix.map(|prefix| (prefix, entry)))
            });
        }
        for item in self.pairs.iter() {
            let (Raw(key), Raw(entry)) = item.map_err(Error::map(map::PAIRS))?;
            of(entry.handle, &mut |profile| {
                profile.pairs.push((key.terminal.ip(), key.peer.ip(), entry))
            });
        }
        for item in self.gateway.iter() {
            let (Raw(key), Raw(condition)) = item.map_err(Error::map(map::GATEWAY))?;
            of(condition.handle, &mut |profile| {
                profile.gateway.push((key.address.ip(), key.port as u16))
            });
        }
        let mut profiles: Vec<_> = profiles.into_values().collect();
        for profile in &mut profiles {
            profile.entries.sort_unstable_by_key(|(prefix, _)| *prefix);
            profile
                .pairs
                .sort_unstable_by_key(|(terminal, peer, _)| (*terminal, *peer));
            profile.gateway.sort_unstable();
        }
        Ok(profiles)
    }

    /// The entry the classifier would find for an address.
    pub fn get(&self, address: IpAddr) -> Result<Option<ProfileEntry>, Error> {
        let key = Address::from(address);
        let (host, prefix) = if key.is_v4() {
            let key4 = Raw(key.key4());
            (
                self.hosts4.get(&key4, 0),
                self.prefixes4.get(&Key::new(32, key4), 0),
            )
        } else {
            (
                self.hosts6.get(&Raw(key), 0),
                self.prefixes6.get(&Key::new(128, Raw(key)), 0),
            )
        };
        match found(host).map_err(Error::map(map::HOSTS4))? {
            Some(entry) => Ok(Some(entry.0)),
            None => Ok(found(prefix)
                .map_err(Error::map(map::PREFIXES4))?
                .map(|entry| entry.0)),
        }
    }

    fn refuse_conflicts(&self, profile: &CompiledProfile) -> Result<(), Error> {
        let conflict = |what: String, owner: u64| {
            if owner == profile.handle {
                Ok(())
            } else {
                Err(Error::Conflict { what, owner })
            }
        };
        for (prefix, _) in &profile.entries {
            if let Some(entry) = self.exact(prefix)? {
                conflict(prefix.to_string(), entry.handle)?;
            }
        }
        for (terminal, peer, _) in &profile.pairs {
            let held =
                found(self.pairs.get(&Raw(pair_key(*terminal, *peer)), 0)).map_err(Error::map(map::PAIRS))?;
            if let Some(Raw(entry)) = held {
                conflict(format!("{terminal} with {peer}"), entry.handle)?;
            }
        }
        for (address, port) in &profile.gateway {
            let held = found(self.gateway.get(&Raw(gateway_key(*address, *port)), 0))
                .map_err(Error::map(map::GATEWAY))?;
            if let Some(Raw(condition)) = held {
                conflict(format!("{address} port {port}"), condition.handle)?;
            }
        }
        Ok(())
    }

    /// The entry of exactly this prefix.
    fn exact(&self, prefix: &Prefix) -> Result<Option<ProfileEntry>, Error> {
        let key = Address::from(prefix.address());
        let bits = u32::from(prefix.bits());
        let entry = match (prefix.is_host(), key.is_v4()) {
            (true, true) => found(self.hosts4.get(&Raw(key.key4()), 0)).map_err(Error::map(map::HOSTS4))?,
            (true, false) => found(self.hosts6.get(&Raw(key), 0)).map_err(Error::map(map::HOSTS6))?,
            (false, true) => found(self.prefixes4.get(&Key::new(bits, Raw(key.key4())), 0))
                .map_err(Error::map(map::PREFIXES4))?,
            (false, false) => {
                found(self.prefixes6.get(&Key::new(bits, Raw(key)), 0)).map_err(Error::map(map::PREFIXES6))?
            }
        };
        // A trie answers with the longest match, which is another entry as a rule.
        Ok(entry
            .map(|raw| raw.0)
            .filter(|entry| prefix.is_host() || u32::from(entry.prefix_bits) == bits))
    }

    fn insert_entry(&mut self, prefix: &Prefix, entry: &ProfileEntry) -> Result<(), Error> {
        let key = Address::from(prefix.address());
        let bits = u32::from(prefix.bits());
        let mut entry = *entry;
        if !prefix.is_host() {
            entry.prefix_bits = u16::from(prefix.bits());
        }
        let value = Raw(entry);
        match (prefix.is_host(), key.is_v4()) {
            (true, true) => self
                .hosts4
                .insert(Raw(key.key4()), value, 0)
                .map_err(Error::map(map::HOSTS4)),
            (true, false) => self
                .hosts6
                .insert(Raw(key), value, 0)
                .map_err(Error::map(map::HOSTS6)),
            (false, true) => self
                .prefixes4
                .insert(&Key::new(bits, Raw(key.key4())), value, 0)
                .map_err(Error::map(map::PREFIXES4)),
            (false, false) => self
                .prefixes6
                .insert(&Key::new(bits, Raw(key)), value, 0)
                .map_err(Error::map(map::PREFIXES6)),
        }
    }

    fn remove_locked(&mut self, profile: &CompiledProfile) -> Result<(), Error> {
        for (prefix, _) in &profile.entries {
            if self
                .exact(prefix)?
                .is_none_or(|entry| entry.handle != profile.handle)
            {
                continue;
            }
            let key = Address::from(prefix.address());
            let bits = u32::from(prefix.bits());
            match (prefix.is_host(), key.is_v4()) {
                (true, true) => gone(self.hosts4.remove(&Raw(key.key4()))),
                (true, false) => gone(self.hosts6.remove(&Raw(key))),
                (false, true) => gone(self.prefixes4.remove(&Key::new(bits, Raw(key.key4())))),
                (false, false) => gone(self.prefixes6.remove(&Key::new(bits, Raw(key)))),
            }
            .map_err(Error::map("HOSTS/PREFIXES"))?;
        }
        for (terminal, peer, _) in &profile.pairs {
            let key = Raw(pair_key(*terminal, *peer));
            let held = found(self.pairs.get(&key, 0)).map_err(Error::map(map::PAIRS))?;
            if held.is_some_and(|entry| entry.0.handle == profile.handle) {
                gone(self.pairs.remove(&key)).map_err(Error::map(map::PAIRS))?;
            }
        }
        for (address, port) in &profile.gateway {
            let key = Raw(gateway_key(*address, *port));
            let held = found(self.gateway.get(&key, 0)).map_err(Error::map(map::GATEWAY))?;
            if held.is_some_and(|condition| condition.0.handle == profile.handle) {
                gone(self.gateway.remove(&key)).map_err(Error::map(map::GATEWAY))?;
            }
        }
        Ok(())
    }

    fn set_flag(&mut self, flag: u32) -> Result<(), Error> {
        let mut globals = self.globals()?;
        if globals.flags & flag != 0 {
            return Ok(());
        }
        globals.flags |= flag;
        self.globals
            .set(0, Raw(globals), 0)
            .map_err(Error::map(map::GLOBALS))
    }

    /// Tells the program which maps are worth a look-up.
    fn update_flags(&mut self) -> Result<(), Error> {
        let mut globals = self.globals()?;
        let present = [
            (GLOBAL_PREFIXES4, self.prefixes4.keys().next().is_some()),
            (GLOBAL_PREFIXES6, self.prefixes6.keys().next().is_some()),
            (GLOBAL_GATEWAY, self.gateway.keys().next().is_some()),
        ];
        let flags = present
            .iter()
            // No count of those with TCP is kept: once there was one, the question is asked.
            .fold(
                globals.flags & GLOBAL_TCP,
                |flags, (bit, set)| {
                    if *set { flags | bit } else { flags }
                },
            );
        if flags != globals.flags {
            globals.flags = flags;
            self.globals
                .set(0, Raw(globals), 0)
                .map_err(Error::map(map::GLOBALS))?;
        }
        Ok(())
    }
}

pub(crate) fn abi_mismatch(dir: &Path, found: u32) -> Error {
    Error::AbiMismatch {
        what: format!("the data plane pinned at {}", dir.display()),
        found,
        hint: ": unload it first, which stops its forwarding",
    }
}

fn pair_key(terminal: IpAddr, peer: IpAddr) -> PairKey {
    PairKey {
        terminal: terminal.into(),
        peer: peer.into(),
    }
}

fn gateway_key(address: IpAddr, port: u16) -> GatewayKey {
    GatewayKey {
        address: address.into(),
        port: port.into(),
    }
}

fn without<T: Clone>(items: &[T], kept: impl Fn(&T) -> bool) -> Vec<T> {
    items.iter().filter(|item| !kept(item)).cloned().collect()
}

fn found<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removing what is not there is no error.
fn gone(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}
