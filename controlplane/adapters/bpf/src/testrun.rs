//! Running the loaded program on a packet of our own (`BPF_PROG_TEST_RUN`): for tests and measurements.

use std::time::Duration;

use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp};
use towpath_common::abi::DivertMeta;
use zerocopy::{FromBytes, IntoBytes};

use crate::Error;

/// `struct xdp_md` of `linux/bpf.h`.
#[derive(Default, Clone, Copy, IntoBytes, FromBytes, zerocopy::Immutable, zerocopy::KnownLayout)]
#[repr(C)]
struct XdpMd {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

/// What the program returned (`enum xdp_action` of `linux/bpf.h`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// The program failed.
    Aborted,
    /// Dropped.
    Drop,
    /// Left to the kernel.
    Pass,
    /// Sent back where it came from.
    Transmit,
    /// Sent to a port or a socket.
    Redirect,
}

/// One run's result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TestOutcome {
    /// What the program returned.
    pub action: Action,
    /// The metadata it put in front of the packet, if any.
    pub meta: Option<DivertMeta>,
    /// The packet as it left it.
    pub packet: Vec<u8>,
    /// Time of one run; the mean where there were several.
    pub duration: Duration,
}

/// Runs `program` `repeat` times on `packet` as if it came in through queue 0 of an interface, whose receive
/// queue has to be registered for XDP, that is, a native program be attached to it.
///
/// With more than one run the packet is not restored in between.
pub(crate) fn run(program: &Xdp, ifindex: u32, packet: &[u8], repeat: u32) -> Result<TestOutcome, Error> {
    let context = XdpMd {
        data_end: packet.len() as u32,
        ingress_ifindex: ifindex,
        ..XdpMd::default()
    };
    let mut out = vec![0; packet.len() + 256];
    let mut context_out = XdpMd::default();
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: Some(context.as_bytes()),
            ctx_out: Some(context_out.as_mut_bytes()),
            repeat,
            attrs: TestRunAttrs::new(),
        })
        .map_err(|error| Error::Load(crate::dataplane::chain(&error)))?;
    out.truncate(result.data_size_out as usize);
    // The answer starts with the metadata; the context says how long it is.
    let packet = out.split_off((context_out.data as usize).min(out.len()));
    let action = match result.return_value {
        1 => Action::Drop,
        2 => Action::Pass,
        3 => Action::Transmit,
        4 => Action::Redirect,
        _ => Action::Aborted,
    };
    let meta = DivertMeta::read_from_bytes(&out).ok();
    Ok(TestOutcome {
        action,
        meta,
        packet,
        duration: result.duration,
    })
}

/// Sends `count` copies of `packet` through the program as if they came in through an interface, and has the
/// kernel carry out what it returns (live frames): traffic that costs no socket buffer.
pub(crate) fn run_live(program: &Xdp, ifindex: u32, packet: &[u8], count: u32) -> Result<(), Error> {
    let context = XdpMd {
        data_end: packet.len() as u32,
        ingress_ifindex: ifindex,
        ..XdpMd::default()
    };
    program
        .test_run(TestRunOptions {
            data_in: Some(packet),
            data_out: None,
            ctx_in: Some(context.as_bytes()),
            ctx_out: None,
            repeat: count,
            attrs: TestRunAttrs::new().xdp_live_frames(64),
        })
        .map(|_| ())
        .map_err(|error| Error::Load(crate::dataplane::chain(&error)))
}
