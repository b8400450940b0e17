//! What was sent and not yet acknowledged: one entry per segment, in sequence order, with what SACK, RACK
//! and the rate sampler need to know of it (RFC 6675 §3, RFC 8985 §5.2).

use alloc::collections::{BTreeSet, VecDeque};
use alloc::vec::Vec;

use towpath_base::Instant;

use crate::rate::SendMark;
use crate::seq::Offset;

/// Where a sent segment is thought to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// On its way.
    InFlight,
    /// Lost, not yet sent again.
    Lost,
    /// Received out of order.
    Sacked,
}

crate::codec::choice!(Place { InFlight = 0, Lost = 1, Sacked = 2 });

/// A segment sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sent {
    /// First offset.
    pub(crate) start: Offset,
    /// Offset behind the last one.
    pub(crate) end: Offset,
    /// When it was sent last.
    pub(crate) sent_at: Instant,
    /// Where it is.
    pub(crate) place: Place,
    /// Times it was sent again.
    pub(crate) retransmits: u8,
    /// State of the rate sampler when it was sent last.
    pub(crate) mark: SendMark,
}

crate::codec::record!(Sent {
    start,
    end,
    sent_at,
    place,
    retransmits,
    mark
});

impl Sent {
    /// Sequence numbers covered.
    pub(crate) const fn len(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// Sent segments in sequence order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Scoreboard {
    segments: VecDeque<Sent>,
    /// `(sent_at, start)` in the order of sending; entries whose segment was acknowledged or sent again
    /// since are stale and skipped.
    order: VecDeque<(Instant, Offset)>,
    /// Starts of lost segments.
    lost: BTreeSet<Offset>,
    in_flight: u64,
    sacked: u64,
    lost_bytes: u64,
}

crate::codec::record!(Scoreboard {
    segments,
    order,
    lost,
    in_flight,
    sacked,
    lost_bytes
});

impl Scoreboard {
    /// Bytes thought to be in the network (RFC 6675 "pipe").
    pub(crate) const fn in_flight(&self) -> u64 {
        self.in_flight
    }

    /// Bytes the peer holds above the acknowledgment.
    pub(crate) const fn sacked(&self) -> u64 {
        self.sacked
    }

    /// Bytes lost and not yet sent again.
    pub(crate) const fn lost_bytes(&self) -> u64 {
        self.lost_bytes
    }

    /// True when nothing is unacknowledged.
    pub(crate) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    /// Segments unacknowledged.
    pub(crate) fn len(&self) -> usize {
        self.segments.len()
    }

    /// The oldest segment.
    pub(crate) fn first(&self) -> Option<&Sent> {
        self.segments.front()
    }

    /// The newest segment.
    pub(crate) fn last(&self) -> Option<&Sent> {
        self.segments.back()
    }

    /// The first segment in flight that begins at `start` or later.
    pub(crate) fn in_flight_from(&self, start: Offset) -> Option<&Sent> {
        let first = self.segments.partition_point(|segment| segment.start < start);
        self.segments
            .range(first..)
            .take(256)
            .find(|segment| segment.place == Place::InFlight)
    }

    /// Records a segment sent for the first time, behind all others.
    pub(crate) fn push(&mut self, start: Offset, end: Offset, now: Instant, mark: SendMark) {
        self.segments.push_back(Sent {
            start,
            end,
            sent_at: now,
            place: Place::InFlight,
            retransmits: 0,
            mark,
        });
        self.order.push_back((now, start));
        self.in_flight += end.saturating_sub(start);
    }

    fn index_of(&self, start: Offset) -> Option<usize> {
        self.segments
            .binary_search_by_key(&start, |segment| segment.start)
            .ok()
    }

    fn leave(&mut self, segment: &Sent) {
        let len = segment.len();
        match segment.place {
            Place::InFlight => self.in_flight = self.in_flight.saturating_sub(len),
            Place::Sacked => self.sacked = self.sacked.saturating_sub(len),
            Place::Lost => {
                self.lost_bytes = self.lost_bytes.saturating_sub(len);
                self.lost.remove(&segment.start);
            }
        }
    }

    fn enter(&mut self, index: usize, place: Place) {
        let Some(&old) = self.segments.get(index) else {
            return;
        };
        self.leave(&old);
        match place {
            Place::InFlight => self.in_flight += old.len(),
            Place::Sacked => self.sacked += old.len(),
            Place::Lost => {
                self.lost_bytes += old.len();
                self.lost.insert(old.start);
            }
        }
        if let Some(segment) = self.segments.get_mut(index) {
            segment.place = place;
        }
    }

    /// Cuts the segment at `index` in two at `at`, if that lies inside.
    fn split(&mut self, index: usize, at: Offset) {
        let Some(segment) = self.segments.get_mut(index) else {
            return;
        };
        if at <= segment.start || at >= segment.end {
            return;
        }
        let back = Sent {
            start: at,
            ..*segment
        };
        segment.end = at;
        if back.place == Place::Lost {
            self.lost.insert(at);
        }
        self.segments.insert(index + 1, back);
        let position = self
            .order
            .partition_point(|(sent_at, _)| *sent_at <= back.sent_at);
        self.order.insert(position, (back.sent_at, at));
    }

    /// Takes everything before `ack` off; what had not been SACKed before goes to `delivered`.
    pub(crate) fn acknowledge(&mut self, ack: Offset, delivered: &mut Vec<Sent>) {
        while let Some(first) = self.segments.front() {
            if first.start >= ack {
                break;
            }
            if first.end > ack {
                self.split(0, ack);
            }
            let Some(first) = self.segments.pop_front() else {
                break;
            };
            self.leave(&first);
            if first.place != Place::Sacked {
                delivered.push(first);
            }
        }
        if self.segments.is_empty() {
            self.order.clear();
        }
    }

    /// Marks `[start, end)` as received; what is new goes to `delivered`.
    pub(crate) fn sack(&mut self, start: Offset, end: Offset, delivered: &mut Vec<Sent>) {
        let mut index = self.segments.partition_point(|segment| segment.end <= start);
        self.split(index, start);
        if self
            .segments
            .get(index)
            .is_some_and(|segment| segment.start < start)
        {
            index += 1;
        }
        while self
            .segments
            .get(index)
            .is_some_and(|segment| segment.start < end)
        {
            self.split(index, end);
            if let Some(segment) = self.segments.get(index)
                && segment.place != Place::Sacked
            {
                delivered.push(*segment);
                self.enter(index, Place::Sacked);
            }
            index += 1;
        }
    }

    /// Marks the segment that starts at `start` as lost.
    pub(crate) fn mark_lost(&mut self, start: Offset) -> Option<Sent> {
        let index = self.index_of(start)?;
        let segment = *self.segments.get(index)?;
        (segment.place == Place::InFlight).then(|| {
            self.enter(index, Place::Lost);
            segment
        })
    }

    /// Marks every segment lost for which `judge` says so; with `reneged` those SACKed too.
    pub(crate) fn mark_all_lost(&mut self, reneged: bool, judge: impl Fn(usize, &Sent) -> bool) -> u64 {
        let mut bytes = 0;
        for index in 0..self.segments.len() {
            let Some(segment) = self.segments.get(index) else {
                break;
            };
            let candidate = segment.place == Place::InFlight || (reneged && segment.place == Place::Sacked);
            if candidate && judge(index, segment) {
                bytes += segment.len();
                self.enter(index, Place::Lost);
            }
        }
        bytes
    }

    /// Takes every loss back (the timeout or recovery was spurious): the originals are still under way.
    pub(crate) fn unmark_lost(&mut self) {
        while let Some(start) = self.lost.first().copied() {
            match self.index_of(start) {
                Some(index) => self.enter(index, Place::InFlight),
                None => {
                    self.lost.remove(&start);
                }
            }
        }
    }

    /// The first lost segment, cut to at most `limit` bytes.
    pub(crate) fn next_lost(&mut self, limit: u64) -> Option<Sent> {
        let start = *self.lost.first()?;
        let index = self.index_of(start)?;
        self.split(index, start.saturating_add(limit));
        self.segments.get(index).copied()
    }

    /// The segment that starts at `start`, cut to at most `limit` bytes.
    pub(crate) fn cut(&mut self, start: Offset, limit: u64) -> Option<Sent> {
        let index = self.index_of(start)?;
        self.split(index, start.saturating_add(limit));
        self.segments.get(index).copied()
    }

    /// Records that the segment that starts at `start` was sent again.
    pub(crate) fn retransmitted(&mut self, start: Offset, now: Instant, mark: SendMark) {
        let Some(index) = self.index_of(start) else { return };
        self.enter(index, Place::InFlight);
        if let Some(segment) = self.segments.get_mut(index) {
            segment.sent_at = now;
            segment.retransmits = segment.retransmits.saturating_add(1);
            segment.mark = mark;
            self.order.push_back((now, start));
        }
    }

    /// The segment in flight that was sent first, skipping (and forgetting) stale records.
    pub(crate) fn oldest_sent(&mut self) -> Option<Sent> {
        while let Some((sent_at, start)) = self.order.front().copied() {
            if let Some(segment) = self.index_of(start).and_then(|index| self.segments.get(index))
                && segment.sent_at == sent_at
                && segment.place == Place::InFlight
            {
                return Some(*segment);
            }
            self.order.pop_front();
        }
        None
    }

    /// Puts segments back into the order of sending after losses were taken back.
    pub(crate) fn rebuild_order(&mut self) {
        let mut order: Vec<_> = self
            .segments
            .iter()
            .filter(|segment| segment.place == Place::InFlight)
            .map(|segment| (segment.sent_at, segment.start))
            .collect();
        order.sort_unstable();
        self.order = order.into();
    }

    /// Gives unused memory back.
    pub(crate) fn trim(&mut self) {
        if self.segments.is_empty() {
            *self = Self::default();
        }
    }

    pub(crate) fn valid(&self, first: Offset, next: Offset) -> bool {
        let mut at = first;
        let mut sums = [0_u64; 3];
        for segment in &self.segments {
            if segment.start != at || segment.end <= segment.start || segment.end > next {
                return false;
            }
            at = segment.end;
            let sum = match segment.place {
                Place::InFlight => 0,
                Place::Lost => 1,
                Place::Sacked => 2,
            };
            if let Some(sum) = sums.get_mut(sum) {
                *sum += segment.len();
            }
            if (segment.place == Place::Lost) != self.lost.contains(&segment.start) {
                return false;
            }
        }
        let lost = self
            .segments
            .iter()
            .filter(|segment| segment.place == Place::Lost)
            .count();
        sums == [self.in_flight, self.lost_bytes, self.sacked] && lost == self.lost.len() && next < 1 << 62
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board(count: u64) -> Scoreboard {
        let mut board = Scoreboard::default();
        for index in 0..count {
            let at = Instant::from_millis(index);
            board.push(1 + index * 100, 101 + index * 100, at, SendMark::default());
        }
        board
    }

    #[test]
    fn blocks_that_cut_segments_are_counted_by_the_byte() {
        let mut board = board(5);
        let mut delivered = Vec::new();
        board.sack(151, 351, &mut delivered);
        assert_eq!(delivered.iter().map(Sent::len).sum::<u64>(), 200);
        assert_eq!(board.sacked(), 200);
        assert_eq!(board.in_flight(), 300);
        assert!(board.valid(1, 501));
        board.sack(151, 351, &mut delivered);
        assert_eq!(board.sacked(), 200);
        delivered.clear();
        board.acknowledge(401, &mut delivered);
        assert_eq!(delivered.iter().map(Sent::len).sum::<u64>(), 200);
        assert_eq!((board.sacked(), board.in_flight()), (0, 100));
        assert!(board.valid(401, 501));
    }

    #[test]
    fn lost_segments_come_back_in_order_and_shrink_to_the_limit() {
        let mut board = board(5);
        board.mark_lost(201);
        board.mark_lost(1);
        assert_eq!(board.lost_bytes(), 200);
        let first = board.next_lost(40).unwrap();
        assert_eq!((first.start, first.end), (1, 41));
        board.retransmitted(1, Instant::from_secs(1), SendMark::default());
        assert_eq!(board.next_lost(100).unwrap().start, 41);
        assert!(board.valid(1, 501));
        assert_eq!(board.oldest_sent().unwrap().start, 101);
    }
}
