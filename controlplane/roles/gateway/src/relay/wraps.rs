//! Connections inside other packets (T14): what the relay's own packets need around them to reach the ends.
//!
//! ```text
//!   around an SA    outer IP | [GRE] | ESP ( TCP )      a pair's, learnt anew with every packet that came so
//!   inside an SA    ESP ( outer IP | [GRE] | TCP )      a connection's, each way
//! ```

use std::collections::HashMap;
use std::time::Duration;

use towpath_base::packet::PacketBuf;
use towpath_base::{DropReason, Instant};
use towpath_common::wire::protocol;
use towpath_ipsec::locate::Flow;
use towpath_ipsec::wrapped::{self, Wrap};
use towpath_tcp::packet::TcpPacket;
use towpath_tcp::relay::{FlowKey, Side};

use super::{Fate, Relay, Room};

/// Connections inside other packets; more pass unrelayed.
const MAX_WRAPPED: usize = 65_536;
/// One that the relay does not have is forgotten after so long.
const UNUSED: Duration = Duration::from_secs(60);

/// Encapsulations of connections.
#[derive(Debug, Default)]
pub(super) struct Wraps {
    flows: HashMap<FlowKey, Inside>,
    /// Bytes around the packet that is being worked on: believed of its pair once its SA vouched for it.
    arriving: u16,
}

/// What is around one connection's packets.
#[derive(Debug)]
struct Inside {
    seen: Instant,
    /// To the terminal, to the network.
    around: [Wrap; 2],
}

const fn index(to: Side) -> usize {
    match to {
        Side::Terminal => 0,
        Side::Network => 1,
    }
}

impl Relay {
    /// As [`Relay::input`], for a packet that is no TCP but may carry some.
    pub(crate) fn input_inside(
        &mut self,
        now: Instant,
        pair: usize,
        from: Side,
        packet: &mut [u8],
        room: impl Fn(bool) -> Room,
    ) -> Fate {
        let Some((wrap, inner)) = wrapped::unwrap(packet) else {
            return Fate::Onward;
        };
        let bytes = packet.get(inner.clone()).unwrap_or_default();
        let tcp = Flow::of(bytes).is_ok_and(|flow| flow.protocol == protocol::TCP);
        let (Some(back), Some(Ok(parsed))) = (wrap.reversed(), tcp.then(|| TcpPacket::parse(bytes))) else {
            return Fate::Onward;
        };
        let key = FlowKey::of(from, &parsed);
        if !self.wraps.learn(now, key, from.opposite(), wrap, back) {
            return Fate::Onward;
        }
        let room = |_| {
            let Room { terminal, network } = room(wrap.is_v4());
            Room {
                terminal: terminal.saturating_sub(wrap.len()),
                network: network.saturating_sub(wrap.len()),
            }
        };
        let fate = match packet.get_mut(inner) {
            Some(bytes) => self.input(now, pair, from, bytes, room),
            None => Fate::Broken,
        };
        if fate == Fate::Onward {
            wrapped::mend(packet, &wrap);
        }
        fate
    }

    /// Puts around the plain packet of the relay what its connection has around it; returns how many bytes that are.
    pub(crate) fn wrap_inside(
        &self,
        to: Side,
        name: u16,
        packet: &mut PacketBuf<'_>,
    ) -> Result<u16, DropReason> {
        if self.wraps.flows.is_empty() {
            return Ok(0);
        }
        let inside = TcpPacket::parse(packet.bytes()).ok().and_then(|tcp| {
            let key = FlowKey::of(to.opposite(), &tcp);
            self.wraps.flows.get(&key)
        });
        let Some(inside) = inside else { return Ok(0) };
        let [terminal, network] = &inside.around;
        let wrap = if to == Side::Terminal { terminal } else { network };
        let wrap = wrap.fresh(name, packet.bytes());
        wrap.put(packet).ok_or(DropReason::NoHeadroom)?;
        Ok(wrap.len())
    }

    /// A valid packet of `pair` to side `to` came with `wrap` around it.
    pub(crate) fn note_around(&mut self, now: Instant, pair: usize, to: Side, wrap: Wrap) {
        let place = self.pairs.get_mut(pair);
        if let Some(place) = place.and_then(|pair| pair.around.get_mut(index(to))) {
            match place {
                Some(known) => **known = (now, wrap),
                None => *place = Some(Box::new((now, wrap))),
            }
        }
    }

    /// What packets of `pair` have around them towards side `to`, if the last one had.
    pub(crate) fn around(&self, pair: usize, to: Side) -> Option<Wrap> {
        let pair = self.pairs.get(pair)?;
        let (learnt, wrap) = **pair.around.get(index(to))?.as_ref()?;
        let plain = match to {
            Side::Terminal => pair.to_terminal,
            Side::Network => pair.to_network,
        };
        plain.is_none_or(|(at, _)| at <= learnt).then_some(wrap)
    }

    /// Bytes that are put around packets of `pair`, at most: a connection is opened before the other way has shown itself.
    pub(crate) fn overhead(&self, pair: usize) -> u16 {
        let len = |to| self.around(pair, to).map_or(0, |wrap| wrap.len());
        let known = len(Side::Terminal).max(len(Side::Network));
        known.max(self.wraps.arriving)
    }

    /// The packet that comes next has `len` bytes around it.
    pub(crate) const fn arriving(&mut self, len: u16) {
        self.wraps.arriving = len;
    }

    /// Connections that ended need nothing around them any more.
    pub(super) fn forget_wraps(&mut self, now: Instant) {
        let Self { wraps, split, .. } = self;
        wraps.flows.retain(|key, inside| {
            now.saturating_since(inside.seen) < UNUSED || split.origin(now, key).is_some()
        });
    }
}

impl Wraps {
    /// A packet of `key` to side `to` had `wrap` around it, `back` is that the other way round. False if there is no room.
    fn learn(&mut self, now: Instant, key: FlowKey, to: Side, wrap: Wrap, back: Wrap) -> bool {
        if let Some(inside) = self.flows.get_mut(&key) {
            inside.seen = now;
            let [terminal, network] = &mut inside.around;
            *(if to == Side::Terminal { terminal } else { network }) = wrap;
            return true;
        }
        if self.flows.len() >= MAX_WRAPPED {
            return false;
        }
        let around = match to {
            Side::Terminal => [wrap, back],
            Side::Network => [back, wrap],
        };
        self.flows.insert(key, Inside { seen: now, around });
        true
    }
}
