//! Where flows are kept: alive while something happens, as their snapshot while nothing does.

use alloc::borrow::Cow;
use alloc::boxed::Box;

use towpath_base::Instant;

use super::Opening;
use crate::codec::{Codec, Reader, Writer};
use crate::relay::flow::Flow;
use crate::timer::Timer;

/// A flow in one of its two forms.
enum Stored {
    Live(Box<Flow>),
    /// Its encoding, written at that time.
    Parked(Box<[u8]>, Instant),
}

/// A place in the relay's table.
pub(super) struct Slot {
    stored: Stored,
    /// The deadline registered for it.
    pub(super) deadline: Option<(Instant, Timer)>,
    /// It stands in the queue of those with something to send.
    pub(super) ready: bool,
    /// The path it belongs to.
    pub(super) tag: u64,
    /// What was chosen for it.
    pub(super) opening: Opening,
    /// Bytes in its buffers when last counted.
    pub(super) buffered: usize,
}

impl Slot {
    /// A place for a flow.
    pub(super) fn new(flow: Flow, tag: u64, opening: Opening) -> Self {
        Self {
            stored: Stored::Live(Box::new(flow)),
            deadline: None,
            ready: false,
            tag,
            opening,
            buffered: 0,
        }
    }

    /// The flow, woken if it was parked.
    pub(super) fn live(&mut self) -> Option<&mut Flow> {
        if let Stored::Parked(bytes, at) = &self.stored {
            let flow = Flow::decode(&mut Reader::new(bytes, *at)).ok()?;
            self.stored = Stored::Live(Box::new(flow));
        }
        match &mut self.stored {
            Stored::Live(flow) => Some(flow),
            Stored::Parked(..) => None,
        }
    }

    /// The flow for a look, without waking it.
    pub(super) fn look(&self) -> Option<Cow<'_, Flow>> {
        match &self.stored {
            Stored::Live(flow) => Some(Cow::Borrowed(flow)),
            Stored::Parked(bytes, at) => Flow::decode(&mut Reader::new(bytes, *at)).ok().map(Cow::Owned),
        }
    }

    /// Keeps only the encoding of a flow for which nothing is to be done but wait.
    pub(super) fn park(&mut self, now: Instant, silent: impl FnOnce(&Flow) -> bool) -> bool {
        let Stored::Live(flow) = &mut self.stored else {
            return false;
        };
        if self.ready || !silent(flow) {
            return false;
        }
        flow.trim();
        let mut writer = Writer::new(now);
        flow.encode(&mut writer);
        self.stored = Stored::Parked(writer.bytes.into_boxed_slice(), now);
        true
    }

    /// Bytes of memory it takes beside its place in the table.
    pub(super) fn memory(&self) -> usize {
        match &self.stored {
            Stored::Live(flow) => size_of::<Flow>() + flow.memory(),
            Stored::Parked(bytes, _) => bytes.len(),
        }
    }
}
