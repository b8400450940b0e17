//! `towpath status`.

use towpath_telemetry::admin::{Reply, Request, Status};

use super::unexpected;
use crate::backend::daemon;
use crate::cli::Common;
use crate::failure::Outcome;
use crate::output;

/// Shows what runs here.
pub(crate) fn status(common: &Common) -> Outcome {
    match daemon(common)?.request(&Request::Status)? {
        Reply::Status(status) if common.json => output::json(&status),
        Reply::Status(status) => output::print(&text(&status)),
        reply => Err(unexpected(&reply)),
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
