//! A small bulk-transfer helper for the lab: the same program at both ends, also inside the guest kernel
//! (which sees the host's files), so that a transfer is checked by a checksum computed at each end.
//!
//! Protocol, one transfer per connection: the client sends a line `put N` or `get N`; N bytes of a
//! repeatable stream follow in that direction; the server ends with a line holding the SHA-256 it saw or
//! sent. Lines end with `\n`. Further verbs try what TCP must keep intact:
//!
//! | line | what happens |
//! |---|---|
//! | `half N` | the client sends N bytes and its FIN; the server then sends N bytes and what it saw |
//! | `stall N` | the server lets the window close before it takes N bytes |
//! | `reset N` | the server leaves N bytes unread and closes: the client must see a reset |
//! | `put N S`, `get N S` | whoever receives does not read for S seconds: the window closes |
//! | `urgent N`, `inline N` | the client sends N bytes, an urgent one and N more; the server takes the urgent one out of band, or in its place |
//! | `urgent-get N`, `inline-get N` | the same from the server to the client |

mod flood;
mod urgent;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, setsockopt, socket, sockopt,
};
use sha2::{Digest, Sha256};

/// The port the lab's server listens on.
pub const PORT: u16 = 7007;

/// Bytes per write.
const CHUNK: usize = 16 * 1024;

/// Silence on a connection after which a transfer has failed.
const SILENCE: Duration = Duration::from_secs(20);

/// How long a server told to stall does not read.
const STALL: Duration = Duration::from_secs(2);

/// Options of the hidden `pump` command.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
    /// Accepts connections and does nothing with them.
    Hold {
        /// Port to listen on.
        port: u16,
    },
    /// Relays connections by `splice`: the baseline of `bench tcp`.
    Splice {
        /// Port to listen on.
        port: u16,
        /// Where to connect onward.
        server: SocketAddr,
    },
    /// Answers transfers until killed.
    Serve {
        /// Port to listen on, on all addresses of both families.
        #[arg(long, default_value_t = PORT)]
        port: u16,
    },
    /// Sends bytes to a server and compares checksums.
    Put {
        /// Server's address.
        addr: IpAddr,
        /// How many bytes.
        bytes: u64,
        /// Mark of the socket (`SO_MARK`).
        #[arg(long)]
        mark: Option<u32>,
    },
    /// Fetches bytes from a server and compares checksums.
    Get {
        /// Server's address.
        addr: IpAddr,
        /// How many bytes.
        bytes: u64,
        /// Mark of the socket (`SO_MARK`).
        #[arg(long)]
        mark: Option<u32>,
    },
    /// Sends bytes and the end of the stream, then fetches as many.
    Half {
        /// Server's address.
        addr: IpAddr,
        /// How many bytes each way.
        bytes: u64,
    },
    /// Sends to a server that does not read for a while.
    Stall {
        /// Server's address.
        addr: IpAddr,
        /// How many bytes.
        bytes: u64,
    },
    /// Sends to a server that closes without reading, and expects a reset.
    Reset {
        /// Server's address.
        addr: IpAddr,
        /// How many bytes.
        bytes: u64,
    },
    /// Sends to a server that does not read for many seconds.
    Pause {
        /// Server's address.
        addr: IpAddr,
        /// How many bytes.
        bytes: u64,
        /// How long nothing is read.
        seconds: u64,
    },
    /// Asks for bytes and does not read them for many seconds.
    Sip {
        /// Server's address.
        addr: IpAddr,
        /// How many bytes.
        bytes: u64,
        /// How long nothing is read.
        seconds: u64,
    },
    /// Urgent bytes, both ways, taken out of band and in their place.
    Urgent {
        /// Server's address.
        addr: IpAddr,
        /// How many bytes before and behind the urgent one.
        bytes: u64,
    },
    /// Listens, and answers nobody once its queue of one is full.
    Deaf {
        /// Port to listen on.
        port: u16,
    },
    /// Sends SYNs nobody will follow up, each from another port.
    Flood {
        /// Server's address, IPv4.
        addr: std::net::Ipv4Addr,
        /// Server's port.
        port: u16,
        /// How many.
        count: u32,
    },
    /// All of these at once, and connections given up in the middle.
    Mixed {
        /// Server's address.
        addr: IpAddr,
        /// How many bytes the largest transfers.
        bytes: u64,
        /// How many connections.
        #[arg(long, default_value_t = 100)]
        count: usize,
        /// How many of them at a time.
        #[arg(long, default_value_t = 50)]
        at_once: usize,
    },
}

/// Runs one side.
pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::Hold { port } => crate::load::hold(*port),
        Command::Splice { port, server } => crate::bench::tcp::splice::run(*port, *server),
        Command::Serve { port } => serve(*port),
        Command::Put { addr, bytes, mark } => timed_marked(*addr, *bytes, Verb::Put, *mark),
        Command::Get { addr, bytes, mark } => timed_marked(*addr, *bytes, Verb::Get, *mark),
        Command::Half { addr, bytes } => timed(*addr, *bytes, Verb::Half),
        Command::Stall { addr, bytes } => timed(*addr, *bytes, Verb::Stall),
        Command::Reset { addr, bytes } => timed(*addr, *bytes, Verb::Reset),
        Command::Pause { addr, bytes, seconds } => timed_with(*addr, *bytes, Verb::Put, *seconds),
        Command::Sip { addr, bytes, seconds } => timed_with(*addr, *bytes, Verb::Get, *seconds),
        Command::Urgent { addr, bytes } => {
            for verb in Verb::URGENT {
                exchange(*addr, *bytes, verb, 0).with_context(|| verb.word())?;
            }
            println!("urgent bytes both ways, out of band and inline");
            Ok(())
        }
        Command::Deaf { port } => flood::deaf(*port),
        Command::Flood { addr, port, count } => flood::run(*addr, *port, *count),
        Command::Mixed {
            addr,
            bytes,
            count,
            at_once,
        } => mixed(*addr, *bytes, *count, *at_once),
    }
}

/// What a client does with one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Put,
    Get,
    Half,
    Stall,
    Reset,
    /// Half of a `get`, then gone.
    GiveUp,
    Urgent,
    Inline,
    UrgentGet,
    InlineGet,
}

impl Verb {
    const ALL: [Self; 6] = [
        Self::Put,
        Self::Get,
        Self::Half,
        Self::Stall,
        Self::Reset,
        Self::GiveUp,
    ];

    const URGENT: [Self; 4] = [Self::Urgent, Self::Inline, Self::UrgentGet, Self::InlineGet];

    /// The word in the request.
    const fn word(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get | Self::GiveUp => "get",
            Self::Half => "half",
            Self::Stall => "stall",
            Self::Reset => "reset",
            Self::Urgent => "urgent",
            Self::Inline => "inline",
            Self::UrgentGet => "urgent-get",
            Self::InlineGet => "inline-get",
        }
    }
}

fn serve(port: u16) -> Result<()> {
    let listener = TcpListener::bind(("::", port)).with_context(|| format!("listen on port {port}"))?;
    println!("ready");
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        std::thread::spawn(move || match answer(stream) {
            Ok(line) => println!("{line}"),
            Err(error) => println!("failed: {error:#}"),
        });
    }
    Ok(())
}

fn answer(stream: TcpStream) -> Result<String> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let peer = stream.peer_addr()?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (Some(verb), Some(count)) = (words.next(), words.next()) else {
        bail!("a line `VERB N` was expected, not {line:?}");
    };
    let count: u64 = count.parse().context("a number of bytes was expected")?;
    let hold = Duration::from_secs(words.next().map_or(Ok(0), str::parse)?);
    let digest = match verb {
        "put" => {
            std::thread::sleep(hold);
            receive(&mut reader, count)?
        }
        "get" => {
            writer.set_write_timeout(Some(SILENCE + hold))?;
            send(&mut writer, count)?
        }
        "urgent" | "inline" => urgent::receive(&writer, &mut reader, count, verb == "inline")?,
        "urgent-get" | "inline-get" => urgent::send(&mut writer, count)?,
        "half" => {
            let digest = receive(&mut reader, count)?;
            if reader.read(&mut [0; 1])? != 0 {
                bail!("more than {count} bytes came");
            }
            send(&mut writer, count)?;
            digest
        }
        "stall" => {
            std::thread::sleep(STALL);
            receive(&mut reader, count)?
        }
        "reset" => {
            // Closing with data unread is a reset (RFC 9293 §3.6.1); the data must be there first, beyond what the
            // request's reader has taken.
            std::thread::sleep(STALL / 4);
            writer.peek(&mut [0; 1])?;
            return Ok(format!("{verb} {count} {peer}"));
        }
        other => bail!("unknown verb {other:?}"),
    };
    writer.write_all(format!("{digest}\n").as_bytes())?;
    Ok(format!("{verb} {count} {peer} {digest}"))
}

/// One exchange, and how fast it was.
fn timed(addr: IpAddr, bytes: u64, verb: Verb) -> Result<()> {
    timed_with(addr, bytes, verb, 0)
}

/// One exchange whose receiver does not read for `hold` seconds.
fn timed_with(addr: IpAddr, bytes: u64, verb: Verb, hold: u64) -> Result<()> {
    report(bytes, || exchange(addr, bytes, verb, hold))
}

/// One exchange over a socket with a mark.
fn timed_marked(addr: IpAddr, bytes: u64, verb: Verb, mark: Option<u32>) -> Result<()> {
    let Some(mark) = mark else {
        return timed(addr, bytes, verb);
    };
    report(bytes, || exchange_on(marked(addr, mark)?, bytes, verb, 0))
}

/// A connection to the server at `addr` whose packets have `mark`.
fn marked(addr: IpAddr, mark: u32) -> Result<TcpStream> {
    let family = if addr.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::Mark, &mark).context("SO_MARK")?;
    let server = SocketAddr::new(addr, PORT);
    connect(fd.as_raw_fd(), &SockaddrStorage::from(server))
        .with_context(|| format!("connect to {server}"))?;
    Ok(TcpStream::from(fd))
}

fn report(bytes: u64, work: impl FnOnce() -> Result<String>) -> Result<()> {
    let started = Instant::now();
    let digest = work()?;
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{bytes} bytes, sha256 {digest}, {:.1} Mb/s",
        bytes as f64 * 8e-6 / seconds
    );
    Ok(())
}

/// Many exchanges of all kinds at a time.
fn mixed(addr: IpAddr, bytes: u64, count: usize, at_once: usize) -> Result<()> {
    let started = Instant::now();
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..at_once.clamp(1, count.max(1)) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return;
                    }
                    let verb = Verb::ALL[index % Verb::ALL.len()];
                    // Sizes from one byte upwards, no two neighbours alike.
                    let bytes = 1 + bytes * (index as u64 * 7 % 16) / 16;
                    if let Err(error) = exchange(addr, bytes, verb, 0) {
                        let failure = format!("connection {index}, {verb:?} of {bytes} bytes: {error:#}");
                        failures
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(failure);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !failures.is_empty() {
        bail!(
            "{} of {count} connections failed:\n{}",
            failures.len(),
            failures.join("\n")
        );
    }
    println!("{count} connections in {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

fn exchange(addr: IpAddr, bytes: u64, verb: Verb, hold: u64) -> Result<String> {
    let addr = SocketAddr::new(addr, PORT);
    let stream = TcpStream::connect_timeout(&addr, SILENCE).with_context(|| format!("connect to {addr}"))?;
    exchange_on(stream, bytes, verb, hold)
}

fn exchange_on(stream: TcpStream, bytes: u64, verb: Verb, hold: u64) -> Result<String> {
    let held = Duration::from_secs(hold);
    stream.set_read_timeout(Some(SILENCE + held))?;
    stream.set_write_timeout(Some(SILENCE + held))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    writer.write_all(format!("{} {bytes} {hold}\n", verb.word()).as_bytes())?;
    let ours = match verb {
        Verb::Put | Verb::Stall => send(&mut writer, bytes)?,
        Verb::Get => {
            std::thread::sleep(held);
            receive(&mut reader, bytes)?
        }
        Verb::Urgent | Verb::Inline => urgent::send(&mut writer, bytes)?,
        Verb::UrgentGet | Verb::InlineGet => {
            urgent::receive(&writer, &mut reader, bytes, verb == Verb::InlineGet)?
        }
        Verb::Half => {
            let ours = send(&mut writer, bytes)?;
            writer.shutdown(std::net::Shutdown::Write)?;
            let theirs = receive(&mut reader, bytes)?;
            if theirs != ours {
                bail!("checksums of the two directions differ");
            }
            ours
        }
        Verb::Reset => return expect_reset(reader, writer, bytes),
        Verb::GiveUp => return receive(&mut reader, bytes / 2),
    };
    let mut theirs = String::new();
    reader
        .read_line(&mut theirs)
        .context("the other end's checksum")?;
    if theirs.trim() != ours {
        bail!("checksums differ: {ours} here, {} there", theirs.trim());
    }
    Ok(ours)
}

/// The server never reads what is sent: the connection must end with an error, not with silence.
fn expect_reset(mut reader: impl Read, mut writer: impl Write, bytes: u64) -> Result<String> {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    // More than the server's reader takes with the request, so that some is left unread.
    let sent = send(&mut writer, bytes + (64 << 10));
    let ended = match sent {
        Ok(_) => reader.read(&mut [0; 1]).map_err(anyhow::Error::from),
        Err(error) => Err(error),
    };
    match ended {
        Ok(0) => bail!("the connection ended in order, a reset was expected"),
        Ok(_) => bail!("data came, a reset was expected"),
        Err(error) => match error.downcast_ref::<std::io::Error>().map(std::io::Error::kind) {
            Some(ConnectionReset | BrokenPipe) => Ok("reset".to_owned()),
            _ => Err(error),
        },
    }
}

fn send(writer: &mut impl Write, count: u64) -> Result<String> {
    let mut digest = Sha256::new();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut left = count;
    let mut chunk = [0_u8; CHUNK];
    while left > 0 {
        for word in chunk.as_chunks_mut::<8>().0 {
            // xorshift64: cheap, and does not compress or repeat within a transfer.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *word = state.to_le_bytes();
        }
        let part = &chunk[..left.min(CHUNK as u64) as usize];
        digest.update(part);
        writer
            .write_all(part)
            .with_context(|| format!("{left} of {count} bytes left to send"))?;
        left -= part.len() as u64;
    }
    Ok(hex(&digest.finalize()))
}

fn receive(reader: &mut impl Read, count: u64) -> Result<String> {
    let mut digest = Sha256::new();
    let mut chunk = [0_u8; CHUNK];
    let mut left = count;
    while left > 0 {
        let room = left.min(CHUNK as u64) as usize;
        let got = reader
            .read(&mut chunk[..room])
            .with_context(|| format!("{left} of {count} bytes missing"))?;
        if got == 0 {
            bail!("the connection ended with {left} of {count} bytes missing");
        }
        digest.update(&chunk[..got]);
        left -= got as u64;
    }
    Ok(hex(&digest.finalize()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_compute_the_same_checksum_of_a_stream() {
        let mut wire = Vec::new();
        let sent = send(&mut wire, 100_003).expect("a vector takes everything");
        assert_eq!(wire.len(), 100_003);
        assert_eq!(
            receive(&mut wire.as_slice(), 100_003).expect("all bytes are there"),
            sent
        );
        wire[5] ^= 1;
        assert_ne!(
            receive(&mut wire.as_slice(), 100_003).expect("all bytes are there"),
            sent
        );
        assert!(receive(&mut &wire[..99_999], 100_003).is_err());
    }
}
