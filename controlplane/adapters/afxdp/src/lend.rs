//! How many frames the kernel has to receive into.
//!
//! It uses them in turn. With thousands, each is long out of the processor's caches when its turn comes, and copying a
//! packet into it costs more than all else that is done with the packet; with a few hundred they stay there. So where packets
//! are copied few are lent, and more as soon as bursts turn out not to fit.

/// Frames lent to a port that copies, at least: what a device hands over at once, several times.
const FEW: u32 = 256;
/// Judgements without a drop after which fewer are lent again.
const CALM: u32 = 60;

/// Frames to begin with.
pub(crate) const fn at_first(zero_copy: bool) -> u32 {
    // A device that receives into them itself wants all its slots filled.
    if zero_copy { u32::MAX } else { FEW }
}

/// The number for one port.
#[derive(Debug)]
pub(crate) struct Lend {
    frames: u32,
    fixed: bool,
    dropped: u64,
    calm: u32,
}

impl Lend {
    pub(crate) const fn new(zero_copy: bool) -> Self {
        Self {
            frames: at_first(zero_copy),
            fixed: zero_copy,
            dropped: 0,
            calm: 0,
        }
    }

    /// Frames the kernel may have.
    pub(crate) const fn frames(&self) -> u32 {
        self.frames
    }

    /// So many packets have been dropped since the start because no frame was there; `most` is what the fill ring holds.
    pub(crate) fn judge(&mut self, dropped: u64, most: u32) {
        if self.fixed {
            return;
        }
        if dropped > self.dropped {
            self.frames = self.frames.saturating_mul(2).min(most.max(FEW));
            self.calm = 0;
        } else {
            self.calm += 1;
            if self.calm >= CALM {
                self.frames = (self.frames / 2).max(FEW);
                self.calm = 0;
            }
        }
        self.dropped = dropped;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bursts_that_did_not_fit_get_more_and_long_calm_takes_it_back() {
        let mut lend = Lend::new(false);
        assert_eq!(lend.frames(), FEW);
        lend.judge(0, 2048);
        assert_eq!(lend.frames(), FEW);
        for (dropped, frames) in [(1, 512), (9, 1024), (10, 2048), (11, 2048)] {
            lend.judge(dropped, 2048);
            assert_eq!(lend.frames(), frames);
        }
        for _ in 1..CALM {
            lend.judge(11, 2048);
            assert_eq!(lend.frames(), 2048);
        }
        for frames in [1024, 512, 256, 256] {
            lend.judge(11, 2048);
            assert_eq!(lend.frames(), frames);
            for _ in 1..CALM {
                lend.judge(11, 2048);
            }
        }
    }

    #[test]
    fn a_device_that_receives_into_them_itself_has_all() {
        let mut lend = Lend::new(true);
        lend.judge(5, 2048);
        assert_eq!(lend.frames(), u32::MAX);
    }
}
