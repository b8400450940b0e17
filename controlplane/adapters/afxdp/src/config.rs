//! How the sockets of a worker are to be opened.

use std::{fmt, io};

/// Whether frames may reach the device without a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Copying {
    /// Zero-copy if every device can, else copying.
    #[default]
    Auto,
    /// Zero-copy or not at all.
    Never,
    /// Copying: works with every device.
    Always,
}

/// Busy polling (`Documentation/networking/napi.rst`): the worker drives the device's queue itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BusyPoll {
    /// Microseconds to poll for.
    pub microseconds: u32,
    /// Packets per poll.
    pub budget: u32,
}

/// Sizes and manners of the sockets of one worker. All ring sizes and the frame size are powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Bytes of a frame: 2048 or 4096. The kernel keeps 256 of them in front of every received packet.
    pub frame_size: u32,
    /// Frames per port.
    pub frames_per_port: u32,
    /// Entries of a receive ring.
    pub receive_ring: u32,
    /// Entries of a fill ring; at least twice the receive ring, or bursts are lost.
    pub fill_ring: u32,
    /// Entries of a transmit ring.
    pub transmit_ring: u32,
    /// Entries of a completion ring.
    pub completion_ring: u32,
    /// Zero-copy or not.
    pub copying: Copying,
    /// Busy polling, off by default.
    pub busy_poll: Option<BusyPoll>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            frame_size: 4096,
            frames_per_port: 4096,
            receive_ring: 1024,
            fill_ring: 2048,
            transmit_ring: 1024,
            completion_ring: 2048,
            copying: Copying::Auto,
            busy_poll: None,
        }
    }
}

impl Config {
    /// Says which value is impossible and what is expected.
    pub fn check(&self) -> Result<(), Error> {
        let powers = [
            ("frame_size", self.frame_size),
            ("receive_ring", self.receive_ring),
            ("fill_ring", self.fill_ring),
            ("transmit_ring", self.transmit_ring),
            ("completion_ring", self.completion_ring),
        ];
        for (name, value) in powers {
            if !value.is_power_of_two() {
                return Err(Error::config(format!(
                    "{name} is {value}, expected a power of two"
                )));
            }
        }
        if !matches!(self.frame_size, 2048 | 4096) {
            return Err(Error::config(format!(
                "frame_size is {}, expected 2048 or 4096",
                self.frame_size
            )));
        }
        if self.fill_ring < 2 * self.receive_ring {
            return Err(Error::config(format!(
                "fill_ring is {}, expected at least twice the receive_ring ({})",
                self.fill_ring, self.receive_ring
            )));
        }
        if self.frames_per_port <= self.fill_ring {
            return Err(Error::config(format!(
                "frames_per_port is {}, expected more than the fill_ring ({})",
                self.frames_per_port, self.fill_ring
            )));
        }
        Ok(())
    }
}

/// One receive queue of one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortQueue {
    /// Interface index in the network namespace of the calling thread.
    pub ifindex: u32,
    /// Its queue.
    pub queue: u32,
}

/// What was being done, and why it failed.
#[derive(Debug)]
pub struct Error {
    action: String,
    source: Option<io::Error>,
}

impl Error {
    pub(crate) fn new(action: impl Into<String>, source: io::Error) -> Self {
        Self {
            action: action.into(),
            source: Some(source),
        }
    }

    pub(crate) fn config(action: String) -> Self {
        Self { action, source: None }
    }

    pub(crate) fn errno(&self) -> Option<i32> {
        self.source.as_ref().and_then(io::Error::raw_os_error)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Some(source) => write!(f, "AF_XDP: {}: {source}", self.action),
            None => write!(f, "AF_XDP: {}", self.action),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_possible_and_others_are_named() {
        Config::default().check().unwrap();
        let error = Config {
            fill_ring: 1024,
            ..Config::default()
        }
        .check()
        .unwrap_err()
        .to_string();
        assert_eq!(
            error,
            "AF_XDP: fill_ring is 1024, expected at least twice the receive_ring (1024)"
        );
        let error = Config {
            frame_size: 1000,
            ..Config::default()
        }
        .check()
        .unwrap_err()
        .to_string();
        assert!(error.contains("frame_size is 1000"), "{error}");
    }
}
