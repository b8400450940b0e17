//! What commands show of a running daemon: `status`, `sa`, `ike`, `stats`, `events`.

mod events;
mod sa;
mod stats;
mod status;

pub(crate) use events::events;
pub(crate) use sa::{ike, sa};
pub(crate) use stats::stats;
pub(crate) use status::status;

use towpath_telemetry::admin::Reply;

use crate::failure::Failure;

fn unexpected(reply: &Reply) -> Failure {
    Failure::runtime(format!("unexpected answer: {reply:?}"))
}
