//! What a lab leaves on disk so that a later command finds it again, and the processes it started.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::PeerKind;

/// A process the lab started. The start time tells it from a later one with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// What it is, for people.
    pub name: String,
    /// Process id; also its process group's.
    pub pid: u32,
    /// Start time in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub start: u64,
}

impl Process {
    /// Notes a process just started.
    pub fn note(name: &str, pid: u32) -> Self {
        Self {
            name: name.to_owned(),
            pid,
            start: stat(pid).map_or(0, |s| s.1),
        }
    }

    /// Whether it still runs (a zombie does not).
    pub fn alive(&self) -> bool {
        stat(self.pid).is_some_and(|(state, start)| state != 'Z' && state != 'X' && start == self.start)
    }

    /// Sends a signal to the process and its group, if it is still the one that was started.
    pub fn signal(&self, signal: Signal) {
        let Ok(pid) = i32::try_from(self.pid) else { return };
        if self.alive() && pid > 1 && kill(Pid::from_raw(-pid), signal).is_err() {
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// Asks it to end, insists after `patience`.
    pub fn end(&self, patience: Duration) {
        self.signal(Signal::SIGTERM);
        if !wait_for(patience, || !self.alive()) {
            self.signal(Signal::SIGKILL);
            wait_for(Duration::from_secs(1), || !self.alive());
        }
    }
}

/// State letter and start time of a process.
fn stat(pid: u32) -> Option<(char, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything; what follows it does not.
    let rest = &text[text.rfind(')')? + 1..];
    let mut fields = rest.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

/// Polls `done` until it holds; false when `limit` passed first.
pub fn wait_for(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + limit;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The file that describes a running lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// What kind of peer it has.
    pub peer: PeerKind,
    /// Whether terminal A's link is emulated.
    #[serde(default)]
    pub linkem: bool,
    /// Whether bringing it up finished.
    pub ready: bool,
    /// Processes started, oldest first.
    pub processes: Vec<Process>,
}

impl State {
    fn file(dir: &Path) -> PathBuf {
        dir.join("state.json")
    }

    /// Reads the state in `dir`; `None` when there is no lab.
    pub fn load(dir: &Path) -> Option<Self> {
        let text = std::fs::read_to_string(Self::file(dir)).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Writes the state into `dir`, whole or not at all.
    pub fn save(&self, dir: &Path) -> Result<()> {
        let file = Self::file(dir);
        let draft = file.with_extension("new");
        std::fs::write(&draft, serde_json::to_string_pretty(self)?)
            .with_context(|| draft.display().to_string())?;
        std::fs::rename(&draft, &file).with_context(|| file.display().to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_number_and_start_time() {
        let mut me = Process::note("test", std::process::id());
        assert!(me.alive());
        me.start += 1;
        assert!(!me.alive(), "the same number, another process");
    }
}
