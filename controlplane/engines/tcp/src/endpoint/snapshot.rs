//! The whole of a connection as bytes, for handoff and for upgrade without interruption.

use alloc::vec::Vec;

use towpath_base::Instant;

use super::{Endpoint, Scratch, State};
use crate::codec::{Codec, Reader, RestoreError, Writer};

/// First bytes of a snapshot.
const MAGIC: u32 = 0x5443_5031;
/// Version written, and the only one read.
const VERSION: u16 = 4;

macro_rules! fields {
    ($apply:ident) => {
        $apply! {
            config, state, closed, negotiated, send_space, unacknowledged, next, peer_window, peer_window_max,
            window_update, outgoing, fin, urgent_out, sent, segment_len, search, early, receive_space, incoming, peer_fin,
            peer_fin_read, urgent_in, window, ack, paws, rtt, rack, tail_probe, repair, sampler, controller,
            pacer, ecn, timers, owed, pending, failures, persist_backoff, keep_alive_failures, syn_sent_at,
            last_sent, last_received, last_progress, challenges, stats
        }
    };
}

impl Codec for Endpoint {
    fn encode(&self, writer: &mut Writer) {
        macro_rules! write {
            ($($field:ident),+) => {{
                let Self { $($field,)+ scratch: Scratch(_) } = self;
                $($field.encode(writer);)+
            }};
        }
        fields!(write);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        macro_rules! read {
            ($($field:ident),+) => {{
                $(let $field = Codec::decode(reader)?;)+
                Self { $($field,)+ scratch: Scratch::default() }
            }};
        }
        let endpoint = fields!(read);
        endpoint.validate()?;
        Ok(endpoint)
    }
}

impl Endpoint {
    /// The connection as it is at `now`, versioned.
    pub fn snapshot(&self, now: Instant) -> Vec<u8> {
        let mut writer = Writer::versioned(now, MAGIC, VERSION);
        self.paws.clock(now).encode(&mut writer);
        self.encode(&mut writer);
        writer.bytes
    }

    /// The connection of a snapshot, going on at `now` of this machine's clock. Deadlines keep their
    /// distance; the timestamp clock goes on where it was.
    pub fn restore(now: Instant, bytes: &[u8]) -> Result<Self, RestoreError> {
        let mut reader = Reader::versioned(bytes, now, MAGIC, VERSION)?;
        let clock = u32::decode(&mut reader)?;
        let mut endpoint = Self::decode(&mut reader)?;
        reader.finish()?;
        endpoint.paws.rebase(clock, now);
        Ok(endpoint)
    }

    /// For an endpoint decoded on its own: its timestamp clock goes on from `then` of the old machine at
    /// `now` of this one.
    pub(crate) const fn rebase_clock(&mut self, then: Instant, now: Instant) {
        self.paws.rebase(self.paws.clock(then), now);
    }

    /// Refuses what no running connection can be, so that the rest of the code need not doubt it.
    fn validate(&self) -> Result<(), RestoreError> {
        let check = |valid: bool, what: &'static str| {
            if valid {
                Ok(())
            } else {
                Err(RestoreError::Invalid(what))
            }
        };
        let bound = 1_u64 << 62;
        if self.state == State::Closed {
            check(
                self.closed.is_some() && self.next < bound && self.unacknowledged < bound,
                "state",
            )?;
            return check(self.incoming.valid(), "receive buffer");
        }
        check(
            self.unacknowledged <= self.next && self.next < bound,
            "send sequence",
        )?;
        check(
            self.sent.valid(self.unacknowledged.max(1), self.next.max(1)),
            "scoreboard",
        )?;
        check(self.incoming.valid(), "receive buffer")?;
        check(self.outgoing.valid(self.unacknowledged), "send buffer")?;
        let end = self.outgoing.end();
        check(self.fin.is_none_or(|fin| fin == end), "FIN")?;
        check(self.next <= self.fin.map_or(end, |fin| fin + 1), "send sequence")?;
        let (window_seq, window_ack) = self.window_update;
        let small = [
            self.peer_window,
            self.peer_window_max,
            window_seq,
            window_ack,
            self.window.edge(),
            self.peer_fin.unwrap_or(0),
            self.urgent_in.unwrap_or(0),
            self.urgent_out.unwrap_or(0),
            self.ecn.reduced_until,
            self.repair.point,
            self.sampler.delivered,
            self.sampler.lost,
            self.window.limit() as u64,
            self.window.size() as u64,
        ];
        check(small.iter().all(|value| *value < bound), "counter")?;
        let mss = self.negotiated.mss;
        check(mss == self.config.segment_size(mss), "segment size")?;
        let before = self.search.before;
        check(
            (before == 0 || before == self.config.segment_size(before))
                && self.search.too_long <= self.search.before.saturating_add(1)
                && self.search.probe.is_none_or(|(_, (_, end))| end <= self.next),
            "probe",
        )?;
        check(
            (1..=u64::from(u16::MAX)).contains(&self.segment_len),
            "segment size",
        )?;
        check(self.negotiated.receive_scale <= 14, "window scale")
    }
}
