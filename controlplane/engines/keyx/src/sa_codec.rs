//! An SA as it travels in a key transfer.

use core::net::IpAddr;

use towpath_base::Spi;
use towpath_base::sa::{ChildSa, EspKeys, EspSuite, Lifetime, MAX_SELECTORS, Mode, Selectors, UdpEncap};
use towpath_base::selector::TrafficSelector;

use crate::codec::{Reader, Writer};

const FLAG_ESN: u8 = 1;
const FLAG_ENCAP: u8 = 2;

/// An address in IPv6, with its family.
const ADDRESS_LEN: usize = 1 + 16;
/// Protocol, two ports, two addresses.
const SELECTOR_LEN: usize = 1 + 2 + 2 + 2 * ADDRESS_LEN;
/// Longest description of an SA: every address in IPv6, every place for a selector used, the longest keys.
pub(crate) const MAX_LEN: usize =
    40 + 2 * ADDRESS_LEN + 2 * longest_keys() + 2 * (1 + MAX_SELECTORS * SELECTOR_LEN);

const fn longest_keys() -> usize {
    let mut longest = 0;
    let mut rest = EspSuite::ALL;
    while let [suite, others @ ..] = rest {
        if suite.key_material_len() > longest {
            longest = suite.key_material_len();
        }
        rest = others;
    }
    longest
}

pub(crate) fn write(w: &mut Writer<'_>, sa: &ChildSa, level: u8) -> Option<()> {
    // Exhaustive, so that a new field breaks the build here.
    let ChildSa {
        local,
        remote,
        suite,
        mode,
        esn,
        encap,
        spi_in,
        spi_out,
        keys_in,
        keys_out,
        local_ts,
        remote_ts,
        lifetime,
    } = sa;
    w.u8(suite.code())?;
    w.u8(mode.code())?;
    let encap_flag = if encap.is_some() { FLAG_ENCAP } else { 0 };
    w.u8(if *esn { FLAG_ESN } else { 0 } | encap_flag)?;
    w.u8(level)?;
    w.u32(spi_in.0)?;
    w.u32(spi_out.0)?;
    w.u16(encap.map_or(0, |encap| encap.local_port))?;
    w.u16(encap.map_or(0, |encap| encap.remote_port))?;
    w.u32(lifetime.soft_seconds)?;
    w.u32(lifetime.hard_seconds)?;
    w.u64(lifetime.soft_bytes)?;
    w.u64(lifetime.hard_bytes)?;
    w.address(*local)?;
    w.address(*remote)?;
    write_keys(w, *suite, keys_in)?;
    write_keys(w, *suite, keys_out)?;
    write_selectors(w, local_ts)?;
    write_selectors(w, remote_ts)
}

// A description of an SA is large, and has one caller: not copied from frame to frame.
#[inline(always)]
pub(crate) fn read(r: &mut Reader<'_>, level: &mut u8) -> Option<ChildSa> {
    let suite = EspSuite::from_code(r.u8()?)?;
    let mode = Mode::from_code(r.u8()?)?;
    if mode == Mode::Wildcard {
        return None;
    }
    let flags = r.u8()?;
    if flags & !(FLAG_ESN | FLAG_ENCAP) != 0 {
        return None;
    }
    *level = r.u8()?;
    let (spi_in, spi_out) = (Spi(r.u32()?), Spi(r.u32()?));
    let (local_port, remote_port) = (r.u16()?, r.u16()?);
    let lifetime = Lifetime {
        soft_seconds: r.u32()?,
        hard_seconds: r.u32()?,
        soft_bytes: r.u64()?,
        hard_bytes: r.u64()?,
    };
    let (local, remote) = (r.address()?, r.address()?);
    if local.is_ipv4() != remote.is_ipv4() {
        return None;
    }
    let material = suite.key_material_len();
    Some(ChildSa {
        local,
        remote,
        suite,
        mode,
        esn: flags & FLAG_ESN != 0,
        encap: (flags & FLAG_ENCAP != 0).then_some(UdpEncap {
            local_port,
            remote_port,
        }),
        spi_in,
        spi_out,
        keys_in: EspKeys::split(suite, r.bytes(material)?)?,
        keys_out: EspKeys::split(suite, r.bytes(material)?)?,
        local_ts: read_selectors(r)?,
        remote_ts: read_selectors(r)?,
        lifetime,
    })
}

/// Cipher key, salt, integrity key: the order of RFC 7296 §2.17. Lengths follow from the suite.
fn write_keys(w: &mut Writer<'_>, suite: EspSuite, keys: &EspKeys) -> Option<()> {
    if keys.cipher.len() + keys.integrity.len() != suite.key_material_len() {
        return None;
    }
    w.bytes(keys.cipher.expose())?;
    w.bytes(keys.integrity.expose())
}

fn write_selectors(w: &mut Writer<'_>, selectors: &Selectors) -> Option<()> {
    w.u8(selectors.iter().count() as u8)?;
    for selector in selectors.iter() {
        w.u8(selector.protocol)?;
        w.u16(selector.first_port)?;
        w.u16(selector.last_port)?;
        w.address(selector.first)?;
        w.address(selector.last)?;
    }
    Some(())
}

fn read_selectors(r: &mut Reader<'_>) -> Option<Selectors> {
    let count = usize::from(r.u8()?);
    if count > MAX_SELECTORS {
        return None;
    }
    let mut selectors = Selectors::EMPTY;
    for _ in 0..count {
        selectors.push(read_selector(r)?)?;
    }
    Some(selectors)
}

fn read_selector(r: &mut Reader<'_>) -> Option<TrafficSelector> {
    let (protocol, first_port, last_port) = (r.u8()?, r.u16()?, r.u16()?);
    let (first, last): (IpAddr, IpAddr) = (r.address()?, r.address()?);
    let in_order = first.is_ipv4() == last.is_ipv4() && first <= last && first_port <= last_port;
    in_order.then_some(TrafficSelector {
        first,
        last,
        protocol,
        first_port,
        last_port,
    })
}
