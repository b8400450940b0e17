//! AF_XDP: packets between the XDP program and a worker without a copy through the socket layer.
//!
//! A ladder, each rung on the one below it:
//!
//! | module | what |
//! |---|---|
//! | `syscall` | the kernel's calls, with errors |
//! | `mmap` | memory shared with the kernel, unmapped on drop |
//! | `huge` | pages of 2 MiB, where there are any |
//! | `umem` | the frame area, and [`Frame`]: the right to use one of its frames |
//! | `ring` | producer and consumer ends of the single-producer, single-consumer rings |
//! | `socket` | one socket: its four rings and how it is bound |
//! | `sockets` | all sockets of a worker, opened with one UMEM: [`Sockets`] |
//! | `lend` | how many frames the kernel has to receive into |
//! | `engine` | what a worker does with them: [`Engine`] |
//! | `memory` | the same rings without a kernel: [`MemoryPort`], for tests |
//!
//! **Architecture invariant:** a frame's index is in exactly one place: the free list, a [`Frame`], a ring, or
//! the kernel between two rings. Whoever has it may touch its memory, nobody else. Dropping a [`Frame`] puts it
//! back on the free list, so none is ever lost. The kernel is trusted to hand back only what it was given.
//!
//! ```text
//!            free list ──► fill ring ──► kernel ──► receive ring ──► Frame ──► free list
//!                 └──────► Frame ──► transmit ring ──► kernel ──► completion ring ──► free list
//! ```
//!
//! Nothing on the packet path allocates, locks, or logs.

mod config;
mod engine;
mod huge;
mod lend;
mod memory;
mod mmap;
mod ring;
mod socket;
mod sockets;
mod syscall;
mod umem;

pub use config::{BusyPoll, Config, Copying, Error, PortQueue};
pub use engine::{Account, Engine, PortId, Statistics, Woken};
pub use huge::on_huge_pages;
pub use memory::MemoryPort;
pub use sockets::Sockets;
pub use umem::Frame;
