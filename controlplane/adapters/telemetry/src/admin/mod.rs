//! The admin socket: one JSON object a line, a request and its response in turn.
//!
//! The socket belongs to the user the daemon runs as, mode 0600, and a connection of another user (root
//! excepted) is closed unread: requests carry secrets. A request is answered with `{"ok": …}` or
//! `{"error": {"kind": …, "message": …}}`. After `"events"` the server only writes, one event a line.
//!
//! ```text
//! > "status"
//! < {"ok":{"status":{"version":"0.1.0", …}}}
//! > {"subscriber":{"show":{"operator":"default","name":"alice"}}}
//! < {"error":{"kind":"not_found","message":"…"}}
//! ```

mod client;
mod events;
mod flow;
mod ike;
mod line;
mod manual;
mod reply;
mod request;
mod server;

pub use client::{Client, ClientError};
pub use events::{Event, EventBus, EventReader};
pub use flow::{FlowFilter, FlowInfo, FlowList, FlowSide, FlowTotals};
pub use ike::{IkeChild, IkeInfo, IkeRequest};
pub use manual::{
    CaptureRequest, CapturedPacket, ExportedKey, ManualRequest, ManualSaInfo, PolicyRequest, Segment,
};
pub use reply::{
    AdminError, Attached, Counter, ErrorKind, Location, PortStatus, Reply, Response, SaInfo, Stats, Status,
    SubscriberPage, Traffic,
};
pub use request::{
    Cursor, ProfileChange, ProfileList, Record, Request, SaFilter, SubscriberName, SubscriberRequest,
};
pub use server::{AdminServer, Responder, serve};

/// Longest request or response, bytes: an import of tens of thousands of subscribers.
pub const MAX_LINE: usize = 64 << 20;

/// Most connections served at a time.
pub const MAX_CONNECTIONS: usize = 32;

/// Most entries in one response; the client asks again with the cursor it was given.
pub const MAX_PAGE: u32 = 1000;
