//! NAT detection (RFC 7296 §2.23).

use core::net::{IpAddr, SocketAddr};

use towpath_base::crypto::{KeyGenerator, Rng};
use towpath_base::ids::IkeSpi;

use super::Parts;
use crate::endpoint::Core;
use crate::sa::{Nat, Path, Sa};
use crate::wire::{NotifyType, Payload};

/// SHA-1(SPIi | SPIr | address | port)
fn hash(keygen: &impl KeyGenerator, spi_i: IkeSpi, spi_r: IkeSpi, end: SocketAddr) -> [u8; 20] {
    let (spi_i, spi_r, port) = (
        spi_i.0.to_be_bytes(),
        spi_r.0.to_be_bytes(),
        end.port().to_be_bytes(),
    );
    match end.ip() {
        IpAddr::V4(ip) => keygen.sha1(&[&spi_i, &spi_r, &ip.octets(), &port]),
        IpAddr::V6(ip) => keygen.sha1(&[&spi_i, &spi_r, &ip.octets(), &port]),
    }
}

/// The two notifies of an IKE_SA_INIT message of ours. To force encapsulation, the source hash is that of nothing.
pub(super) fn payloads<K: KeyGenerator, R: Rng>(sa: &Sa<K>, core: &mut Core<K, R>) -> [Payload<'static>; 2] {
    let source = if sa.policy.as_ref().is_some_and(|policy| policy.force_encap) {
        core.random::<20>()
    } else {
        hash(&core.keygen, sa.spi_i, sa.spi_r, sa.local)
    };
    let destination = hash(&core.keygen, sa.spi_i, sa.spi_r, sa.remote);
    [
        Payload::notify(NotifyType::NAT_DETECTION_SOURCE_IP, source.to_vec()),
        Payload::notify(NotifyType::NAT_DETECTION_DESTINATION_IP, destination.to_vec()),
    ]
}

/// Compares what the peer put into its message, whose SPIs are given, with what the datagram shows.
pub(super) fn detect<K: KeyGenerator, R: Rng>(
    sa: &Sa<K>,
    core: &Core<K, R>,
    path: Path,
    spi_r: IkeSpi,
    parts: &Parts<'_>,
) -> Nat {
    let mut supported = false;
    let mut differs = |kind, end| {
        let seen = hash(&core.keygen, sa.spi_i, spi_r, end);
        let mut told = parts.notifies().filter(|notify| notify.kind == kind).peekable();
        let any = told.peek().is_some();
        supported |= any;
        // A peer with several addresses sends several source hashes.
        any && told.all(|notify| *notify.data != seen)
    };
    let remote = differs(NotifyType::NAT_DETECTION_SOURCE_IP, path.source);
    let local = differs(NotifyType::NAT_DETECTION_DESTINATION_IP, path.destination);
    let forced = supported && sa.policy.as_ref().is_some_and(|policy| policy.force_encap);
    Nat {
        local: local || forced,
        remote,
    }
}
