//! The way to user space: metadata in front of the packet, then the AF_XDP socket of the queue.

use aya_ebpf::helpers::bpf_xdp_adjust_meta;
use aya_ebpf::programs::XdpContext;
use towpath_common::DropReason;
use towpath_common::abi::{
    ABI_VERSION, DivertMeta, META_ACCESS_PORT, META_FROM_TERMINAL, PortInfo, QUEUES_PER_PORT, Role,
};
use towpath_common::counter::{DivertKind, FibStatus, PassReason};
use towpath_common::headers::Headers;

use crate::Outcome;
use crate::{forward, tables};

/// [`DivertMeta`] with natural alignment: the driver's metadata area is aligned to four bytes and the same
/// layout is asserted below.
#[repr(C)]
struct Meta {
    handle: u64,
    abi: u16,
    flags: u16,
    egress_ifindex: u32,
    dmac: [u16; 3],
    smac: [u16; 3],
    l3_offset: u16,
    kind: u8,
    fib: u8,
}

const _: () = {
    assert!(size_of::<Meta>() == DivertMeta::LEN);
    assert!(core::mem::offset_of!(Meta, egress_ifindex) == core::mem::offset_of!(DivertMeta, egress_ifindex));
    assert!(core::mem::offset_of!(Meta, smac) == core::mem::offset_of!(DivertMeta, smac));
    assert!(core::mem::offset_of!(Meta, fib) == core::mem::offset_of!(DivertMeta, fib));
};

/// Diverts the packet; without a socket on its queue it is dropped, and ordinary traffic keeps flowing.
#[inline(always)]
pub fn run(
    ctx: &XdpContext,
    headers: &Headers,
    port: &PortInfo,
    kind: DivertKind,
    handle: u64,
    from_terminal: bool,
) -> Outcome {
    let queue = ctx.rx_queue_index();
    if queue >= QUEUES_PER_PORT {
        return Outcome::Drop(DropReason::NoUserSpace);
    }
    let route = forward::route(ctx, headers);
    // Larger than the next link takes, and not to be cut: the kernel, which does not forward it either, tells the sender.
    let passed_on = matches!(kind, DivertKind::Esp | DivertKind::Ah | DivertKind::NattEsp);
    if passed_on && headers.whole && route.status as u8 == FibStatus::TooBig as u8 {
        return Outcome::Pass(PassReason::TooBig);
    }
    // What the kernel would not forward either is not the relay's: the gateway's own connections, and what is too big.
    let relayed = matches!(kind, DivertKind::Tcp);
    if relayed {
        match route.status {
            FibStatus::Resolved | FibStatus::NoNeighbour => {}
            FibStatus::TooBig => return Outcome::Pass(PassReason::TooBig),
            FibStatus::EgressNotPort => return Outcome::Pass(PassReason::EgressNotPort),
            FibStatus::NotForwarded | FibStatus::Unknown => return Outcome::Pass(PassReason::NotForwarded),
        }
    }
    // SAFETY: the context of the running program.
    if unsafe { bpf_xdp_adjust_meta(ctx.ctx, -(DivertMeta::LEN as i32)) } != 0 {
        return Outcome::Drop(DropReason::NoHeadroom);
    }
    let start = ctx.metadata();
    if start + DivertMeta::LEN > ctx.metadata_end() {
        return Outcome::Drop(DropReason::NoHeadroom);
    }
    let mut flags = if from_terminal { META_FROM_TERMINAL } else { 0 };
    if Role::from_abi(port.role) == Role::Access {
        flags |= META_ACCESS_PORT;
    }
    let resolved = matches!(route.status, FibStatus::Resolved | FibStatus::EgressNotPort);
    let meta = start as *mut Meta;
    // SAFETY: 32 bytes inside the metadata area, checked above; alignment is enforced by the verifier.
    unsafe {
        (*meta).handle = handle;
        (*meta).abi = ABI_VERSION as u16;
        (*meta).flags = flags;
        (*meta).egress_ifindex = if resolved { route.egress } else { 0 };
        (*meta).dmac = route.dmac;
        (*meta).smac = route.smac;
        (*meta).l3_offset = headers.l3_offset as u16;
        (*meta).kind = kind as u8;
        (*meta).fib = route.status as u8;
    }
    if tables::redirect_to_socket(port.xsk_base + queue) {
        Outcome::Divert(kind)
    } else if relayed {
        Outcome::Pass(PassReason::NoRelay)
    } else {
        Outcome::Drop(DropReason::NoUserSpace)
    }
}
