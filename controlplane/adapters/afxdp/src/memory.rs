//! The kernel's part of the rings, played by a test.

use towpath_common::abi::DivertMeta;
use zerocopy::IntoBytes;

use crate::config::Config;
use crate::ring::{Consumer, Descriptor, Producer, Shared};
use crate::socket::Rings;
use crate::umem::{Area, HEADROOM};

/// A device that exists in memory: what it is given arrives at the engine, what the engine sends can be taken
/// from it.
#[derive(Debug)]
pub struct MemoryPort {
    area: Area,
    receive: Producer<Descriptor>,
    fill: Consumer<u64>,
    transmit: Consumer<Descriptor>,
    completion: Producer<u64>,
}

pub(crate) fn port(config: &Config, area: &Area) -> (Rings, MemoryPort) {
    let (receive_in, receive_out) = Shared::local(config.receive_ring);
    let (fill_in, fill_out) = Shared::local(config.fill_ring);
    let (transmit_in, transmit_out) = Shared::local(config.transmit_ring);
    let (completion_in, completion_out) = Shared::local(config.completion_ring);
    let rings = Rings {
        receive: receive_out,
        fill: fill_in,
        transmit: transmit_in,
        completion: completion_out,
    };
    let end = MemoryPort {
        area: area.clone(),
        receive: receive_in,
        fill: fill_out,
        transmit: transmit_out,
        completion: completion_in,
    };
    (rings, end)
}

impl MemoryPort {
    /// A packet comes in from the network and is diverted with `meta`; false if it is lost because it does not
    /// fit, or no frame or no room is there.
    pub fn inject(&mut self, meta: &DivertMeta, packet: &[u8]) -> bool {
        let start = HEADROOM as usize;
        let end = start + packet.len();
        if end > self.area.frame_size() as usize || self.receive.free() == 0 {
            return false;
        }
        let Some((index, _)) = self.fill.take().and_then(|address| self.area.locate(address)) else {
            return false;
        };
        self.fill.release();
        // SAFETY: the index came out of the fill ring, so this end holds it.
        let bytes = unsafe { self.area.bytes_mut(index) };
        bytes[start - DivertMeta::LEN..start].copy_from_slice(meta.as_bytes());
        bytes[start..end].copy_from_slice(packet);
        let address = self.area.address(index, HEADROOM);
        let put = self.receive.put(Descriptor {
            address,
            len: packet.len() as u32,
            options: 0,
        });
        self.receive.publish();
        put
    }

    /// Takes the next packet the engine sent, and completes it.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        let mut packet = Vec::new();
        self.take_into(&mut packet).then_some(packet)
    }

    /// Like [`MemoryPort::take`], into a buffer that is used again; false if nothing was sent.
    pub fn take_into(&mut self, packet: &mut Vec<u8>) -> bool {
        if self.completion.free() == 0 {
            return false;
        }
        let Some(descriptor) = self.transmit.take() else {
            return false;
        };
        self.transmit.release();
        packet.clear();
        if let Some((index, offset)) = self.area.locate(descriptor.address) {
            let range = offset as usize..offset as usize + descriptor.len as usize;
            // SAFETY: the index came out of the transmit ring, so this end holds it until it is completed.
            packet.extend_from_slice(unsafe { self.area.bytes(index) }.get(range).unwrap_or(&[]));
        }
        self.completion.put(descriptor.address);
        self.completion.publish();
        true
    }
}
