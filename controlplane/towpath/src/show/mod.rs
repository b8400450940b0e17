//! What commands show of a running daemon: `status`, `sa`, `flow`, `ike`, `stats`, `events`.

mod events;
mod flow;
mod ike;
mod prometheus;
mod sa;
mod stats;
mod status;

pub(crate) use events::events;
pub(crate) use flow::{Flow, flow};
pub(crate) use ike::ike;
pub(crate) use sa::sa;
pub(crate) use stats::stats;
pub(crate) use status::status;

use towpath_telemetry::admin::Reply;

use crate::failure::Failure;

pub(crate) fn unexpected(reply: &Reply) -> Failure {
    Failure::runtime(format!("unexpected answer: {reply:?}"))
}
