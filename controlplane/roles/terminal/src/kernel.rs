//! The kernel as the place of the SAs: what the core decides is written into its tables.
//!
//! [`Kernel::adopt`] writes the receiving half of an SA the moment the core takes it over; [`Kernel::settle`] makes
//! everything else what the core's list of SAs says it should be: who sends, what is gone, and the policies.
//! Two policies of the kernel cannot differ in priority alone, so where an SA's mode or addresses ask for another
//! template than the configuration's, the policy is exchanged for as long as the SA is there.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;

use towpath_base::crypto::{EspProvider, InvalidKey};
use towpath_base::sa::{ChildSa, EspKeys, EspSuite, Mode};
use towpath_base::selector::{Prefix, TrafficSelector};
use towpath_common::wire::{PORT_IKE, PORT_IKE_NATT, protocol};
use towpath_kernel::xfrm::{Action, Direction, PolicyRule, Selector, State, StateId, Template, Use};
use towpath_kernel::{Xfrm, sysctl};
use towpath_terminal_core::{SaName, SaStatus, SoftEsp};
use tracing::{debug, info, warn};

mod selectors;

use self::selectors::selectors;
use crate::config::{Action as Wanted, LevelConfig, PolicyConfig, TerminalConfig};

/// Suites the kernel must have to be chosen without being asked for.
const EXPECTED: [EspSuite; 3] = [
    EspSuite::Aes128Gcm16,
    EspSuite::Aes256Gcm16,
    EspSuite::Aes256CbcSha256,
];

/// Marks states and policies as ours ("tp" in ASCII); the last byte is the sensitivity level.
const REQID: u32 = 0x7470_0000;

/// Priorities of our policies: the exceptions, then two for each entry of the configuration.
const PRIORITY: u32 = 0x7470_0000;
const PRIORITY_ENTRIES: u32 = PRIORITY + 0x10;
const PRIORITY_END: u32 = PRIORITY + 0x1000;

/// Settings under `net.core`: a packet waits for its SA (K8), and one that got none asks again soon.
const SETTINGS: [(&str, u32); 2] = [("xfrm_larval_drop", 0), ("xfrm_acq_expires", 3)];

/// Packets of the replay window, as many as the core's.
const REPLAY_WINDOW: u32 = 448;

/// Neighbour solicitation and advertisement (RFC 4861): without them there is nobody to send to.
const NEIGHBOUR: [u16; 2] = [135, 136];

/// What the core and the driver share.
pub(crate) type Shared = Rc<RefCell<Kernel>>;

/// Cryptography of the core: its own, and where SAs are the kernel's, the way there.
pub(crate) struct Provider(pub(crate) Option<Shared>);

impl EspProvider for Provider {
    type Transform = <SoftEsp as EspProvider>::Transform;

    fn transform(&self, suite: EspSuite, keys: &EspKeys) -> Result<Self::Transform, InvalidKey> {
        SoftEsp.transform(suite, keys)
    }

    fn adopt(&self, level: u8, sa: &ChildSa) -> Result<(), InvalidKey> {
        let Some(kernel) = &self.0 else {
            return Ok(());
        };
        kernel.borrow_mut().adopt(level, sa).map_err(|error| {
            warn!(peer = %sa.remote, suite = %sa.suite, %error, "the kernel does not take the SA");
            InvalidKey
        })
    }
}

/// An SA in the kernel.
struct Installed {
    sa: ChildSa,
    level: u8,
    /// Its sending half is there.
    sends: bool,
    received: Use,
    sent: Use,
}

impl Installed {
    fn name(&self) -> SaName {
        SaName::of(&self.sa)
    }

    const fn inbound(&self) -> StateId {
        StateId {
            destination: self.sa.local,
            spi: self.sa.spi_in,
        }
    }

    const fn outbound(&self) -> StateId {
        StateId {
            destination: self.sa.remote,
            spi: self.sa.spi_out,
        }
    }
}

/// What one SA did since it was last asked.
pub(crate) struct Activity {
    pub(crate) name: SaName,
    pub(crate) sent: bool,
    pub(crate) received: bool,
}

/// The kernel's tables, as far as they are ours.
pub(crate) struct Kernel {
    xfrm: Xfrm,
    entries: Vec<PolicyConfig>,
    levels: Vec<LevelConfig>,
    addresses: Vec<IpAddr>,
    installed: Vec<Installed>,
    policies: HashMap<PolicyKey, PolicyRule>,
    settled: Vec<(SaName, bool)>,
    /// Settings of the host that were changed, and what they were.
    settings: Vec<(&'static str, u32)>,
}

/// What no two policies of the kernel share.
type PolicyKey = (Direction, Selector, Option<(u32, u32)>);

impl Kernel {
    /// Whether the kernel can do what a terminal needs.
    pub(crate) fn usable() -> Result<Xfrm, String> {
        let xfrm = Xfrm::open().map_err(|error| format!("no XFRM: {error}"))?;
        match EXPECTED.iter().find(|suite| !xfrm.supports(**suite)) {
            Some(suite) => Err(format!("no ESP with {suite}")),
            None => Ok(xfrm),
        }
    }

    /// Takes over the kernel's tables: what an earlier process left there is removed, the configuration's policies are
    /// in force when this returns.
    pub(crate) fn open(xfrm: Xfrm, config: &TerminalConfig, addresses: &[IpAddr]) -> io::Result<Self> {
        let swept = xfrm.sweep(
            |reqid| Self::level_of(reqid).is_some(),
            |priority| (PRIORITY..PRIORITY_END).contains(&priority),
        )?;
        if swept > 0 {
            info!(swept, "removed SAs and policies of an earlier process");
        }
        let mut settings = Vec::new();
        for (key, value) in SETTINGS {
            let before = sysctl::core(key)?;
            if before != value {
                sysctl::set_core(key, value)?;
                settings.push((key, before));
            }
        }
        let mut kernel = Self {
            xfrm,
            entries: config.policies.clone(),
            levels: config.levels.clone(),
            addresses: addresses.to_vec(),
            installed: Vec::new(),
            policies: HashMap::new(),
            settled: Vec::new(),
            settings,
        };
        kernel.apply_policies()?;
        Ok(kernel)
    }

    /// The level of what has this reqid, if it is ours.
    pub(crate) const fn level_of(reqid: u32) -> Option<u8> {
        if reqid & 0xffff_ff00 == REQID {
            Some(reqid as u8)
        } else {
            None
        }
    }

    /// Writes the receiving half of `sa`.
    fn adopt(&mut self, level: u8, sa: &ChildSa) -> io::Result<()> {
        let installed = Installed {
            sa: sa.clone(),
            level,
            sends: false,
            received: Use::default(),
            sent: Use::default(),
        };
        let state = state(sa, level, Direction::In);
        // One the core has forgotten.
        let _ = self.xfrm.delete_state(&state.id());
        self.xfrm.add_state(&state)?;
        self.installed.retain(|old| old.name() != installed.name());
        self.installed.push(installed);
        self.settled.clear();
        Ok(())
    }

    /// Makes the tables what `sas`, the core's list, says.
    pub(crate) fn settle(&mut self, sas: impl Iterator<Item = SaStatus>) {
        let wanted: Vec<(SaName, bool)> = sas.map(|sa| (sa.name, !sa.replaced && !sa.standby)).collect();
        if wanted == self.settled {
            return;
        }
        let sends = |name: &SaName| wanted.iter().any(|(wanted, sends)| wanted == name && *sends);
        // New ones send before old ones stop.
        for at in 0..self.installed.len() {
            let (xfrm, installed) = (&self.xfrm, &mut self.installed[at]);
            if sends(&installed.name()) && !installed.sends {
                let sa = &installed.sa;
                let state = state(sa, installed.level, Direction::Out);
                match xfrm.add_state(&state) {
                    Ok(()) => installed.sends = true,
                    Err(error) => warn!(peer = %sa.remote, %error, "the kernel does not send on the SA"),
                }
            }
        }
        if let Err(error) = self.apply_policies() {
            warn!(%error, "policies for the SAs");
        }
        for installed in &mut self.installed {
            if installed.sends && !sends(&installed.name()) {
                forget(&self.xfrm, &installed.outbound());
                installed.sends = false;
            }
        }
        let xfrm = &self.xfrm;
        self.installed.retain(|installed| {
            let name = installed.name();
            let known = wanted.iter().any(|(wanted, _)| *wanted == name);
            if !known {
                forget(xfrm, &installed.inbound());
            }
            known
        });
        if let Err(error) = self.apply_policies() {
            warn!(%error, "policies without the SAs that ended");
        }
        self.settled = wanted;
    }

    /// What SAs did since the last call.
    pub(crate) fn activity(&mut self) -> Vec<Activity> {
        let xfrm = &self.xfrm;
        let each = self.installed.iter_mut().map(|installed| {
            let now = |id: &StateId, before: Use| xfrm.state_use(id).unwrap_or(before);
            let received = now(&installed.inbound(), installed.received);
            let sent = if installed.sends {
                now(&installed.outbound(), installed.sent)
            } else {
                installed.sent
            };
            let activity = Activity {
                name: installed.name(),
                sent: sent.packets > installed.sent.packets,
                received: received.packets > installed.received.packets,
            };
            (installed.received, installed.sent) = (received, sent);
            activity
        });
        each.collect()
    }

    /// Received and sent on an SA so far, as of the last [`Kernel::activity`].
    pub(crate) fn usage(&self, name: &SaName) -> Option<(Use, Use)> {
        let found = self
            .installed
            .iter()
            .find(|installed| installed.name() == *name)?;
        Some((found.received, found.sent))
    }

    /// The SA of a state.
    pub(crate) fn name_of(&self, state: &StateId) -> Option<SaName> {
        let of = |installed: &&Installed| installed.inbound() == *state || installed.outbound() == *state;
        self.installed.iter().find(of).map(Installed::name)
    }

    /// Takes everything out again.
    pub(crate) fn close(&mut self) {
        for installed in self.installed.drain(..) {
            forget(&self.xfrm, &installed.inbound());
            if installed.sends {
                forget(&self.xfrm, &installed.outbound());
            }
        }
        for (_, rule) in self.policies.drain() {
            if let Err(error) = self.xfrm.delete_policy(&rule) {
                debug!(%error, "a policy was gone already");
            }
        }
        for (key, before) in self.settings.drain(..) {
            if let Err(error) = sysctl::set_core(key, before) {
                warn!(%error, "net.core.{key} is not what it was");
            }
        }
    }

    fn apply_policies(&mut self) -> io::Result<()> {
        let wanted = self.wanted_policies();
        for (key, rule) in &wanted {
            if self.policies.get(key) != Some(rule) {
                self.xfrm.set_policy(rule)?;
            }
        }
        for (key, rule) in &self.policies {
            if !wanted.contains_key(key) {
                self.xfrm.delete_policy(rule)?;
            }
        }
        self.policies = wanted;
        Ok(())
    }

    /// The policies that should be in force; the first in order of each kind counts.
    fn wanted_policies(&self) -> HashMap<PolicyKey, PolicyRule> {
        let mut rules = exceptions();
        for (entry, priority) in self.entries.iter().zip((PRIORITY_ENTRIES..).step_by(2)) {
            for &address in &self.addresses {
                if address.is_ipv4() == entry.peer.address().is_ipv4() {
                    rules.extend(self.rules_of(entry, address, priority));
                }
            }
        }
        let mut wanted = HashMap::new();
        for rule in rules {
            let kept = wanted
                .entry((rule.direction, rule.selector, rule.mark))
                .or_insert(rule);
            if rule.priority < kept.priority {
                *kept = rule;
            }
        }
        wanted
    }

    /// Policies of one entry for one address: those of its SAs, then its own.
    fn rules_of(&self, entry: &PolicyConfig, address: IpAddr, priority: u32) -> Vec<PolicyRule> {
        let mut rules = Vec::new();
        let (local, remote) = entry.selectors(address);
        let level = entry.level.unwrap_or(0);
        let chosen = self.levels.iter().find(|known| known.level == level);
        for direction in [Direction::Out, Direction::In] {
            // What arrives has no mark.
            let mark = chosen
                .map(LevelConfig::mark)
                .filter(|_| direction == Direction::Out);
            let template = |mode, remote| Template {
                mode,
                outer: (mode == Mode::Tunnel).then(|| outer(direction, address, remote)),
                reqid: match direction {
                    Direction::Out => reqid(level),
                    // Whichever of the SAs it came by; a connection's own, where it has one.
                    Direction::In if level == 0 => 0,
                    Direction::In => reqid(level),
                },
            };
            let own = match (entry.action, entry.gateway) {
                (Wanted::Bypass, _) => Action::Allow,
                (Wanted::Discard, _) => Action::Block,
                (Wanted::Protect, Some(gateway)) => Action::Protect(template(Mode::Tunnel, gateway)),
                (Wanted::Protect, None) => Action::Protect(template(Mode::Transport, address)),
            };
            let mut add = |local: &TrafficSelector, remote: &TrafficSelector, priority, action| {
                let selectors = selectors(direction, local, remote).into_iter();
                rules.extend(selectors.map(|selector| PolicyRule {
                    direction,
                    selector,
                    mark,
                    priority,
                    action,
                }));
            };
            // Of another level than 0 only what an SA was made for is known to be one's when it arrives.
            let everything = level == 0 || direction == Direction::Out;
            if everything {
                add(&local, &remote, priority + 1, own);
            }
            let protects = entry.action == Wanted::Protect;
            for installed in self.installed.iter().filter(|_| protects) {
                let sa = &installed.sa;
                let meant = match entry.gateway {
                    Some(gateway) => sa.remote == gateway,
                    None => entry.peer.contains(sa.remote),
                };
                let used = direction == Direction::In || installed.sends;
                let action = Action::Protect(template(sa.mode, sa.remote));
                let implied = everything && action == own;
                if !meant || !used || sa.local != address || implied || installed.level != level {
                    continue;
                }
                for (ours, theirs) in pairs(sa) {
                    if let (Some(ours), Some(theirs)) = (ours.intersect(&local), theirs.intersect(&remote)) {
                        add(&ours, &theirs, priority, action);
                    }
                }
            }
        }
        rules
    }
}

/// The half of an SA that sends or receives.
fn state(sa: &ChildSa, level: u8, direction: Direction) -> State<'_> {
    let (source, destination) = outer(direction, sa.local, sa.remote);
    let (spi, keys) = match direction {
        Direction::Out => (sa.spi_out, &sa.keys_out),
        Direction::In => (sa.spi_in, &sa.keys_in),
    };
    State {
        source,
        destination,
        spi,
        suite: sa.suite,
        keys,
        mode: sa.mode,
        esn: sa.esn,
        encap: sa.encap.map(|encap| match direction {
            Direction::Out => (encap.local_port, encap.remote_port),
            Direction::In => (encap.remote_port, encap.local_port),
        }),
        reqid: reqid(level),
        replay_window: REPLAY_WINDOW,
        lifetime: sa.lifetime,
        tfc_pad: 0,
        selector: state_selector(sa, level, direction),
    }
}

const fn reqid(level: u8) -> u32 {
    REQID | level as u32
}

/// The selector of a state, where one can say it: in transport mode, and of one connection's SA, which must not carry
/// another's packets.
fn state_selector(sa: &ChildSa, level: u8, direction: Direction) -> Option<Selector> {
    let mut pairs = pairs(sa);
    let ((local, remote), None) = (pairs.next()?, pairs.next()) else {
        return None;
    };
    match selectors(direction, &local, &remote).as_slice() {
        [selector] if sa.mode == Mode::Transport || level != 0 => Some(*selector),
        _ => None,
    }
}

fn pairs(sa: &ChildSa) -> impl Iterator<Item = (TrafficSelector, TrafficSelector)> + '_ {
    let ours = sa.local_ts.iter();
    ours.flat_map(|ours| sa.remote_ts.iter().map(|theirs| (*ours, *theirs)))
}

const fn outer(direction: Direction, local: IpAddr, remote: IpAddr) -> (IpAddr, IpAddr) {
    match direction {
        Direction::Out => (local, remote),
        Direction::In => (remote, local),
    }
}

fn forget(xfrm: &Xfrm, state: &StateId) {
    if let Err(error) = xfrm.delete_state(state) {
        // At its hard limit the kernel was faster.
        debug!(spi = %state.spi, %error, "a state was gone already");
    }
}

/// What must pass in clear whatever the configuration protects: sealed messages and IKE on their ports, and the
/// search for neighbours.
fn exceptions() -> Vec<PolicyRule> {
    let any = |v6: bool| {
        let address = if v6 {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        } else {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        };
        Prefix::new(address, 0).unwrap_or(Prefix::host(address))
    };
    let mut rules = Vec::new();
    for direction in [Direction::Out, Direction::In] {
        let mut add = |v6, number, ours, theirs| {
            let (source_port, destination_port) = match direction {
                Direction::Out => (ours, theirs),
                Direction::In => (theirs, ours),
            };
            rules.push(PolicyRule {
                direction,
                selector: Selector {
                    source: any(v6),
                    destination: any(v6),
                    protocol: number,
                    source_port,
                    destination_port,
                },
                mark: None,
                priority: PRIORITY,
                action: Action::Allow,
            });
        };
        for port in [PORT_IKE, PORT_IKE_NATT] {
            add(false, protocol::UDP, (port, u16::MAX), (0, 0));
            add(true, protocol::UDP, (port, u16::MAX), (0, 0));
        }
        // The type stands where a source port would, in both directions.
        for kind in NEIGHBOUR {
            match direction {
                Direction::Out => add(true, protocol::ICMPV6, (kind, u16::MAX), (0, 0)),
                Direction::In => add(true, protocol::ICMPV6, (0, 0), (kind, u16::MAX)),
            }
        }
    }
    rules
}
