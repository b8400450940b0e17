//! TCP load between namespaces: a server that sends what it is asked for, and clients that time it.
//!
//! Protocol: the client sends a line `N`, or `N R`; the server answers with N bytes, R per second if that is said, and
//! waits for the next line.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::TcpCongestion;

use crate::linkem::enter;

/// Bytes per write.
const CHUNK: usize = 64 * 1024;
/// Silence after which a transfer has failed.
const SILENCE: Duration = Duration::from_secs(30);

/// A server on a thread of this process, in a named namespace.
#[derive(Debug)]
pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens on all addresses of both families, with the congestion control `cc` (`cubic`, `bbr`).
    pub fn start(namespace: &str, port: u16, cc: &str) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let listener = inside(namespace, {
            let cc = OsString::from(cc);
            move || {
                let listener =
                    TcpListener::bind(("::", port)).with_context(|| format!("listen on {port}"))?;
                setsockopt(&listener, TcpCongestion, &cc)
                    .with_context(|| format!("congestion control {cc:?}"))?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            }
        })?;
        let seen = Arc::clone(&stop);
        let thread = std::thread::spawn(move || serve(&listener, &seen));
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, stop: &Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        };
        let stop = Arc::clone(stop);
        // A client that leaves is no fault of the server.
        std::thread::spawn(move || answer(stream, &stop).ok());
    }
}

fn answer(stream: TcpStream, stop: &AtomicBool) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(Duration::from_secs(1)))?;
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    let mut writer = stream;
    while reader.read_line(&mut line)? > 0 {
        let mut words = line.split_whitespace();
        let bytes = words.next().context("how many bytes?")?.parse()?;
        let pace = words.next().map(str::parse).transpose()?;
        send(&mut writer, bytes, pace.map(Pace::new), stop)?;
        line.clear();
    }
    Ok(())
}

/// A sender that has so much to say per second and no more: what is due is said every millisecond.
struct Pace {
    start: Instant,
    /// Bytes per second.
    rate: u64,
    said: u64,
}

impl Pace {
    fn new(rate: u64) -> Self {
        Self {
            start: Instant::now(),
            rate,
            said: 0,
        }
    }

    /// Waits until something is due; returns how much that is.
    fn due(&self) -> u64 {
        loop {
            let due = (self.start.elapsed().as_secs_f64() * self.rate as f64) as u64;
            if due > self.said {
                return due - self.said;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn send(writer: &mut TcpStream, mut left: u64, mut pace: Option<Pace>, stop: &AtomicBool) -> Result<()> {
    let chunk = [0x5a_u8; CHUNK];
    while left > 0 && !stop.load(Ordering::Relaxed) {
        let due = pace.as_ref().map_or(left, Pace::due);
        let len = left.min(due).min(CHUNK as u64) as usize;
        match writer.write(chunk.get(..len).unwrap_or(&chunk)) {
            Ok(written) => {
                left -= written as u64;
                if let Some(pace) = &mut pace {
                    pace.said += written as u64;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Accepts connections and does nothing with them, until killed. A program of its own, because one process may not
/// have both ends of so many.
pub fn hold(port: u16) -> Result<()> {
    many_files()?;
    let listener = TcpListener::bind(("::", port)).with_context(|| format!("listen on {port}"))?;
    println!("ready");
    let mut held = Vec::new();
    for stream in listener.incoming() {
        held.push(stream?);
    }
    Ok(())
}

/// Lets this process have as many connections as the machine permits.
pub fn many_files() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most).context("cannot raise the limit of open files")
}

/// What a client saw.
#[derive(Debug, Clone, Default)]
pub struct Download {
    /// Until the connection was there.
    pub connected: Duration,
    /// Since the start, and the bytes received by then: every read.
    pub marks: Vec<(Duration, u64)>,
    /// Whole time.
    pub took: Duration,
}

impl Download {
    /// Bytes received.
    pub fn bytes(&self) -> u64 {
        self.marks.last().map_or(0, |(_, bytes)| *bytes)
    }

    /// Bytes received by a time since the start.
    pub fn bytes_at(&self, at: Duration) -> u64 {
        let before = self.marks.partition_point(|(time, _)| *time <= at);
        before
            .checked_sub(1)
            .and_then(|index| self.marks.get(index))
            .map_or(0, |(_, bytes)| *bytes)
    }

    /// Bits per second between a time and the end.
    pub fn rate_from(&self, from: Duration) -> f64 {
        let seconds = self.took.saturating_sub(from).as_secs_f64();
        (self.bytes() - self.bytes_at(from)) as f64 * 8.0 / seconds.max(1e-9)
    }

    /// When this many bytes were there.
    pub fn when(&self, bytes: u64) -> Option<Duration> {
        let index = self.marks.partition_point(|(_, seen)| *seen < bytes);
        self.marks.get(index).map(|(time, _)| *time)
    }
}

/// Fetches `bytes` from a server and stops after `limit`. `cc` governs the little this end sends.
pub fn download(namespace: &str, server: (IpAddr, u16), bytes: u64, limit: Duration) -> Result<Download> {
    download_at(namespace, server, bytes, None, limit)
}

/// As [`download`], from a server that has only `pace` bytes per second to send.
pub fn download_at(
    namespace: &str,
    server: (IpAddr, u16),
    bytes: u64,
    pace: Option<u64>,
    limit: Duration,
) -> Result<Download> {
    inside(namespace, move || {
        let start = Instant::now();
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from(server), SILENCE)
            .with_context(|| format!("connect to {} port {}", server.0, server.1))?;
        let connected = start.elapsed();
        match pace {
            Some(pace) => writeln!(stream, "{bytes} {pace}")?,
            None => writeln!(stream, "{bytes}")?,
        }
        let mut seen = Download {
            connected,
            ..Download::default()
        };
        let mut buffer = vec![0; CHUNK];
        let mut total = 0;
        while total < bytes && start.elapsed() < limit {
            let patience = limit
                .saturating_sub(start.elapsed())
                .max(Duration::from_millis(1));
            stream.set_read_timeout(Some(patience))?;
            match stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => {
                    total += count as u64;
                    seen.marks.push((start.elapsed(), total));
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).with_context(|| format!("after {total} bytes")),
            }
        }
        seen.took = start.elapsed();
        Ok(seen)
    })
}

/// Runs `work` on a thread of its own in a named namespace.
pub fn inside<R: Send + 'static>(
    namespace: &str,
    work: impl FnOnce() -> Result<R> + Send + 'static,
) -> Result<R> {
    let name = namespace.to_owned();
    let thread = std::thread::spawn(move || {
        enter(&name)?;
        work()
    });
    thread
        .join()
        .unwrap_or_else(|_| Err(anyhow!("a thread in namespace {namespace} panicked")))
}

/// A counter of the namespace's TCP (`/proc/net/snmp`, `/proc/net/netstat`), such as `RetransSegs`.
pub fn tcp_counter(namespace: &str, name: &'static str) -> Result<u64> {
    inside(namespace, move || {
        for file in ["snmp", "netstat"] {
            let text = std::fs::read_to_string(format!("/proc/thread-self/net/{file}"))?;
            let lines: Vec<&str> = text.lines().collect();
            for pair in lines.chunks(2) {
                let [names, values] = pair else { continue };
                let place = names.split_whitespace().position(|word| word == name);
                if names.starts_with("Tcp")
                    && let Some(value) = place.and_then(|place| values.split_whitespace().nth(place))
                {
                    return Ok(value.parse()?);
                }
            }
        }
        Err(anyhow!("the kernel has no TCP counter {name}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_knows_its_rate_and_its_milestones() {
        let second = Duration::from_secs(1);
        let seen = Download {
            connected: Duration::ZERO,
            marks: vec![(second, 1000), (second * 2, 3000), (second * 3, 4000)],
            took: second * 4,
        };
        assert_eq!(
            (seen.bytes(), seen.bytes_at(second * 2), seen.bytes_at(second / 2)),
            (4000, 3000, 0)
        );
        assert_eq!(seen.when(1001), Some(second * 2));
        assert_eq!(seen.when(4001), None);
        assert!((seen.rate_from(second * 2) - 4000.0).abs() < 1.0);
    }
}
