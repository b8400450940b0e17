//! The benchmarks' load generator: frames that cost no socket buffer (`dataplane-ebpf/src/load.rs`).

use std::path::Path;

use aya::maps::Array;
use aya::maps::xdp::DevMapHash;
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};
use towpath_common::load::{HEADER, Template};
use zerocopy::FromBytes;

use crate::dataplane::{attach_alone, chain, load_program};
use crate::netdev::net_device;
use crate::object::check_object;
use crate::raw::Raw;
use crate::{Error, testrun};

const PROGRAM: &str = "towpath_load";
const DROP_PROGRAM: &str = "towpath_drop";

/// Sends one packet, again and again, out of an interface.
pub struct Generator {
    ebpf: Ebpf,
    ifindex: u32,
    packet: Vec<u8>,
}

impl Generator {
    /// `packet` is a whole frame of at least 64 bytes. Bits of `spread` are drawn at random for each packet and
    /// set in its IPv4 source address. The interface needs a native program attached ([`crate::attach_pass`]).
    pub fn new(object: &Path, interface: &str, packet: &[u8], spread: u32) -> Result<Self, Error> {
        let device = net_device(interface)?;
        let header = packet
            .get(..HEADER)
            .and_then(|bytes| FromBytes::read_from_bytes(bytes).ok());
        let header = header.ok_or_else(|| Error::Limit(format!("a packet of {} bytes", packet.len())))?;
        let failed = |error: &dyn std::error::Error| Error::Load(chain(error));
        let mut ebpf = EbpfLoader::new()
            .load(&check_object(object)?)
            .map_err(|error| failed(&error))?;
        let missing = || Error::Load("the load object lacks a map".into());
        let template = Template {
            ifindex: device.ifindex,
            spread,
            header,
        };
        let mut templates: Array<_, Raw<Template>> = ebpf
            .map_mut("TEMPLATE")
            .ok_or_else(missing)?
            .try_into()
            .map_err(|error| failed(&error))?;
        templates
            .set(0, Raw(template), 0)
            .map_err(|error| failed(&error))?;
        let mut out: DevMapHash<_> = ebpf
            .map_mut("OUT")
            .ok_or_else(missing)?
            .try_into()
            .map_err(|error| failed(&error))?;
        out.insert(device.ifindex, device.ifindex, None, 0)
            .map_err(|error| failed(&error))?;
        load_program(&mut ebpf, PROGRAM)?;
        Ok(Self {
            ebpf,
            ifindex: device.ifindex,
            packet: packet.to_vec(),
        })
    }

    /// Sends `count` packets and returns when the last was sent.
    pub fn send(&self, count: u32) -> Result<(), Error> {
        let program = self
            .ebpf
            .program(PROGRAM)
            .ok_or_else(|| Error::Load(format!("no program {PROGRAM}")))?;
        let program: &Xdp = program.try_into().map_err(|error| Error::Load(chain(&error)))?;
        testrun::run_live(program, self.ifindex, &self.packet, count)
    }
}

/// Attaches a program that drops everything, pinned in `dir`; [`crate::unload`] takes it off.
pub fn attach_drop(object: &Path, interface: &str, dir: &Path) -> Result<(), Error> {
    attach_alone(object, DROP_PROGRAM, interface, dir)
}
