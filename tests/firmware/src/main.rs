//! The terminal core, whole, linked for a microcontroller without an operating system.
//!
//! Every entry of the face is called with values the compiler cannot foresee, so nothing that a real
//! terminal needs is optimised away; drivers are missing. Never run, only measured: `.text` is the code,
//! `RAM` (`.bss`) has the size of a core with its packet buffer.
//!
//! On a host it is a program that does nothing, so that checks of the whole workspace include it.
#![forbid(unsafe_code)]
#![cfg_attr(target_os = "none", no_std, feature(lang_items))]
#![cfg_attr(target_os = "none", allow(internal_features))]

use core::hint::black_box;
use core::sync::atomic::{AtomicU8, Ordering};

use towpath_base::crypto::Rng;
use towpath_base::key::SecretKey;
use towpath_base::packet::PacketBuf;
use towpath_base::{Instant, SubscriberHandle};
use towpath_terminal_core::{Addresses, Command, Config, Core, Policy, ReservedSpi, SoftEsp, Timing};

/// Four policies, two SA pairs, two kilobytes of held packets: a sensor with one or two peers.
type Terminal = Core<SoftEsp, 4, 2, 2048>;

/// Room for one packet.
const BUFFER: usize = 2048;

/// The memory a terminal needs besides its stack: core and packet buffer. Where a driver would put them.
static RAM: [AtomicU8; size_of::<Terminal>() + BUFFER] =
    [const { AtomicU8::new(0) }; size_of::<Terminal>() + BUFFER];

/// A hardware source of randomness.
struct Entropy;

impl Rng for Entropy {
    fn fill(&mut self, bytes: &mut [u8]) {
        black_box(bytes);
    }
}

/// Everything a terminal does, in a loop.
fn run() -> Option<()> {
    let config = Config {
        subscriber: black_box(SubscriberHandle(1)),
        ksub: black_box(SecretKey::new([0; 32])),
        addresses: black_box(Addresses::default()),
        reserved: ReservedSpi::default(),
        counter: black_box(0),
        timing: Timing::default(),
    };
    let policies: [Policy; 0] = [];
    let mut terminal = Terminal::new(SoftEsp, config, black_box(&policies)).ok()?;
    let mut buffer = [0; BUFFER];
    for byte in black_box(&RAM) {
        byte.store(1, Ordering::Relaxed);
    }
    loop {
        let now = black_box(Instant::ZERO);
        let mut packet = PacketBuf::new(&mut buffer, black_box(128), black_box(1400))?;
        black_box(terminal.handle_plain(now, &mut packet, &mut Entropy));
        black_box(terminal.handle_network(now, &mut packet));
        terminal.handle_timeout(now);
        black_box(terminal.poll_transmit(now, &mut buffer, &mut Entropy));
        match terminal.poll_command() {
            Some(Command::Persist(mark)) => terminal.persisted(black_box(mark)),
            other => drop(black_box(other)),
        }
        black_box(terminal.poll_timeout());
    }
}

#[cfg(target_os = "none")]
fn main() {
    black_box(run());
}

#[cfg(not(target_os = "none"))]
fn main() {
    println!(
        "{} bytes of RAM here; the figures are for a microcontroller",
        RAM.len()
    );
    if black_box(false) {
        run();
    }
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// What the compiler calls `main` from: without an operating system somebody has to say.
#[cfg(target_os = "none")]
#[lang = "start"]
fn start<T>(main: fn() -> T, _argc: isize, _argv: *const *const u8, _sigpipe: u8) -> isize {
    main();
    0
}
