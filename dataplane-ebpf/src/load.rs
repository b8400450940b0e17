//! The load of `cargo xtask bench`: frames that cost no socket buffer, and a program that takes them off again.
//!
//! Not part of the product. `BPF_PROG_TEST_RUN` with live frames runs `towpath_load`, which writes the template's
//! header over whatever a former journey made of the frame and sends it out of a device.
#![no_std]
#![no_main]

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::bpf_get_prandom_u32;
use aya_ebpf::macros::{map, xdp};
use aya_ebpf::maps::{Array, DevMapHash};
use aya_ebpf::programs::XdpContext;
use towpath_common::abi::ABI_VERSION;
use towpath_common::load::{HEADER, Template};

#[map]
static TEMPLATE: Array<Template> = Array::with_max_entries(1, 0);
#[map]
static OUT: DevMapHash = DevMapHash::with_max_entries(1, 0);

/// Makes the frame a fresh packet of the template and sends it.
#[xdp]
pub fn towpath_load(ctx: XdpContext) -> u32 {
    let Some(template) = TEMPLATE.get(0) else {
        return xdp_action::XDP_DROP;
    };
    let start = ctx.data();
    if start + HEADER > ctx.data_end() {
        return xdp_action::XDP_DROP;
    }
    let words = start as *mut u32;
    for (at, word) in template.header.iter().enumerate() {
        // SAFETY: inside the 64 bytes checked above; enforced by the verifier.
        unsafe { *words.add(at) = *word };
    }
    if template.spread != 0 {
        // The IPv4 source address; the header's checksum is not kept, nobody here looks at it.
        // SAFETY: the helper has no requirements, the address is inside the 64 bytes checked above.
        unsafe {
            let low = bpf_get_prandom_u32() & template.spread;
            let source = (start + 26) as *mut u32;
            *source |= low.to_be();
        }
    }
    OUT.redirect(template.ifindex, 0).unwrap_or(xdp_action::XDP_DROP)
}

/// Takes every frame off.
#[xdp]
pub fn towpath_drop(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_DROP
}

/// Read by the loader before anything else (`towpath_common::abi::ABI_SECTION`).
#[unsafe(no_mangle)]
#[unsafe(link_section = "towpath_abi")]
static TOWPATH_ABI: [u8; 4] = ABI_VERSION.to_le_bytes();

/// The licence the kernel sees.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
