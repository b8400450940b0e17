//! Forwarding of ordinary packets: routing by the kernel's tables, and the rewriting a router does.

use aya_ebpf::helpers::bpf_fib_lookup;
use aya_ebpf::programs::XdpContext;
use towpath_common::DropReason;
use towpath_common::counter::{FibStatus, PassReason};
use towpath_common::headers::{Headers, Window};
use towpath_common::wire::checksum_update16;

use crate::Outcome;
use crate::frame::Frame;
use crate::tables;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// `BPF_FIB_LKUP_RET_*` of `linux/bpf.h`.
mod ret {
    pub const SUCCESS: i64 = 0;
    pub const NO_NEIGH: i64 = 7;
    pub const FRAG_NEEDED: i64 = 8;
}

/// `struct bpf_fib_lookup` of `linux/bpf.h`, its unions reduced to the members used here.
#[repr(C)]
struct FibLookup {
    family: u8,
    l4_protocol: u8,
    sport: u16,
    dport: u16,
    /// In: length of the IP packet, to be checked against the MTU. Out: the MTU.
    tot_len: u16,
    /// In: the interface the packet came in through. Out: the one it leaves through.
    ifindex: u32,
    /// In: TOS in the first byte (IPv4). Out: route metric.
    tos: [u8; 4],
    /// Bytes in network order; IPv4 uses the first word.
    source: [u32; 4],
    destination: [u32; 4],
    vlan: [u16; 2],
    smac: [u16; 3],
    dmac: [u16; 3],
}

const _: () = assert!(size_of::<FibLookup>() == 64);

/// The next hop of a packet. MAC addresses as 16-bit pieces with bytes in network order.
pub struct Route {
    pub status: FibStatus,
    pub egress: u32,
    pub smac: [u16; 3],
    pub dmac: [u16; 3],
}

/// Asks the kernel where the packet would go.
#[inline(always)]
pub fn route(ctx: &XdpContext, headers: &Headers) -> Route {
    let mut fib = FibLookup {
        family: AF_INET6,
        l4_protocol: 0,
        sport: 0,
        dport: 0,
        tot_len: (headers.end - headers.l3_offset) as u16,
        ifindex: ctx.ingress_ifindex() as u32,
        tos: [0; 4],
        source: headers.source.words,
        destination: headers.destination.words,
        vlan: [0; 2],
        smac: [0; 3],
        dmac: [0; 3],
    };
    if headers.v4 {
        fib.family = AF_INET;
        fib.tos = [headers.tos, 0, 0, 0];
        fib.source = [headers.source.key4().word, 0, 0, 0];
        fib.destination = [headers.destination.key4().word, 0, 0, 0];
    }
    // SAFETY: the context of the running program and a structure of the size passed.
    let answer = unsafe {
        bpf_fib_lookup(
            ctx.ctx.cast(),
            (&raw mut fib).cast(),
            size_of::<FibLookup>() as i32,
            0,
        )
    };
    let status = match answer {
        ret::SUCCESS if tables::may_transmit(fib.ifindex) => FibStatus::Resolved,
        ret::SUCCESS => FibStatus::EgressNotPort,
        ret::NO_NEIGH => FibStatus::NoNeighbour,
        ret::FRAG_NEEDED => FibStatus::TooBig,
        _ => FibStatus::NotForwarded,
    };
    Route {
        status,
        egress: fib.ifindex,
        smac: fib.smac,
        dmac: fib.dmac,
    }
}

/// Forwards the packet or says why the kernel has to.
#[inline(always)]
pub fn run(ctx: &XdpContext, frame: &Frame, headers: &Headers) -> Outcome {
    let route = route(ctx, headers);
    match route.status {
        FibStatus::Resolved => {}
        FibStatus::NoNeighbour => return Outcome::Pass(PassReason::NoNeighbour),
        FibStatus::TooBig => return Outcome::Pass(PassReason::TooBig),
        FibStatus::EgressNotPort => return Outcome::Pass(PassReason::EgressNotPort),
        FibStatus::NotForwarded | FibStatus::Unknown => return Outcome::Pass(PassReason::NotForwarded),
    }
    // From here on the packet is changed: the kernel must not get it any more.
    if rewrite(frame, headers, &route).is_none() {
        return Outcome::Drop(DropReason::Truncated);
    }
    if tables::redirect_to_port(route.egress) {
        Outcome::Forwarded
    } else {
        Outcome::Drop(DropReason::NoRoute)
    }
}

/// TTL or hop limit and MAC addresses. Ordinary packets have no tag, so the IP header is at a fixed place.
#[inline(always)]
fn rewrite(frame: &Frame, headers: &Headers, route: &Route) -> Option<()> {
    const ETHERNET: usize = 14;
    if headers.v4 {
        let ip = frame.at::<20>(ETHERNET)?;
        let old = ip.be16(8);
        let new = old.wrapping_sub(0x0100);
        ip.set_be16(8, new);
        ip.set_be16(10, checksum_update16(ip.be16(10), old, new));
    } else {
        let ip = frame.at::<40>(ETHERNET)?;
        ip.set_u8(7, ip.u8(7).wrapping_sub(1));
    }
    let ethernet = frame.at::<ETHERNET>(0)?;
    for (index, piece) in route.dmac.iter().enumerate() {
        ethernet.set_be16(index * 2, u16::from_be(*piece));
    }
    for (index, piece) in route.smac.iter().enumerate() {
        ethernet.set_be16(6 + index * 2, u16::from_be(*piece));
    }
    Some(())
}
