//! SAs whose keys outlive the process: what their senders want stored, and what they have used up.

use towpath_base::crypto::{EspTransform, IcvTransform};
use towpath_ipsec::Used;
use towpath_ipsec::shared::Wanted;

use super::{Datapath, Entry, MAX_NOTICES, Notice, Suites};

/// What such an SA has beside its halves.
#[derive(Debug)]
pub(super) struct Kept {
    /// What its senders asked to have stored, and were not granted yet: to the peer, to the terminal.
    pub(super) asked: [Option<Wanted>; 2],
    /// The number it is stored under; 0 is none.
    pub(super) number: u64,
    /// It is among [`Datapath::keep`]'s next ones.
    touched: bool,
}

impl Kept {
    pub(super) const fn new(number: u64) -> Self {
        Self {
            asked: [None; 2],
            number,
            touched: false,
        }
    }
}

impl<T: EspTransform, I: IcvTransform, D> Entry<T, I, D> {
    /// Tells what the senders want stored, each wish once, and notes that the SA in `slot` has been used.
    pub(super) fn keep(&mut self, slot: usize, notices: &mut Vec<Notice>, touched: &mut Vec<usize>) {
        self.ask(notices);
        if let Some(kept) = self
            .kept
            .as_mut()
            .filter(|kept| !kept.touched && kept.number != 0)
        {
            kept.touched = true;
            touched.push(slot);
        }
    }

    /// Whatever was asked and not answered is asked again.
    pub(super) fn ask_again(&mut self, notices: &mut Vec<Notice>) {
        if let Some(kept) = &mut self.kept {
            kept.asked = [None; 2];
        }
        self.ask(notices);
    }

    fn ask(&mut self, notices: &mut Vec<Notice>) {
        let Some(kept) = &mut self.kept else {
            return;
        };
        let wanted = match (&self.bridge, &self.shared) {
            (Some(bridge), _) => bridge
                .wanted()
                .map(|limit| limit.map(|limit| Wanted { limit, top: None })),
            (None, Some(shared)) => shared.wanted(),
            (None, None) => return,
        };
        for (side, (wanted, asked)) in wanted.into_iter().zip(&mut kept.asked).enumerate() {
            let Some(wanted) = wanted.filter(|_| asked.is_none() && notices.len() < MAX_NOTICES) else {
                continue;
            };
            *asked = Some(wanted);
            notices.push(Notice::Reserve {
                key: self.key,
                to_peer: side == 0,
                wanted,
            });
        }
    }

    fn used(&self) -> Option<Used> {
        match (&self.bridge, &self.shared) {
            (Some(bridge), _) => Some(bridge.used()),
            (None, Some(shared)) => Some(shared.used()),
            (None, None) => None,
        }
    }
}

impl<P: Suites> Datapath<P> {
    /// Tells of every stored SA that was used since the last call what it has used up in all. To be kept before the packets
    /// leave: then a successor accepts none of them again.
    pub fn keep(&mut self, mut tell: impl FnMut(u64, &Used)) {
        for slot in self.touched.drain(..) {
            let Some(entry) = self.entries.get_mut(slot) else {
                continue;
            };
            let used = entry.used();
            if let (Some(kept), Some(used)) = (&mut entry.kept, used) {
                kept.touched = false;
                tell(kept.number, &used);
            }
        }
    }
}
