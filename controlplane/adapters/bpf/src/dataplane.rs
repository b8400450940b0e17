//! Loading, pinning, attaching, and taking over what a former process left pinned.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use aya::maps::xdp::DevMapHash;
use aya::maps::{Array, HashMap, MapData, PerCpuArray, XskMap};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use towpath_common::abi::{
    ABI_VERSION, Count, Globals, MAX_PORTS, PORT_TRANSMIT, PortInfo, QUEUES_PER_PORT, RESERVED_SPI_DEFAULT,
    Role, map,
};
use towpath_common::counter::Counter;

use crate::bpffs::{self, DEFAULT_PIN_DIR, Mounted, ensure_bpffs};
use crate::netdev::{NetDevice, net_device};
use crate::object::check_object;
use crate::profiles::{ProfileMaps, abi_mismatch};
use crate::raw::{Raw, open};
use crate::testrun::{self, TestOutcome};
use crate::{Error, counters};

/// Name of the gateway's program in the object.
const PROGRAM: &str = "towpath";
/// Name of the program that passes everything.
const PASS_PROGRAM: &str = "towpath_pass";
/// First part of a pinned link's name; interface index and mode follow. A bpffs allows no dots in names, so
/// interface names will not do.
const LINK: &str = "link";

/// Attempts, 20 ms apart, while another program is still on the interface.
const ATTACH_TRIES: u32 = 25;

/// How the program is to be attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// By the driver if it can, else by the kernel's generic hook.
    #[default]
    Auto,
    /// By the driver or not at all.
    Native,
    /// By the generic hook: slower, works everywhere.
    Generic,
}

/// How the program is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachedMode {
    /// In the driver.
    Native,
    /// In the kernel's generic hook.
    Generic,
}

impl AttachedMode {
    const ALL: [Self; 2] = [Self::Native, Self::Generic];

    /// `native` or `generic`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    const fn xdp(self) -> XdpMode {
        match self {
            Self::Native => XdpMode::Driver,
            Self::Generic => XdpMode::Skb,
        }
    }
}

/// An interface the gateway is to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortSpec {
    /// Its name.
    pub name: String,
    /// The side it faces.
    pub role: Role,
}

/// What to load and how.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory on a bpffs for maps and links; made, and its file system mounted, if it is not there.
    pub pin_dir: PathBuf,
    /// Value of both SPIs in a message a terminal addresses to the network.
    pub reserved_spi: u64,
    /// The ports. A port of a former process that is not named here is released.
    pub ports: Vec<PortSpec>,
    /// How to attach.
    pub mode: Mode,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            pin_dir: DEFAULT_PIN_DIR.into(),
            reserved_spi: RESERVED_SPI_DEFAULT,
            ports: Vec::new(),
            mode: Mode::Auto,
        }
    }
}

/// A port the program runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// The interface as it was when the program was attached.
    pub device: NetDevice,
    /// The side it faces.
    pub role: Role,
    /// How the program is attached.
    pub mode: AttachedMode,
    /// Index of its queue 0 among the AF_XDP sockets.
    pub xsk_base: u32,
    /// The link was there already: forwarding never stopped.
    pub taken_over: bool,
}

/// The loaded data plane. Dropping it detaches nothing: ordinary traffic keeps flowing, and the next process
/// takes over. [`unload`] ends it.
pub struct Dataplane {
    pin_dir: PathBuf,
    ports: Vec<Port>,
    notes: Vec<String>,
    sockets: XskMap<MapData>,
    counters: PerCpuArray<MapData, Raw<Count>>,
    profiles: ProfileMaps,
    // The kernel keeps the program by the pinned links; this is for runs without a port.
    ebpf: Ebpf,
}

impl Dataplane {
    /// Loads `object` (see [`crate::find_object`]) and attaches it to the ports, taking over pinned maps and
    /// links of the same ABI version.
    ///
    /// # Errors
    /// Nothing is detached on an error; ports attached before it stay attached and pinned.
    pub fn load(object: &Path, options: &Options) -> Result<Self, Error> {
        let bytes = check_object(object)?;
        let devices = find_devices(&options.ports)?;
        let mut notes = Vec::new();
        let dir = options.pin_dir.as_path();
        if let Mounted::Now(path) = ensure_bpffs(dir)? {
            notes.push(format!("mounted a bpffs at {}", path.display()));
        }
        let lock = bpffs::lock(dir)?;
        refuse_other_versions(dir)?;
        let mut ebpf = load_maps(&bytes, dir)?;
        set_globals(dir, options.reserved_spi)?;
        let wanted: BTreeSet<u32> = devices.iter().map(|(device, _)| device.ifindex).collect();
        release_ports(dir, |ifindex| wanted.contains(&ifindex))?;
        let bases = set_ports(dir, &devices)?;
        let program = load_program(&mut ebpf, PROGRAM)?;
        let mut ports = Vec::new();
        for ((device, role), xsk_base) in devices.into_iter().zip(bases) {
            let attached = attach(program, dir, &device, options.mode)?;
            notes.extend(attached.note);
            let (mode, taken_over) = (attached.mode, attached.taken_over);
            ports.push(Port {
                device,
                role,
                mode,
                xsk_base,
                taken_over,
            });
        }
        drop(lock);
        Ok(Self {
            pin_dir: dir.into(),
            ports,
            notes,
            sockets: open(dir, map::XSKS)?,
            counters: open(dir, map::COUNTERS)?,
            profiles: ProfileMaps::open_pinned(dir)?,
            ebpf,
        })
    }

    /// The ports, in the order of the options.
    pub fn ports(&self) -> &[Port] {
        &self.ports
    }

    /// What the operator should know about the loading: fallbacks, mounts.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Where maps and links are pinned.
    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    /// The compiled conditions.
    pub fn profiles(&mut self) -> &mut ProfileMaps {
        &mut self.profiles
    }

    /// Gives diverted packets of a queue to an AF_XDP socket that is bound to it. The kernel forgets the socket
    /// when it is closed.
    pub fn set_xsk(&mut self, ifindex: u32, queue: u32, socket: impl AsRawFd) -> Result<(), Error> {
        let port = self.ports.iter().find(|port| port.device.ifindex == ifindex);
        let base = port
            .map(|port| port.xsk_base)
            .filter(|_| queue < QUEUES_PER_PORT)
            .ok_or_else(|| Error::Limit(format!("no port has interface {ifindex} and queue {queue}")))?;
        self.sockets
            .set(base + queue, socket, 0)
            .map_err(Error::map(map::XSKS))
    }

    /// The program's counters, summed over the processors.
    pub fn counters(&self) -> Result<Vec<(Counter, Count)>, Error> {
        counters::read(&self.counters)
    }

    /// Runs the program `repeat` times on `packet` as if it came in through queue 0 of a port attached in
    /// native mode. Nothing is sent; counters count.
    pub fn test_run(&self, ifindex: u32, packet: &[u8], repeat: u32) -> Result<TestOutcome, Error> {
        testrun::run(self.program(PROGRAM)?, ifindex, packet, repeat)
    }

    /// Has the kernel process `count` copies of `packet` as if they came in through the port, actions included.
    pub fn test_live(&self, ifindex: u32, packet: &[u8], count: u32) -> Result<(), Error> {
        testrun::run_live(self.program(PROGRAM)?, ifindex, packet, count)
    }

    fn program(&self, name: &str) -> Result<&Xdp, Error> {
        let program = self
            .ebpf
            .program(name)
            .ok_or_else(|| Error::Load(format!("no program {name}")))?;
        program.try_into().map_err(|error| Error::Load(chain(&error)))
    }
}

/// Detaches the program from every port and removes maps, links and the directory; returns how many ports there
/// were. Forwarding is the kernel's again.
pub fn unload(pin_dir: &Path) -> Result<usize, Error> {
    if !pin_dir.is_dir() {
        return Err(Error::NotPinned(pin_dir.into()));
    }
    let lock = bpffs::lock(pin_dir)?;
    let mut links = 0;
    for path in entries(pin_dir)?.into_iter().filter(|path| !path.is_dir()) {
        // The pin is the last reference to a link: removing it detaches.
        links += usize::from(link_of(&path).is_some());
        fs::remove_file(&path).map_err(Error::file("remove", path))?;
    }
    drop(lock);
    // A mount point stays, empty.
    let _ = fs::remove_dir(pin_dir);
    Ok(links)
}

/// Attaches a program that passes everything to an interface, pinned in `dir` on a bpffs. A veth receives frames
/// that were redirected to it only if its peer is received from like this.
pub fn attach_pass(object: &Path, interface: &str, dir: &Path) -> Result<(), Error> {
    attach_alone(object, PASS_PROGRAM, interface, dir)
}

/// Attaches a program that needs no maps, pinned in `dir`; [`unload`] takes it off.
pub(crate) fn attach_alone(object: &Path, name: &str, interface: &str, dir: &Path) -> Result<(), Error> {
    let bytes = check_object(object)?;
    let device = net_device(interface)?;
    ensure_bpffs(dir)?;
    let mut loader = EbpfLoader::new();
    // The maps come with the object; nobody uses them here.
    for name in map::ALL {
        loader.map_max_entries(name, 1);
    }
    let mut ebpf = loader.load(&bytes).map_err(|error| Error::Load(chain(&error)))?;
    let program = load_program(&mut ebpf, name)?;
    attach(program, dir, &device, Mode::Auto).map(|_| ())
}

fn find_devices(ports: &[PortSpec]) -> Result<Vec<(NetDevice, Role)>, Error> {
    if ports.len() > MAX_PORTS as usize {
        return Err(Error::Limit(format!(
            "{} ports are more than the {MAX_PORTS} there is room for",
            ports.len()
        )));
    }
    let mut devices: Vec<(NetDevice, Role)> = Vec::new();
    for port in ports {
        let device = net_device(&port.name)?;
        if devices.iter().any(|(other, _)| other.ifindex == device.ifindex) {
            return Err(Error::Interface {
                name: port.name.clone(),
                reason: "named twice".into(),
            });
        }
        devices.push((device, port.role));
    }
    Ok(devices)
}

fn refuse_other_versions(dir: &Path) -> Result<(), Error> {
    if !dir.join(map::GLOBALS).exists() {
        return Ok(());
    }
    let globals: Array<MapData, Raw<Globals>> = open(dir, map::GLOBALS)?;
    match globals
        .get(&0, 0)
        .map_err(Error::map(map::GLOBALS))?
        .0
        .abi_version
    {
        // Zero: the process that made it died before it wrote the version, hence before it attached.
        0 | ABI_VERSION => Ok(()),
        found => Err(abi_mismatch(dir, found)),
    }
}

fn load_maps(bytes: &[u8], dir: &Path) -> Result<Ebpf, Error> {
    let mut loader = EbpfLoader::new();
    for name in map::ALL {
        loader.map_pin_path(name, dir.join(name));
    }
    loader.load(bytes).map_err(|error| Error::Load(chain(&error)))
}

pub(crate) fn load_program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp, Error> {
    let program = ebpf
        .program_mut(name)
        .ok_or_else(|| Error::Load(format!("no program {name}")))?;
    let program: &mut Xdp = program.try_into().map_err(|error| Error::Load(chain(&error)))?;
    program.load().map_err(|error| Error::Load(chain(&error)))?;
    Ok(program)
}

fn set_globals(dir: &Path, reserved_spi: u64) -> Result<(), Error> {
    let mut map: Array<MapData, Raw<Globals>> = open(dir, map::GLOBALS)?;
    let old = map.get(&0, 0).map_err(Error::map(map::GLOBALS))?.0;
    let new = Globals {
        reserved_spi,
        abi_version: ABI_VERSION,
        flags: old.flags,
    };
    map.set(0, Raw(new), 0).map_err(Error::map(map::GLOBALS))
}

/// Writes the port table; returns each port's place among the AF_XDP sockets, the old one where it had one.
fn set_ports(dir: &Path, devices: &[(NetDevice, Role)]) -> Result<Vec<u32>, Error> {
    let mut ports: HashMap<MapData, u32, Raw<PortInfo>> = open(dir, map::PORTS)?;
    let mut transmit: DevMapHash<MapData> = open(dir, map::TX_PORTS)?;
    let mut bases = BTreeSet::new();
    for item in ports.iter() {
        bases.insert(item.map_err(Error::map(map::PORTS))?.1.0.xsk_base);
    }
    let mut result = Vec::new();
    for (device, role) in devices {
        let free = (0..MAX_PORTS)
            .map(|slot| slot * QUEUES_PER_PORT)
            .find(|base| !bases.contains(base));
        let xsk_base = match ports.get(&device.ifindex, 0) {
            Ok(Raw(old)) => old.xsk_base,
            Err(_) => free.ok_or_else(|| Error::Limit("no room for another port".into()))?,
        };
        bases.insert(xsk_base);
        let info = PortInfo {
            role: *role as u32,
            flags: PORT_TRANSMIT,
            xsk_base,
            queues: device.queues,
            mac: device.mac,
            reserved: [0; 2],
        };
        // First the device, then the permission to use it.
        transmit
            .insert(device.ifindex, device.ifindex, None, 0)
            .map_err(|error| Error::Load(format!("map {}: {}", map::TX_PORTS, chain(&error))))?;
        ports
            .insert(device.ifindex, Raw(info), 0)
            .map_err(Error::map(map::PORTS))?;
        result.push(xsk_base);
    }
    Ok(result)
}

/// Detaches and forgets ports that are not to be kept.
fn release_ports(dir: &Path, keep: impl Fn(u32) -> bool) -> Result<(), Error> {
    for path in entries(dir)? {
        if link_of(&path).is_some_and(|(ifindex, _)| !keep(ifindex)) {
            fs::remove_file(&path).map_err(Error::file("remove", path))?;
        }
    }
    let mut ports: HashMap<MapData, u32, Raw<PortInfo>> = open(dir, map::PORTS)?;
    let mut transmit: DevMapHash<MapData> = open(dir, map::TX_PORTS)?;
    let known: Vec<u32> = ports
        .keys()
        .collect::<Result<_, _>>()
        .map_err(Error::map(map::PORTS))?;
    for ifindex in known.into_iter().filter(|ifindex| !keep(*ifindex)) {
        ports.remove(&ifindex).map_err(Error::map(map::PORTS))?;
        // The kernel has removed the device itself if it is gone.
        let _ = transmit.remove(ifindex);
    }
    Ok(())
}

struct Attached {
    mode: AttachedMode,
    taken_over: bool,
    note: Option<String>,
}

fn attach(program: &mut Xdp, dir: &Path, device: &NetDevice, mode: Mode) -> Result<Attached, Error> {
    for attached in AttachedMode::ALL {
        let path = link_path(dir, device.ifindex, attached);
        let wanted = match mode {
            Mode::Auto => true,
            Mode::Native => attached == AttachedMode::Native,
            Mode::Generic => attached == AttachedMode::Generic,
        };
        if !path.exists() {
            continue;
        }
        if wanted && take_over(program, &path).is_ok() {
            return Ok(Attached {
                mode: attached,
                taken_over: true,
                note: None,
            });
        }
        // Another mode, or the device it belonged to is gone.
        fs::remove_file(&path).map_err(Error::file("remove", path))?;
    }
    let failed = |reason| Error::Attach {
        name: device.name.clone(),
        reason,
    };
    match mode {
        Mode::Native | Mode::Generic => {
            let mode = if mode == Mode::Native {
                AttachedMode::Native
            } else {
                AttachedMode::Generic
            };
            attach_new(program, dir, device.ifindex, mode)
                .map_err(|reason| failed(format!("{}: {reason}", mode.name())))?;
            Ok(Attached {
                mode,
                taken_over: false,
                note: None,
            })
        }
        Mode::Auto => {
            let Err(native) = attach_new(program, dir, device.ifindex, AttachedMode::Native) else {
                return Ok(Attached {
                    mode: AttachedMode::Native,
                    taken_over: false,
                    note: None,
                });
            };
            attach_new(program, dir, device.ifindex, AttachedMode::Generic)
                .map_err(|generic| failed(format!("native: {native}; generic: {generic}")))?;
            let note = format!(
                "{}: native XDP is not possible ({native}); attached in generic mode, which is slower",
                device.name
            );
            Ok(Attached {
                mode: AttachedMode::Generic,
                taken_over: false,
                note: Some(note),
            })
        }
    }
}

/// Replaces the program of a pinned link in place.
fn take_over(program: &mut Xdp, path: &Path) -> Result<(), String> {
    let pinned = PinnedLink::from_pin(path).map_err(|error| chain(&error))?;
    let link = XdpLink::try_from(FdLink::from(pinned)).map_err(|error| chain(&error))?;
    let id = program.attach_to_link(link).map_err(|error| chain(&error))?;
    // The pin holds the link from now on.
    drop(program.take_link(id));
    Ok(())
}

fn attach_new(program: &mut Xdp, dir: &Path, ifindex: u32, mode: AttachedMode) -> Result<(), String> {
    let mut tries = ATTACH_TRIES;
    let id = loop {
        match program.attach_to_if_index(ifindex, mode.xdp()) {
            // The kernel detaches a link a moment after its pin was removed.
            Err(ProgramError::SyscallError(error))
                if tries > 0 && matches!(error.io_error.raw_os_error(), Some(libc::EEXIST | libc::EBUSY)) =>
            {
                tries -= 1;
                sleep(Duration::from_millis(20));
            }
            result => break result.map_err(|error| chain(&error))?,
        }
    };
    let link = program.take_link(id).map_err(|error| chain(&error))?;
    let link = FdLink::try_from(link).map_err(|error| chain(&error))?;
    link.pin(link_path(dir, ifindex, mode))
        .map_err(|error| chain(&error))?;
    Ok(())
}

fn link_path(dir: &Path, ifindex: u32, mode: AttachedMode) -> PathBuf {
    dir.join(format!("{LINK}-{ifindex}-{}", mode.name()))
}

fn link_of(path: &Path) -> Option<(u32, AttachedMode)> {
    let mut parts = path
        .file_name()?
        .to_str()?
        .strip_prefix(LINK)?
        .strip_prefix('-')?
        .split('-');
    let ifindex = parts.next()?.parse().ok()?;
    let mode = parts.next()?;
    AttachedMode::ALL
        .into_iter()
        .find(|known| known.name() == mode)
        .map(|mode| (ifindex, mode))
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = fs::read_dir(dir).map_err(Error::file("read", dir))?;
    entries
        .map(|entry| entry.map(|entry| entry.path()).map_err(Error::file("read", dir)))
        .collect()
}

/// An error with its causes: aya puts the kernel's word last.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let line = inner.to_string();
        if !text.contains(&line) {
            text = format!("{text}: {line}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_read_back() {
        let path = link_path(Path::new("/pins"), 12, AttachedMode::Generic);
        assert_eq!(link_of(&path), Some((12, AttachedMode::Generic)));
        assert_eq!(link_of(Path::new("/pins/HOSTS4")), None);
        assert_eq!(link_of(Path::new("/pins/link-x-native")), None);
    }

    #[test]
    fn a_port_named_twice_is_refused() {
        let port = PortSpec {
            name: "lo".into(),
            role: Role::Core,
        };
        let error = find_devices(&[port.clone(), port]).unwrap_err().to_string();
        assert_eq!(error, "interface lo: named twice");
    }
}
