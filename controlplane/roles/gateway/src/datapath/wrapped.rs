//! Packets of terminals inside other packets, as between the agents of Mobile IP (T14).
//!
//! ```text
//!   outer IP | [GRE] | ESP ──► off ──► SA, relay ──► on again ──► outer IP | [GRE] | ESP'
//! ```
//!
//! What the relay says itself goes out with what was around the last packet that way.

use towpath_base::crypto::Rng;
use towpath_base::packet::PacketBuf;
use towpath_base::{DropReason, Instant};
use towpath_ipsec::locate;
use towpath_ipsec::wrapped::{self, Wrap};
use towpath_tcp::relay::Side;

use super::outside::{Contents, Cut, Extra, MAX_EXTRA};
use super::{Arrival, Datapath, Departure, Disposition, Outside, Suites};
use crate::relay::Spoken;

impl<P: Suites> Datapath<P> {
    /// Works on what is inside the IP-in-IP or GRE packet in `packet`, which starts at the outer IP header. What concerns
    /// no SA goes on as it is; IKE for a terminal goes to the control path.
    pub fn process_wrapped(
        &mut self,
        now: Instant,
        arrival: Arrival,
        from_terminal: bool,
        packet: &mut PacketBuf<'_>,
        rng: &mut impl Rng,
    ) -> Disposition {
        let Some((wrap, inner)) = wrapped::unwrap(packet.bytes()) else {
            return Disposition::Forward;
        };
        let bytes = packet.bytes().get(inner.clone()).unwrap_or_default();
        match Contents::of(bytes, from_terminal) {
            Ok(Contents::Protected) => {}
            Ok(Contents::Control) => {
                if self.extra.len() < MAX_EXTRA {
                    let control = Extra::Control(bytes.to_vec());
                    self.extra.push_back(control);
                }
                return Disposition::Queued;
            }
            Ok(Contents::Other) | Err(_) => return Disposition::Forward,
        }
        let Ok(outside) = Outside::of(bytes) else {
            return Disposition::Forward;
        };
        let behind = packet.len().saturating_sub(inner.end);
        if packet.strip_back(behind).is_none() || packet.strip_front(inner.start).is_none() {
            return Disposition::Drop(DropReason::Truncated);
        }
        let before = self.extra.len();
        self.arriving(wrap.len());
        let outcome = self.process(now, arrival, packet, rng);
        self.arriving(0);
        if !matches!(outcome, Disposition::Drop(_)) {
            self.note_around(now, arrival.from_access, &outside, wrap);
        }
        self.wrap_extra(before, &outside, &wrap);
        match outcome {
            Disposition::Forward if wrap.put(packet).is_none() => Disposition::Drop(DropReason::NoHeadroom),
            outcome => outcome,
        }
    }

    const fn arriving(&mut self, len: u16) {
        if let Some(relay) = &mut self.relay {
            relay.arriving(len);
        }
    }

    fn note_around(&mut self, now: Instant, from_access: bool, outside: &Outside, wrap: Wrap) {
        let Outside {
            source,
            destination,
            spi,
        } = *outside;
        let own = self
            .to_peer
            .get(&(source, destination, spi))
            .filter(|_| from_access);
        let (slot, to) = match (own, self.to_terminal.get(&(destination, spi))) {
            (Some(slot), _) => (slot, Side::Network),
            (None, Some(slot)) => (slot, Side::Terminal),
            (None, None) => return,
        };
        let pair = self.entries.get(slot).and_then(|entry| entry.pair);
        if let (Some(relay), Some(pair)) = (&mut self.relay, pair) {
            relay.note_around(now, pair, to, wrap);
        }
    }

    /// Pieces of the packet that was inside belong inside, too; an answer to its sender does not.
    fn wrap_extra(&mut self, before: usize, outside: &Outside, wrap: &Wrap) {
        for extra in self.extra.iter_mut().skip(before) {
            let Extra::Send { packet, .. } = extra else {
                continue;
            };
            let ours = locate::carried(packet).is_ok_and(|piece| piece.destination == outside.destination);
            if !ours {
                continue;
            }
            let room = usize::from(wrap.len());
            let mut whole = vec![0; room + packet.len()];
            if let Some(rest) = whole.get_mut(room..) {
                rest.copy_from_slice(packet);
            }
            let put = PacketBuf::new(&mut whole, room, packet.len()).and_then(|mut buf| wrap.put(&mut buf));
            if put.is_some() {
                *packet = whole;
            }
        }
    }

    /// A packet the relay made leaves inside what is around the pair's packets that way, cut if the whole is too long.
    pub(super) fn wrap_departure(
        &mut self,
        departure: Departure,
        spoken: &Spoken,
        around: Wrap,
        packet: &mut PacketBuf<'_>,
    ) -> Result<Departure, DropReason> {
        let name = self.next_id();
        around
            .fresh(name, packet.bytes())
            .put(packet)
            .ok_or(DropReason::NoHeadroom)?;
        let mtu = self.relay.as_ref().map(|relay| relay.mtus());
        if let Some(mtus) = mtu {
            let mtu = match spoken.to {
                Side::Terminal => mtus.terminal,
                Side::Network => mtus.network,
            };
            let mut cut = Cut {
                extra: &mut self.extra,
                id: &mut self.fragment_id,
            };
            cut.first(packet, mtu, departure.egress)?;
        }
        Ok(departure)
    }

    /// A name for a packet that may be cut on its way.
    pub(super) const fn next_id(&mut self) -> u16 {
        self.fragment_id = self.fragment_id.wrapping_add(1);
        self.fragment_id as u16
    }
}
