//! Towpath's XDP program: asks the classifier, does what the verdict says, counts it.
//!
//! * `frame`: the packet as the verifier lets it be read;
//! * `tables`: the maps, and the classifier's view of them;
//! * `forward`: routing, and the rewriting of an ordinary packet;
//! * `divert`: metadata, and the way to an AF_XDP socket.
//!
//! The verdict itself is `towpath_common::classify`, the same source user space runs.
#![no_std]
#![no_main]

mod divert;
mod forward;
mod frame;
mod tables;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use towpath_common::abi::ABI_VERSION;
use towpath_common::classify_frame;
use towpath_common::counter::{Counter, PassReason};
use towpath_common::headers::Packet;
use towpath_common::{DropReason, Verdict};

use crate::frame::Frame;
use crate::tables::Maps;

/// What happened to a packet: the counter that says so is also the action.
pub type Outcome = Counter;

/// The gateway's program, one per port.
#[xdp]
pub fn towpath(ctx: XdpContext) -> u32 {
    let frame = Frame::new(&ctx);
    let bytes = frame.len() as u64;
    let outcome = run(&ctx, &frame);
    tables::count(outcome, bytes);
    match outcome {
        Outcome::Divert(_) | Outcome::Forwarded => xdp_action::XDP_REDIRECT,
        Outcome::Pass(_) => xdp_action::XDP_PASS,
        Outcome::Drop(_) => xdp_action::XDP_DROP,
    }
}

#[inline(always)]
fn run(ctx: &XdpContext, frame: &Frame) -> Outcome {
    let Some(globals) = tables::globals() else {
        return Outcome::Pass(PassReason::Mismatch);
    };
    if globals.abi_version != ABI_VERSION {
        return Outcome::Pass(PassReason::Mismatch);
    }
    let Some(port) = tables::port(ctx.ingress_ifindex() as u32) else {
        return Outcome::Pass(PassReason::UnknownPort);
    };
    match classify_frame(frame, port, globals, &Maps) {
        (
            Verdict::Divert {
                kind,
                handle,
                from_terminal,
            },
            Some(headers),
        ) => divert::run(ctx, &headers, port, kind, handle, from_terminal),
        (Verdict::Ordinary, Some(headers)) => forward::run(ctx, frame, &headers),
        (Verdict::NotOurs(reason), _) => Outcome::Pass(reason),
        (Verdict::Drop(reason), _) => Outcome::Drop(reason),
        // The classifier diverts and forwards only what it has headers of.
        (_, None) => Outcome::Drop(DropReason::BadIpHeader),
    }
}

/// Leaves everything to the kernel. A veth receives redirected frames only if its peer runs some program.
#[xdp]
pub fn towpath_pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// Read by the loader before anything else (`towpath_common::abi::ABI_SECTION`).
#[unsafe(no_mangle)]
#[unsafe(link_section = "towpath_abi")]
static TOWPATH_ABI: [u8; 4] = ABI_VERSION.to_le_bytes();

/// The licence the kernel sees; its GPL-only helpers ask for a compatible one.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
