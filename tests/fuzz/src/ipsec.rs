//! SAs and packets.

use std::net::IpAddr;

use towpath_base::Spi;
use towpath_base::sa::{ChildSa, EspSuite, Lifetime, Mode, Selectors};
use towpath_base::selector::TrafficSelector;
use towpath_base::testutil::esp_keys;

/// SPI of what the local end receives.
pub const SPI_IN: Spi = Spi(0x1001);

/// Local and remote address.
pub fn addresses(v6: bool) -> [IpAddr; 2] {
    if v6 {
        [
            [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(),
            [0x2001, 0xdb8, 0, 0, 0, 0, 0, 2].into(),
        ]
    } else {
        [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()]
    }
}

/// An SA under keys everybody knows.
pub fn child(suite: EspSuite, v6: bool, tunnel: bool) -> ChildSa {
    let [local, remote] = addresses(v6);
    ChildSa {
        local,
        remote,
        suite,
        mode: if tunnel { Mode::Tunnel } else { Mode::Transport },
        esn: false,
        encap: None,
        spi_in: SPI_IN,
        spi_out: Spi(0x2002),
        keys_in: esp_keys(suite, 1),
        keys_out: esp_keys(suite, 2),
        local_ts: Selectors::one(TrafficSelector::any_of(
            if v6 { "::/0" } else { "0.0.0.0/0" }.parse().expect("a prefix"),
        )),
        remote_ts: Selectors::one(TrafficSelector::any_of(
            if v6 { "::/0" } else { "0.0.0.0/0" }.parse().expect("a prefix"),
        )),
        lifetime: Lifetime::default(),
    }
}

/// An IP packet from the remote to the local end.
pub fn ip(v6: bool, protocol: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    let [local, remote] = addresses(v6);
    if v6 {
        packet.extend([0x60, 0, 0, 0]);
        packet.extend((body.len() as u16).to_be_bytes());
        packet.extend([protocol, 64]);
    } else {
        packet.extend([0x45, 0]);
        packet.extend((body.len() as u16 + 20).to_be_bytes());
        packet.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    }
    for address in [remote, local] {
        match address {
            IpAddr::V4(ip) => packet.extend(ip.octets()),
            IpAddr::V6(ip) => packet.extend(ip.octets()),
        }
    }
    packet.extend(body);
    packet
}
