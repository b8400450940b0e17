//! The maps, laid out by `towpath_common::abi`, and the classifier's view of them.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{Array, DevMapHash, HashMap, LpmTrie, PerCpuArray, XskMap};
use towpath_common::abi::{
    Address, Count, GLOBAL_PREFIXES4, GLOBAL_PREFIXES6, GatewayCondition, GatewayKey, Globals, Key4,
    MAX_GATEWAY_CONDITIONS, MAX_PORTS, MAX_SUBSCRIBER_ENTRIES, PORT_TRANSMIT, PairKey, PortInfo,
    ProfileEntry, QUEUES_PER_PORT,
};
use towpath_common::classify::Tables;
use towpath_common::counter::{COUNTERS as COUNTER_SLOTS, Counter};

// Without preallocation an entry is freed only after a grace period: a reference stays valid while the
// program runs, and an empty gateway does not pay for a million entries.
#[map]
static GLOBALS: Array<Globals> = Array::with_max_entries(1, 0);
#[map]
static PORTS: HashMap<u32, PortInfo> = HashMap::with_max_entries(MAX_PORTS, BPF_F_NO_PREALLOC);
#[map]
static HOSTS4: HashMap<Key4, ProfileEntry> =
    HashMap::with_max_entries(MAX_SUBSCRIBER_ENTRIES, BPF_F_NO_PREALLOC);
#[map]
static HOSTS6: HashMap<Address, ProfileEntry> =
    HashMap::with_max_entries(MAX_SUBSCRIBER_ENTRIES, BPF_F_NO_PREALLOC);
#[map]
static PREFIXES4: LpmTrie<Key4, ProfileEntry> =
    LpmTrie::with_max_entries(MAX_SUBSCRIBER_ENTRIES, BPF_F_NO_PREALLOC);
#[map]
static PREFIXES6: LpmTrie<Address, ProfileEntry> =
    LpmTrie::with_max_entries(MAX_SUBSCRIBER_ENTRIES, BPF_F_NO_PREALLOC);
#[map]
static PAIRS: HashMap<PairKey, ProfileEntry> =
    HashMap::with_max_entries(MAX_SUBSCRIBER_ENTRIES, BPF_F_NO_PREALLOC);
#[map]
static GATEWAY: HashMap<GatewayKey, GatewayCondition> =
    HashMap::with_max_entries(MAX_GATEWAY_CONDITIONS, BPF_F_NO_PREALLOC);
#[map]
static XSKS: XskMap = XskMap::with_max_entries(MAX_PORTS * QUEUES_PER_PORT, 0);
#[map]
static TX_PORTS: DevMapHash = DevMapHash::with_max_entries(MAX_PORTS, 0);
#[map]
static COUNTERS: PerCpuArray<Count> = PerCpuArray::with_max_entries(COUNTER_SLOTS, 0);

/// Facts about the gateway.
#[inline(always)]
pub fn globals() -> Option<&'static Globals> {
    GLOBALS.get(0)
}

/// The port with this interface index.
#[inline(always)]
pub fn port(ifindex: u32) -> Option<&'static PortInfo> {
    // SAFETY: not preallocated, see the maps.
    unsafe { PORTS.get(&ifindex) }
}

/// True if ordinary packets may leave through the interface.
#[inline(always)]
pub fn may_transmit(ifindex: u32) -> bool {
    port(ifindex).is_some_and(|port| port.flags & PORT_TRANSMIT != 0)
}

/// Sends the frame out of another port; false if it is not in the device map.
#[inline(always)]
pub fn redirect_to_port(ifindex: u32) -> bool {
    TX_PORTS.redirect(ifindex, 0).is_ok()
}

/// Gives the frame to the AF_XDP socket at `index`; false if there is none.
#[inline(always)]
pub fn redirect_to_socket(index: u32) -> bool {
    XSKS.redirect(index, 0).is_ok()
}

/// Counts one packet of `bytes` bytes.
#[inline(always)]
pub fn count(counter: Counter, bytes: u64) {
    if let Some(count) = COUNTERS.get_ptr_mut(counter.index()) {
        // SAFETY: the entry of this CPU, which only this program writes while it runs.
        unsafe {
            (*count).packets += 1;
            (*count).bytes += bytes;
        }
    }
}

/// The profile maps for the classifier.
pub struct Maps;

impl Tables for Maps {
    #[inline(always)]
    fn profile(&self, address: &Address) -> Option<&ProfileEntry> {
        let flags = globals().map_or(0, |globals| globals.flags);
        if address.is_v4() {
            // SAFETY: not preallocated, see the maps.
            match unsafe { HOSTS4.get(&address.key4()) } {
                None if flags & GLOBAL_PREFIXES4 != 0 => PREFIXES4.get(Key::new(32, address.key4())),
                found => found,
            }
        } else {
            // SAFETY: not preallocated, see the maps.
            match unsafe { HOSTS6.get(address) } {
                None if flags & GLOBAL_PREFIXES6 != 0 => PREFIXES6.get(Key::new(128, *address)),
                found => found,
            }
        }
    }

    #[inline(always)]
    fn pair(&self, key: &PairKey) -> Option<&ProfileEntry> {
        // SAFETY: not preallocated, see the maps.
        unsafe { PAIRS.get(key) }
    }

    #[inline(always)]
    fn gateway(&self, key: &GatewayKey) -> Option<&GatewayCondition> {
        // SAFETY: not preallocated, see the maps.
        unsafe { GATEWAY.get(key) }
    }
}
