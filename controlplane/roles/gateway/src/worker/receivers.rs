//! When the kernel hands over what the devices received: each packet at once, or several together.
//!
//! ```text
//!   few packets    device ─► kernel's context ─► receive ring, and the worker is woken      for each
//!   many           device ──(they gather)──► kernel's context ─► receive ring               every 100 µs
//! ```

use towpath_afxdp::Engine;
use towpath_kernel::NapiControl;

use super::pace::REST;

/// Tells the devices.
#[derive(Debug)]
pub(super) struct Receivers {
    napi: Option<NapiControl>,
    /// Contexts that were told to let packets gather.
    gathering: Vec<u32>,
    gather: bool,
}

impl Receivers {
    pub(super) const fn new(napi: Option<NapiControl>) -> Self {
        Self {
            napi,
            gathering: Vec::new(),
            gather: false,
        }
    }

    /// Packets gather before they are handed over: whoever waits for them is not woken for each.
    pub(super) const fn gather(&self) -> bool {
        !self.gathering.is_empty()
    }

    /// From now on packets gather, or each is handed over at once.
    pub(super) fn set(&mut self, engine: &Engine, gather: bool) {
        let Some(napi) = &self.napi else { return };
        if gather == self.gather {
            return;
        }
        self.gather = gather;
        if !gather {
            at_once(napi, &mut self.gathering);
            return;
        }
        for (_, port) in engine.ports() {
            // An interface that is gone has none, and with several queues all of its contexts come with the first.
            let contexts = napi.contexts(port.ifindex).unwrap_or_default();
            self.gathering
                .extend(contexts.into_iter().filter(|_| port.queue == 0));
        }
        self.gathering
            .retain(|context| napi.set_gathering(*context, Some(REST)).is_ok());
    }
}

fn at_once(napi: &NapiControl, gathering: &mut Vec<u32>) {
    for context in gathering.drain(..) {
        // One that is gone meanwhile needs nothing.
        let _ = napi.set_gathering(context, None);
    }
}

impl Drop for Receivers {
    fn drop(&mut self) {
        if let Some(napi) = &self.napi {
            at_once(napi, &mut self.gathering);
        }
    }
}
