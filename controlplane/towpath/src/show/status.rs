//! `towpath status`.

use towpath_telemetry::admin::{Reply, Request, Status};

use super::unexpected;
use crate::backend::daemon;
use crate::cli::Common;
use crate::config::Config;
use crate::failure::{Failure, Outcome};
use crate::output;

/// Shows what runs here.
pub(crate) fn status(common: &Common) -> Outcome {
    let mut client = daemon(common).map_err(|failure| with_dataplane(common, failure))?;
    match client.request(&Request::Status)? {
        Reply::Status(status) if common.json => output::json(&status),
        Reply::Status(status) => output::print(&text(&status)),
        reply => Err(unexpected(&reply)),
    }
}

/// Without a daemon the data plane may be at work all the same.
fn with_dataplane(common: &Common, failure: Failure) -> Failure {
    let config = Config::load_or_default(&common.config);
    match (failure, config.map(|config| config.gateway.pin_dir)) {
        (Failure::Runtime(message), Ok(pin_dir))
            if pin_dir.join(towpath_common::abi::map::COUNTERS).exists() =>
        {
            Failure::Runtime(format!(
                "{message} (its data plane is still attached, pinned at {}: ordinary traffic flows; `towpath stats` shows \
             its counters)",
                pin_dir.display()
            ))
        }
        (failure, _) => failure,
    }
}

fn text(status: &Status) -> String {
    let ports: Vec<String> = status
        .ports
        .iter()
        .map(|port| {
            let copy = if port.zero_copy { "zero-copy" } else { "copy" };
            let plural = if port.queues == 1 { "" } else { "s" };
            format!(
                "{} ({}): XDP {}, {} queue{plural}, {copy}",
                port.name, port.role, port.xdp_mode, port.queues
            )
        })
        .collect();
    output::facts(&[
        (
            "towpath",
            format!(
                "{}, process {}, up {}",
                status.version,
                status.pid,
                output::duration(status.uptime_seconds)
            ),
        ),
        ("roles", status.roles.join(", ")),
        ("ports", ports.join("\n")),
        ("workers", status.workers.to_string()),
        (
            "subscribers",
            format!("{}, {} registered", status.subscribers, status.registered),
        ),
        (
            "ike sas",
            format!("{}, {} half-open", status.ike_sas, status.ike_half_open),
        ),
        ("esp sas", format!("{} pairs", status.child_sas)),
    ])
}
