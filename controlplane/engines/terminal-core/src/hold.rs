//! Packets that wait for their SA: bounded in bytes, in packets and in time.

use core::time::Duration;

use towpath_base::Instant;

use crate::policy::Towards;

/// Most packets held at a time.
const PACKETS: usize = 32;

#[derive(Debug, Clone, Copy)]
struct Held {
    len: usize,
    towards: Towards,
    until: Instant,
}

/// No room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// First in, first out; the packets lie one behind the other in `bytes`.
#[derive(Debug)]
pub(crate) struct HoldQueue<const BYTES: usize> {
    bytes: [u8; BYTES],
    used: usize,
    held: [Option<Held>; PACKETS],
    count: usize,
}

impl<const BYTES: usize> HoldQueue<BYTES> {
    pub(crate) const fn new() -> Self {
        Self {
            bytes: [0; BYTES],
            used: 0,
            held: [None; PACKETS],
            count: 0,
        }
    }

    pub(crate) fn push(
        &mut self,
        now: Instant,
        patience: Duration,
        towards: Towards,
        packet: &[u8],
    ) -> Result<(), Full> {
        let end = self.used.checked_add(packet.len()).ok_or(Full)?;
        let slot = self.held.get_mut(self.count).ok_or(Full)?;
        self.bytes
            .get_mut(self.used..end)
            .ok_or(Full)?
            .copy_from_slice(packet);
        *slot = Some(Held {
            len: packet.len(),
            towards,
            until: now + patience,
        });
        self.used = end;
        self.count += 1;
        Ok(())
    }

    /// Takes out the first packet that `wanted` accepts (it sees what SA it waits for, and the packet), copies it to
    /// `out[headroom..]`; returns its length. A packet that does not fit is taken out all the same, `Some(Err)`.
    pub(crate) fn take(
        &mut self,
        wanted: impl Fn(Towards, &[u8]) -> bool,
        out: &mut [u8],
        headroom: usize,
    ) -> Option<(Towards, Result<usize, Full>)> {
        let (index, offset, len) = self.find(|held, packet| wanted(held.towards, packet))?;
        let towards = self.held.get(index).copied().flatten()?.towards;
        let packet = self.bytes.get(offset..offset + len)?;
        let copied = match out.get_mut(headroom..).and_then(|room| room.get_mut(..len)) {
            Some(room) => {
                room.copy_from_slice(packet);
                Ok(len)
            }
            None => Err(Full),
        };
        self.remove(index, offset, len);
        Some((towards, copied))
    }

    /// Drops what waits for an SA of this kind; returns how many.
    pub(crate) fn drop_waiting(&mut self, towards: Towards) -> u32 {
        self.drop_all(|held| held.towards == towards)
    }

    /// Drops what has waited long enough; returns how many.
    pub(crate) fn drop_stale(&mut self, now: Instant) -> u32 {
        self.drop_all(|held| held.until <= now)
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.held.iter().flatten().map(|held| held.until).min()
    }

    pub(crate) const fn len(&self) -> usize {
        self.count
    }

    fn drop_all(&mut self, which: impl Fn(&Held) -> bool) -> u32 {
        let mut dropped = 0;
        while let Some((index, offset, len)) = self.find(|held, _| which(held)) {
            self.remove(index, offset, len);
            dropped += 1;
        }
        dropped
    }

    fn find(&self, wanted: impl Fn(&Held, &[u8]) -> bool) -> Option<(usize, usize, usize)> {
        let mut offset = 0;
        for (index, held) in self.held.iter().flatten().enumerate() {
            if wanted(held, self.bytes.get(offset..offset + held.len)?) {
                return Some((index, offset, held.len));
            }
            offset += held.len;
        }
        None
    }

    fn remove(&mut self, index: usize, offset: usize, len: usize) {
        self.bytes.copy_within(offset + len..self.used, offset);
        self.used -= len;
        self.held.copy_within(index + 1..self.count, index);
        self.count -= 1;
        if let Some(last) = self.held.get_mut(self.count) {
            *last = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Towards = Towards {
        peer: core::net::IpAddr::V4(core::net::Ipv4Addr::new(10, 0, 0, 1)),
        level: 0,
    };
    const B: Towards = Towards { level: 5, ..A };
    const PATIENCE: Duration = Duration::from_secs(5);

    #[test]
    fn packets_leave_in_order_whoever_they_wait_for() {
        let mut queue = HoldQueue::<16>::new();
        let now = Instant::ZERO;
        for (peer, packet) in [(A, &b"a1"[..]), (B, b"bbb1"), (A, b"a2"), (B, b"b2")] {
            queue.push(now, PATIENCE, peer, packet).unwrap();
        }
        let mut out = [0; 16];
        let mut take = |queue: &mut HoldQueue<16>, peer| {
            let len = queue.take(|p, _| p == peer, &mut out, 2)?.1.unwrap();
            Some(std::vec::Vec::from(&out[2..2 + len]))
        };
        assert_eq!(take(&mut queue, B).unwrap(), b"bbb1");
        assert_eq!(take(&mut queue, A).unwrap(), b"a1");
        assert_eq!(take(&mut queue, B).unwrap(), b"b2");
        assert_eq!(take(&mut queue, B), None);
        assert_eq!(take(&mut queue, A).unwrap(), b"a2");
        assert_eq!((queue.len(), queue.used), (0, 0));
    }

    #[test]
    fn bytes_packets_and_time_are_bounded() {
        let mut queue = HoldQueue::<64>::new();
        queue.push(Instant::ZERO, PATIENCE, A, &[0; 40]).unwrap();
        assert_eq!(queue.push(Instant::ZERO, PATIENCE, A, &[0; 40]), Err(Full));
        for second in 0..PACKETS as u64 - 1 {
            queue.push(Instant::from_secs(second), PATIENCE, B, &[]).unwrap();
        }
        assert_eq!(queue.push(Instant::ZERO, PATIENCE, A, &[]), Err(Full));
        assert_eq!(queue.poll_timeout(), Some(Instant::from_secs(5)));
        assert_eq!(queue.drop_stale(Instant::from_secs(6)), 3);
        assert_eq!(queue.drop_waiting(A), 0);
        assert_eq!(queue.drop_waiting(B), PACKETS as u32 - 3);
        assert_eq!(queue.poll_timeout(), None);
    }

    extern crate std;
}
