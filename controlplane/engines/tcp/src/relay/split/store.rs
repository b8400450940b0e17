//! Where flows are kept: alive while something happens, as their snapshot while nothing does.

use alloc::borrow::Cow;
use alloc::boxed::Box;
use alloc::vec::Vec;

use towpath_base::Instant;

use super::Opening;
use super::backlog::Place;
use crate::codec::{Codec, Reader, Writer};
use crate::relay::flow::Flow;
use crate::timer::Timer;

/// A flow in one of its two forms.
enum Stored {
    Live(Box<Live>),
    /// Its encoding, packed, written at that time.
    Parked(Box<[u8]>, Instant),
}

/// A place in the relay's table. What only matters while something happens is in [`Live`].
pub(super) struct Slot {
    stored: Stored,
    /// The deadline registered for it.
    pub(super) deadline: Option<(Instant, Timer)>,
    /// The path it belongs to.
    pub(super) tag: u64,
}

/// A flow on which something happens, or did lately.
pub(super) struct Live {
    pub(super) flow: Flow,
    /// It stands in the queue of those with something to send.
    pub(super) ready: bool,
    /// Segments arrived whose consequences are not drawn yet.
    pub(super) changed: bool,
    /// Its number in the queue of those that may fall silent; zero before it stands there.
    pub(super) watch: u64,
    /// Its place among those not yet open.
    pub(super) waits: Option<Place>,
    /// What was chosen for it.
    pub(super) opening: Opening,
    /// Bytes in its buffers when last counted.
    pub(super) buffered: usize,
    /// What it learnt of its paths was noted.
    pub(super) learnt: bool,
}

impl Live {
    fn new(flow: Flow, opening: Opening) -> Box<Self> {
        let learnt = flow.is_over() && flow.counted;
        Box::new(Self {
            flow,
            ready: false,
            changed: false,
            watch: 0,
            waits: None,
            opening,
            buffered: 0,
            // Only a connection that waits to be forgotten is over when it is woken.
            learnt,
        })
    }
}

impl Slot {
    /// A place for a flow.
    pub(super) fn new(flow: Flow, tag: u64, opening: Opening) -> Self {
        Self {
            stored: Stored::Live(Live::new(flow, opening)),
            deadline: None,
            tag,
        }
    }

    /// The flow, woken if it was parked.
    pub(super) fn live(&mut self) -> Option<&mut Live> {
        if let Stored::Parked(bytes, at) = &self.stored {
            let flow = decode(bytes, *at)?;
            // What was chosen for its opening has had its effect.
            self.stored = Stored::Live(Live::new(flow, Opening::default()));
        }
        self.awake()
    }

    /// The flow, if it is not parked.
    pub(super) fn awake(&mut self) -> Option<&mut Live> {
        match &mut self.stored {
            Stored::Live(live) => Some(live),
            Stored::Parked(..) => None,
        }
    }

    /// As [`Slot::awake`], for a look.
    pub(super) fn seen_awake(&self) -> Option<&Live> {
        match &self.stored {
            Stored::Live(live) => Some(live),
            Stored::Parked(..) => None,
        }
    }

    /// The flow for a look, without waking it.
    pub(super) fn look(&self) -> Option<Cow<'_, Flow>> {
        match &self.stored {
            Stored::Live(live) => Some(Cow::Borrowed(&live.flow)),
            Stored::Parked(bytes, at) => decode(bytes, *at).map(Cow::Owned),
        }
    }

    /// Keeps only the encoding of a flow for which nothing is to be done but wait.
    pub(super) fn park(&mut self, now: Instant) {
        if let Stored::Live(live) = &mut self.stored {
            live.flow.trim();
            let mut writer = Writer::new(now);
            live.flow.encode(&mut writer);
            self.stored = Stored::Parked(pack(&writer.bytes), now);
        }
    }

    /// Bytes of memory it takes beside its place in the table.
    pub(super) fn memory(&self) -> usize {
        match &self.stored {
            Stored::Live(live) => size_of::<Live>() + live.flow.memory(),
            Stored::Parked(bytes, _) => bytes.len(),
        }
    }
}

fn decode(packed: &[u8], at: Instant) -> Option<Flow> {
    Flow::decode(&mut Reader::new(&unpack(packed), at)).ok()
}

/// Longest run of either kind.
const RUN: usize = 128;

/// Most bytes of a snapshot are zero: runs of them become one byte. A byte below 128 announces so many literal
/// bytes and one more, any other that many zeros, less 127.
fn pack(bytes: &[u8]) -> Box<[u8]> {
    let mut packed = Vec::with_capacity(bytes.len() / 2);
    let mut rest = bytes;
    while let Some(first) = rest.first() {
        let zero = *first == 0;
        // A lone zero among others costs less as a literal.
        let ends = |index: usize| match (zero, rest.get(index), rest.get(index + 1)) {
            (_, None, _) => true,
            (true, Some(byte), _) => *byte != 0,
            (false, Some(byte), next) => *byte == 0 && next.is_none_or(|next| *next == 0),
        };
        let len = (1..=RUN.min(rest.len()))
            .find(|index| ends(*index))
            .unwrap_or(RUN.min(rest.len()));
        let Some((run, behind)) = rest.split_at_checked(len) else {
            break;
        };
        let token = (len - 1) as u8;
        if zero {
            packed.push(token | 0x80);
        } else {
            packed.push(token);
            packed.extend_from_slice(run);
        }
        rest = behind;
    }
    packed.into_boxed_slice()
}

fn unpack(packed: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(packed.len() * 3);
    let mut rest = packed;
    while let Some((token, behind)) = rest.split_first() {
        let len = usize::from(token & 0x7f) + 1;
        if token & 0x80 != 0 {
            bytes.resize(bytes.len() + len, 0);
            rest = behind;
        } else {
            let Some((run, behind)) = behind.split_at_checked(len) else {
                break;
            };
            bytes.extend_from_slice(run);
            rest = behind;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_back_and_zeros_cost_little() {
        let mut seed = 0x2545_f491_u32;
        for len in [0, 1, 2, 127, 128, 129, 130, 300, 2000] {
            for share in [0, 1, 4, 16] {
                let bytes: Vec<u8> = (0..len)
                    .map(|_| {
                        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        if seed >> 28 < share { (seed >> 8) as u8 } else { 0 }
                    })
                    .collect();
                assert_eq!(unpack(&pack(&bytes)), bytes, "{len} {share}");
            }
        }
        assert_eq!(pack(&[0; 256]).len(), 2);
        // Never much longer than it was.
        assert!(pack(&[7; 1280]).len() <= 1290);
    }
}
