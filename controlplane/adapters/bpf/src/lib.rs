//! The XDP program and its maps, from user space.
//!
//! * [`Dataplane::load`] loads the object, pins maps and links under a directory of a bpffs and attaches the
//!   program to the ports. What is pinned already and of the same ABI version is taken over: forwarding goes on
//!   while a daemon restarts, and after it died.
//! * [`ProfileMaps`] writes compiled conditions, with or without a running daemon.
//! * [`CompiledProfile`] is the form of a subscriber's conditions that the classifier understands.
//! * [`counters`], [`unload`]: what else is done to a pinned data plane.
//!
//! The object is an ordinary file, found by [`find_object`]; nothing of this crate needs the BPF toolchain.

mod bpffs;
mod compile;
mod counters;
mod dataplane;
mod error;
mod load;
mod netdev;
mod object;
mod profiles;
mod raw;
mod testrun;

pub use bpffs::{DEFAULT_PIN_DIR, Mounted, ensure_bpffs};
pub use compile::{CompileError, CompiledProfile, compile};
pub use counters::counters;
pub use dataplane::{AttachedMode, Dataplane, Mode, Options, Port, PortSpec, attach_pass, unload};
pub use error::Error;
pub use load::{Generator, attach_drop};
pub use netdev::{NetDevice, net_device};
pub use object::{OBJECT_NAME, OBJECT_VARIABLE, check_object, find_object};
pub use profiles::ProfileMaps;
pub use testrun::{Action, TestOutcome};
pub use towpath_common::abi::Role;
