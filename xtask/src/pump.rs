//! A small bulk-transfer helper for the lab: the same program at both ends, also inside the guest kernel
//! (which sees the host's files), so that a transfer is checked by a checksum computed at each end.
//!
//! Protocol, one transfer per connection: the client sends a line `put N` or `get N`; N bytes of a
//! repeatable stream follow in that direction; the server ends with a line holding the SHA-256 it saw or
//! sent. Lines end with `\n`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

/// The port the lab's server listens on.
pub const PORT: u16 = 7007;

/// Bytes per write.
const CHUNK: usize = 16 * 1024;

/// Silence on a connection after which a transfer has failed.
const SILENCE: Duration = Duration::from_secs(20);

/// Options of the hidden `pump` command.
#[derive(Clone, Debug, clap::Subcommand)]
pub enum Command {
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
    },
    /// Fetches bytes from a server and compares checksums.
    Get {
        /// Server's address.
        addr: IpAddr,
        /// How many bytes.
        bytes: u64,
    },
}

/// Runs one side.
pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::Serve { port } => serve(*port),
        Command::Put { addr, bytes } => transfer(*addr, *bytes, true),
        Command::Get { addr, bytes } => transfer(*addr, *bytes, false),
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
    let (verb, count) = line
        .trim()
        .split_once(' ')
        .context("a line `put N` or `get N` was expected")?;
    let count: u64 = count.parse().context("a number of bytes was expected")?;
    let digest = match verb {
        "put" => receive(&mut reader, count)?,
        "get" => send(&mut writer, count)?,
        other => bail!("unknown verb {other:?}"),
    };
    writer.write_all(format!("{digest}\n").as_bytes())?;
    Ok(format!("{verb} {count} {peer} {digest}"))
}

fn transfer(addr: IpAddr, bytes: u64, put: bool) -> Result<()> {
    let started = Instant::now();
    let addr = SocketAddr::new(addr, PORT);
    let stream = TcpStream::connect_timeout(&addr, SILENCE).with_context(|| format!("connect to {addr}"))?;
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    writer.write_all(format!("{} {bytes}\n", if put { "put" } else { "get" }).as_bytes())?;
    let ours = if put {
        send(&mut writer, bytes)?
    } else {
        receive(&mut reader, bytes)?
    };
    let mut theirs = String::new();
    reader
        .read_line(&mut theirs)
        .context("the other end's checksum")?;
    if theirs.trim() != ours {
        bail!("checksums differ: {ours} here, {} there", theirs.trim());
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{bytes} bytes, sha256 {ours}, {:.1} Mb/s",
        bytes as f64 * 8e-6 / seconds
    );
    Ok(())
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
