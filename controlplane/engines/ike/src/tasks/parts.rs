//! The payloads of a message by kind.

use towpath_base::selector::TrafficSelector;

use crate::wire::{Id, Notify, NotifyType, Payload, Proposal};

/// Cert Encoding: X.509 Certificate - Signature (RFC 7296 §3.6). Hash and URL are never announced, so never fetched.
pub(crate) const X509_SIGNATURE: u8 = 4;

/// What an exchange looks for in a message. Payloads of other kinds are ignored.
#[derive(Debug, Default)]
pub(crate) struct Parts<'p> {
    pub(crate) sa: Option<&'p [Proposal]>,
    pub(crate) ke: Option<(u16, &'p [u8])>,
    pub(crate) nonce: Option<&'p [u8]>,
    pub(crate) id_i: Option<&'p Id<'p>>,
    pub(crate) id_r: Option<&'p Id<'p>>,
    pub(crate) auth: Option<(u8, &'p [u8])>,
    pub(crate) ts_i: Option<&'p [TrafficSelector]>,
    pub(crate) ts_r: Option<&'p [TrafficSelector]>,
    all: &'p [Payload<'p>],
}

impl<'p> Parts<'p> {
    /// `None` if a payload that stands alone comes twice.
    pub(crate) fn collect(payloads: &'p [Payload<'p>]) -> Option<Self> {
        fn once<T>(slot: &mut Option<T>, value: T) -> Option<()> {
            slot.replace(value).is_none().then_some(())
        }
        let mut parts = Self {
            all: payloads,
            ..Self::default()
        };
        for payload in payloads {
            match payload {
                Payload::Sa(proposals) => once(&mut parts.sa, proposals.as_slice())?,
                Payload::Ke { group, data } => once(&mut parts.ke, (*group, data.as_ref()))?,
                Payload::Nonce(nonce) => once(&mut parts.nonce, nonce.as_ref())?,
                Payload::IdI(id) => once(&mut parts.id_i, id)?,
                Payload::IdR(id) => once(&mut parts.id_r, id)?,
                Payload::Auth { method, data } => once(&mut parts.auth, (*method, data.as_ref()))?,
                Payload::TsI(selectors) => once(&mut parts.ts_i, selectors.as_slice())?,
                Payload::TsR(selectors) => once(&mut parts.ts_r, selectors.as_slice())?,
                _ => {}
            }
        }
        Some(parts)
    }

    pub(crate) fn payloads(&self) -> &'p [Payload<'p>] {
        self.all
    }

    pub(crate) fn notifies(&self) -> impl Iterator<Item = &'p Notify<'p>> {
        self.all.iter().filter_map(|payload| match payload {
            Payload::Notify(notify) => Some(notify),
            _ => None,
        })
    }

    pub(crate) fn notify(&self, kind: NotifyType) -> Option<&'p Notify<'p>> {
        self.notifies().find(|notify| notify.kind == kind)
    }

    /// X.509 certificates, in the order they were sent.
    pub(crate) fn certificates(&self) -> impl Iterator<Item = &'p [u8]> {
        self.all.iter().filter_map(|payload| match payload {
            Payload::Cert { encoding, data } if *encoding == X509_SIGNATURE => Some(data.as_ref()),
            _ => None,
        })
    }

    /// The first error notify.
    pub(crate) fn error(&self) -> Option<NotifyType> {
        self.notifies()
            .map(|notify| notify.kind)
            .find(|kind| kind.is_error())
    }
}
