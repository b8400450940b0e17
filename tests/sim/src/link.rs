//! One direction of a link in virtual time: the model of `towpath-linkem`, which real interfaces share.

use std::ops::Deref;

use towpath_base::Instant;
use towpath_linkem::model;
pub use towpath_linkem::model::{LinkConfig, LinkReport, Loss};
use towpath_tcp::packet::TcpPacket;

/// A link that carries IP packets.
#[derive(Debug)]
pub struct Link(model::Link<Vec<u8>>);

impl Link {
    /// A link with a random stream of its own.
    pub fn new(config: LinkConfig, seed: u64) -> Self {
        Self(model::Link::new(config, seed))
    }

    /// Changes the longest packet it carries.
    pub const fn set_mtu(&mut self, mtu: usize) {
        self.0.set_mtu(mtu);
    }

    /// Sends a packet.
    pub fn push(&mut self, now: Instant, packet: Vec<u8>) {
        trace(now, &packet);
        self.0.push(now, packet.len(), packet);
    }

    /// A packet that has arrived by `now`.
    pub fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.0.pop(now).map(|(_, packet)| packet)
    }
}

impl Deref for Link {
    type Target = model::Link<Vec<u8>>;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// With `TOWPATH_SIM_TRACE` set, every packet that enters a link is printed.
fn trace(now: Instant, packet: &[u8]) {
    static ON: std::sync::LazyLock<bool> =
        std::sync::LazyLock::new(|| std::env::var_os("TOWPATH_SIM_TRACE").is_some());
    if *ON && let Ok(packet) = TcpPacket::parse(packet) {
        let header = &packet.segment.header;
        println!(
            "{:12.6} {} > {} seq {} len {} ack {} flags {:02x} win {} sack {:?}",
            now.as_nanos() as f64 / 1e9,
            packet.source,
            packet.destination,
            header.seq.0,
            packet.segment.payload.len(),
            header.ack.0,
            header.flags.0,
            header.window,
            header.options.sack.as_slice(),
        );
    }
}
