//! How a packet lies in ESP or AH, where the SA leaves it open: mode `wildcard` (RFC 4301 §4.4.2.1).

use core::net::IpAddr;

use towpath_base::sa::Mode;
use towpath_common::wire::protocol;

use crate::ip::Ip;

/// Whether a received packet is to be taken for a tunnel's. IP inside IP in transport mode looks exactly like tunnel mode,
/// so under `wildcard` it is that.
#[inline]
pub(crate) const fn came_tunnelled(mode: Mode, next_header: u8) -> bool {
    match mode {
        Mode::Transport => false,
        Mode::Tunnel => true,
        Mode::Wildcard => is_ip(next_header),
    }
}

/// Whether the packet with the header `ip` needs a tunnel between `local` and `remote`: under `wildcard` all that `follow`
/// one, and all but whole packets between these two, which are not IP in IP (the far end would take the outer header off,
/// too).
#[inline]
pub(crate) fn needs_tunnel(mode: Mode, follow: bool, ip: &Ip, local: IpAddr, remote: IpAddr) -> bool {
    match mode {
        Mode::Transport => false,
        Mode::Tunnel => true,
        Mode::Wildcard => {
            let between = ip.source == local && ip.destination == remote;
            follow || !between || ip.fragment || is_ip(ip.protocol)
        }
    }
}

/// Whether sizes are to be reckoned as in a tunnel: under `wildcard` the longer headers count, so that either fits.
#[inline]
pub(crate) const fn reckoned_tunnelled(mode: Mode) -> bool {
    matches!(mode, Mode::Tunnel | Mode::Wildcard)
}

/// IPv4 or IPv6 comes next.
#[inline]
pub(crate) const fn is_ip(next_header: u8) -> bool {
    matches!(next_header, protocol::IPIP | protocol::IPV6)
}
