//! `relay_vs_null`: the relay through AES-GCM ÷ the relay through a suite that only authenticates.
//!
//! The program measured is `relay_speed` of `tests/cost`: the gateway's packet path with the relay in it, both ends'
//! TCP and IPsec around it, one thread and no sockets. Only the gateway's part is timed.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::super::{Better, Record, quantile};
use super::Plan;
use crate::sh::Cmd;

/// Suites of the arms, as `towpath sa add` names them.
const SUITES: [&str; 2] = ["aes256gcm16", "null-sha256"];

/// Measures the figure.
pub(super) fn run(root: &Path, plan: &Plan) -> Result<Vec<Record>> {
    Cmd::line("cargo build --release --locked --package towpath-cost --bin relay_speed")
        .dir(root)
        .run()?;
    let program = root.join("target/release/relay_speed");
    let mut speeds: [Vec<f64>; 2] = Default::default();
    for _ in 0..plan.rounds.max(7) {
        for (suite, speeds) in SUITES.iter().zip(&mut speeds) {
            speeds.push(speed(&program, suite, if plan.quick { "50" } else { "200" })?);
        }
    }
    let ratios: Vec<f64> = speeds[0].iter().zip(&speeds[1]).map(|(a, b)| a / b).collect();
    let arm = |index: usize| format!("{:.0} MB per second", quantile(&speeds[index], 0.5));
    let record = Record::new("tcp.relay_vs_null", "ratio", Better::Higher, &ratios)
        .goal(0.75)
        .arm(SUITES[0], arm(0))
        .arm(SUITES[1], arm(1))
        .condition(
            "measured",
            "the gateway's packet path alone, one thread, no sockets",
        )
        .condition("segments", "the same suite on both, tunnel mode, IPv4")
        .condition(
            "null",
            "HMAC-SHA-256-128 remains: a suite without any check is not offered",
        );
    Ok(vec![record])
}

/// Megabytes a second through the relay.
fn speed(program: &Path, suite: &str, megabytes: &str) -> Result<f64> {
    let output = Cmd::new(program).args([suite, megabytes, "1"]).output()?;
    if !output.ok() {
        bail!("relay_speed {suite} did not finish: {}", output.all());
    }
    let first = output.stdout.split_whitespace().next();
    first
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("relay_speed said {:?}", output.stdout))
}
