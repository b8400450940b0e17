//! The live view: what happened, as it happens.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

/// Events kept for a reader that is behind; older ones are lost to it, and counted.
const BACKLOG: usize = 1024;

/// Events kept for who asks what happened before.
const HISTORY: usize = 4096;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Event {
    /// Number since the daemon started; set by [`EventBus::publish`].
    #[serde(default)]
    pub number: u64,
    /// Milliseconds since 1970; set by [`EventBus::publish`].
    #[serde(default)]
    pub unix_millis: u64,
    /// Subscriber's name, or its handle.
    pub subscriber: String,
    /// Terminal's address, if known.
    pub terminal: Option<IpAddr>,
    /// Peer's address, if any.
    pub peer: Option<IpAddr>,
    /// Our SPI of the IKE SA it is about, if any; sixteen hex digits.
    #[serde(default)]
    pub ike: Option<String>,
    /// Stable name, `snake_case`: `registered`, `proxy_request`, `ike_established`, …
    pub kind: String,
    /// The rest, for people. Never key material.
    pub text: String,
}

/// Where the daemon's loop puts events; cheap to clone, never blocks, loses nothing for readers that keep up.
#[derive(Debug, Clone)]
pub struct EventBus {
    sender: broadcast::Sender<Event>,
    number: Arc<AtomicU64>,
    recent: Arc<Mutex<VecDeque<Event>>>,
}

impl Default for EventBus {
    fn default() -> Self {
        Self::new()
    }
}

impl EventBus {
    /// A bus without readers.
    pub fn new() -> Self {
        Self {
            sender: broadcast::channel(BACKLOG).0,
            number: Arc::default(),
            recent: Arc::default(),
        }
    }

    /// Numbers and dates `event`, then shows it to every reader.
    pub fn publish(&self, mut event: Event) {
        event.number = self.number.fetch_add(1, Ordering::Relaxed) + 1;
        event.unix_millis = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        if let Ok(mut recent) = self.recent.lock() {
            if recent.len() >= HISTORY {
                recent.pop_front();
            }
            recent.push_back(event.clone());
        }
        // An error only says that nobody is reading.
        let _ = self.sender.send(event);
    }

    /// The last events, the oldest first: a bounded number.
    pub fn recent(&self) -> Vec<Event> {
        let recent = self.recent.lock();
        recent.map_or_else(|_| Vec::new(), |recent| recent.iter().cloned().collect())
    }

    /// A reader of what is published from now on.
    pub fn subscribe(&self) -> EventReader {
        EventReader(self.sender.subscribe())
    }
}

/// Reads events.
#[derive(Debug)]
pub struct EventReader(broadcast::Receiver<Event>);

impl EventReader {
    /// The next event; `None` when the bus is gone. A gap in the numbers says how many were lost.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            match self.0.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_events_are_kept_and_no_more() {
        let bus = EventBus::new();
        let many = HISTORY as u64 + 7;
        for _ in 0..many {
            bus.publish(Event::default());
        }
        let recent = bus.recent();
        assert_eq!(recent.len(), HISTORY);
        assert_eq!((recent[0].number, recent[HISTORY - 1].number), (8, many));
    }
}
