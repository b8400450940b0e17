//! What an SA becomes here: by its keys, hence by its class.

use towpath_base::Instant;
use towpath_base::sa::UdpEncap;
use towpath_fabric::{AhSegments, GatewayKeys};
use towpath_ipsec::ah::AhBridge;
use towpath_ipsec::bridge::Bridge;
use towpath_ipsec::crossing::{Bundle, Crossing};
use towpath_ipsec::highwater::Reserved;
use towpath_ipsec::shared::{SharedBridge, SharedStart};
use towpath_tcp::relay::rules::Class;

use super::relayed::Inspecting;
use super::{InstallError, StoredStart, Suites};

/// An SA ready for packets. At most one of the first three is there; none is class `none`.
pub(super) struct Made<P: Suites> {
    /// Class `full`, the gateway alone sends.
    pub(super) crossing: Option<Crossing<P::Transform, P::Icv>>,
    /// Class `inspect`.
    pub(super) inspecting: Option<Box<Inspecting<P::Decryptor>>>,
    /// Class `full` under the end-to-end keys of ESP.
    pub(super) shared: Option<Box<SharedBridge<P::Transform>>>,
    /// What the relay may do.
    pub(super) class: Class,
    /// Ports of the terminal's UDP encapsulation, where the gateway sends to the peer.
    pub(super) encap: Option<UdpEncap>,
}

/// The sender towards the peer was silent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quiet {
    /// Ports seen from the terminal.
    pub(super) encap: UdpEncap,
    /// Since when.
    pub(super) since: Instant,
}

impl<P: Suites> Made<P> {
    pub(super) fn of(
        provider: &P,
        now: Instant,
        keys: &GatewayKeys,
        start: Option<&StoredStart>,
    ) -> Result<Self, InstallError> {
        let mut made = Self {
            crossing: None,
            inspecting: None,
            shared: None,
            class: Class::None,
            encap: None,
        };
        match keys {
            GatewayKeys::None => {}
            GatewayKeys::Inspect(keys) => {
                let inspecting = Inspecting::new(provider, keys).map_err(InstallError::Key)?;
                made.inspecting = Some(Box::new(inspecting));
                made.class = Class::Inspect;
            }
            GatewayKeys::Shared { sa } => {
                // Without a store behind it no number may be used: it stays in probation.
                let start = start.copied().unwrap_or_default();
                let shared = SharedBridge::new(provider, now, sa, &start.to_peer, &start.to_terminal);
                made.shared = Some(Box::new(shared.map_err(InstallError::Key)?));
            }
            GatewayKeys::Full {
                peer,
                segment_in,
                segment_out,
            } => {
                let bridge = Bridge::new(provider, now, peer, segment_in, segment_out);
                made.crossing = Some(Crossing::Esp(bridge.map_err(InstallError::Key)?));
                made.encap = peer.encap;
            }
            GatewayKeys::Ah(segments) => {
                let bridge = ah(provider, now, segments)?;
                made.crossing = Some(Crossing::Ah(Box::new(bridge)));
            }
            GatewayKeys::AhShared { sa } => {
                let bridge = AhBridge::shared(provider, now, sa).map_err(InstallError::Key)?;
                made.crossing = Some(Crossing::Ah(Box::new(bridge)));
            }
            GatewayKeys::EspInAh {
                peer,
                segment_in,
                segment_out,
                ah: segments,
            } => {
                let esp = Bridge::new(provider, now, peer, segment_in, segment_out);
                let bundle = Bundle {
                    esp: esp.map_err(InstallError::Key)?,
                    ah: ah(provider, now, segments)?,
                };
                made.crossing = Some(Crossing::EspInAh(Box::new(bundle)));
            }
        }
        if made.crossing.is_some() {
            made.class = Class::Full;
        }
        if let Some(start) = start {
            made.start(start)?;
        }
        Ok(made)
    }

    fn start(&mut self, start: &StoredStart) -> Result<(), InstallError> {
        let reserved = |start: &SharedStart| Reserved::above(start.stored, start.limit);
        if let Some(crossing) = &mut self.crossing {
            crossing.start_reserved(reserved(&start.to_peer), reserved(&start.to_terminal));
        }
        let Some(packets) = start.replay_window else {
            return Ok(());
        };
        let chosen = match (&mut self.crossing, &mut self.shared) {
            (Some(crossing), _) => crossing.set_replay_window(packets.into()),
            (None, Some(shared)) => shared.set_replay_window(packets.into()),
            (None, None) => Some(()),
        };
        chosen.ok_or(InstallError::Window)?;
        match (&mut self.crossing, &mut self.shared) {
            (Some(crossing), _) => crossing.resume(&start.used, start.age),
            (None, Some(shared)) => shared.resume(&start.used, start.age),
            (None, None) => {}
        }
        Ok(())
    }
}

fn ah<P: Suites>(
    provider: &P,
    now: Instant,
    segments: &AhSegments,
) -> Result<AhBridge<P::Icv>, InstallError> {
    let AhSegments {
        peer,
        segment_in,
        segment_out,
    } = segments;
    AhBridge::new(provider, now, peer, segment_in, segment_out).map_err(InstallError::Key)
}
