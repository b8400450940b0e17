//! Tests with real peers in network namespaces. All need root; `cargo xtask test` runs them.
//!
//! ```text
//!   ta  10.77.1.2  fd77:1::2 ---- acc0 +----+
//!                                      | gw | core0 ---- peer  10.77.9.2  fd77:9::2
//!   tb  10.77.2.2  fd77:2::2 ---- acc1 +----+
//! ```
#![forbid(unsafe_code)]

mod attacks;
mod certificates;
mod clear;
mod ike;
mod ipsec;
mod keyservers;
mod lab;
mod levels;
mod linkem;
mod manual;
mod matrix;
mod nonces;
mod paths;
mod proxied;
mod rekeys;
mod relay;
mod restart;
mod terminal;
mod wire;
mod wrapped;

use std::time::Duration;

use xtask::lab::{Lab, Node};
use xtask::sh::Cmd;

/// How long one command in the lab may take.
const LIMIT: Duration = Duration::from_secs(20);

/// Pings `count` times; whether every packet was answered.
fn ping(lab: &Lab, from: Node, to: &str, count: u32) -> bool {
    let count = count.to_string();
    let cmd = Cmd::new("ping").args(["-c", &count, "-i", "0.2", "-W", "5", "-q", to]);
    lab.exec(from, &cmd, LIMIT)
        .is_ok_and(|out| out.stdout.contains(" 0% packet loss"))
}
