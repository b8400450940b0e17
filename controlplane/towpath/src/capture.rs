//! `towpath capture` and `towpath sa export-wireshark`: traffic and keys for a protocol analyser.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use towpath_base::sa::{EspCipher, EspIntegrity};
use towpath_telemetry::admin::{CaptureRequest, Client, ExportedKey, Reply, Request, Segment};
use towpath_telemetry::pcapng::{Direction, Writer};

use crate::backend::daemon;
use crate::cli::{Common, parse_spi};
use crate::failure::{Failure, Outcome};
use crate::output;

/// Between two looks.
const POLL: Duration = Duration::from_millis(50);

/// A side of the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Side {
    /// Between terminal and gateway
    Access,
    /// Between gateway and peer
    Core,
}

impl From<Side> for Segment {
    fn from(side: Side) -> Self {
        match side {
            Side::Access => Self::Access,
            Side::Core => Self::Core,
        }
    }
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Access => "access",
            Self::Core => "core",
        })
    }
}

/// `towpath capture`.
#[derive(Debug, Args)]
pub(crate) struct Capture {
    /// SPI of either direction of the SA, hexadecimal as in `sa list`
    #[arg(long, value_name = "SPI", value_parser = parse_spi)]
    sa: u32,
    /// The packets inside instead of ESP; class full alone has them
    #[arg(long)]
    decrypted: bool,
    /// ESP of which side
    #[arg(long, value_enum, default_value_t = Side::Core, conflicts_with = "decrypted")]
    side: Side,
    /// Where to write; `-` for standard output
    #[arg(long, short = 'w', value_name = "FILE")]
    write: PathBuf,
    /// Stop after this many packets
    #[arg(long, short = 'n', value_name = "NUMBER")]
    count: Option<u64>,
    /// Stop after this many seconds
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
}

/// Runs until interrupted, or as long as was asked for.
pub(crate) fn run(common: &Common, args: &Capture) -> Outcome {
    let mut client = daemon(common)?;
    let request = CaptureRequest {
        spi: args.sa,
        decrypted: args.decrypted,
        segment: args.side.into(),
    };
    let id = match client.request(&Request::Capture(request))? {
        Reply::Capturing { id } => id,
        reply => return Err(crate::show::unexpected(&reply)),
    };
    let outcome = write_packets(&mut client, id, args);
    let stopped = client.request(&Request::CaptureStop { id });
    let (packets, lost) = outcome?;
    stopped?;
    if common.json {
        return output::json(&serde_json::json!({ "packets": packets, "lost": lost }));
    }
    eprintln!("{packets} packets written, {lost} lost because the reader was slow");
    Ok(())
}

fn write_packets(client: &mut Client, id: u64, args: &Capture) -> Outcome<(u64, u64)> {
    let name = format!("SA {:08x}", args.sa);
    let mut writer = Writer::new(create(&args.write)?, &name).map_err(Failure::runtime)?;
    let until = args
        .seconds
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let (mut written, mut lost) = (0, 0);
    let enough = |written| args.count.is_some_and(|count| written >= count);
    while !enough(written) && until.is_none_or(|until| Instant::now() < until) {
        let packets = match client.request(&Request::CaptureRead { id })? {
            Reply::Packets(packets) => packets,
            reply => return Err(crate::show::unexpected(&reply)),
        };
        let idle = packets.is_empty();
        for packet in packets {
            if enough(written) {
                break;
            }
            let direction = if packet.to_peer {
                Direction::ToPeer
            } else {
                Direction::ToTerminal
            };
            let comment = (packet.lost > 0).then(|| format!("{} packets lost before this one", packet.lost));
            writer
                .packet(packet.unix_nanos, direction, &packet.packet, comment.as_deref())
                .map_err(Failure::runtime)?;
            written += 1;
            lost += packet.lost;
        }
        // An interrupted capture is a readable file.
        writer.flush().map_err(Failure::runtime)?;
        if idle {
            std::thread::sleep(POLL);
        }
    }
    Ok((written, lost))
}

fn create(path: &std::path::Path) -> Outcome<Box<dyn Write>> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(std::io::stdout()));
    }
    let file: File = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| Failure::usage(format!("-w {}: cannot be written: {error}", path.display())))?;
    Ok(Box::new(BufWriter::new(file)))
}

/// Prints lines for Wireshark's file `esp_sa`.
pub(crate) fn export(common: &Common, spi: Option<u32>, side: Side) -> Outcome {
    let request = Request::ExportKeys {
        segment: side.into(),
        spi,
    };
    let keys = match daemon(common)?.request(&request)? {
        Reply::Keys(keys) => keys,
        reply => return Err(crate::show::unexpected(&reply)),
    };
    if common.json {
        return output::json(&keys);
    }
    let lines: Vec<String> = keys.iter().map(line).collect();
    output::print(&lines.concat())
}

/// One line of `esp_sa`: protocol, addresses, SPI, encryption, key, authentication, key, sequence number length,
/// and upper half of the sequence number.
fn line(key: &ExportedKey) -> String {
    let family = if key.source.is_ipv4() { "IPv4" } else { "IPv6" };
    let hex = |key: &str| {
        if key.is_empty() {
            String::new()
        } else {
            format!("0x{key}")
        }
    };
    let encryption = match key.suite.cipher() {
        EspCipher::AesGcm16 => "AES-GCM with 16 octet ICV [RFC4106]",
        // Wireshark 4.0 knows neither for ESP, and refuses a file with a name it does not know.
        EspCipher::AesCcm16 | EspCipher::ChaCha20Poly1305 => {
            return format!(
                "# SPI {:08x} left out: Wireshark's esp_sa has no {}\n",
                key.spi, key.suite
            );
        }
        EspCipher::AesCbc => "AES-CBC [RFC3602]",
        EspCipher::AesCtr => "AES-CTR [RFC3686]",
        EspCipher::Null => "NULL",
    };
    // Without the integrity key its length is still needed to find the end of the payload.
    let authentication = match (key.suite.integrity(), key.integrity.is_empty()) {
        (None, _) => "NULL",
        (Some(integrity), true) => match integrity.icv_len() {
            16 => "ANY 128 bit authentication [no checking]",
            24 => "ANY 192 bit authentication [no checking]",
            _ => "ANY 256 bit authentication [no checking]",
        },
        (Some(EspIntegrity::HmacSha256), _) => "HMAC-SHA-256-128 [RFC4868]",
        (Some(EspIntegrity::HmacSha384), _) => "HMAC-SHA-384-192 [RFC4868]",
        (Some(EspIntegrity::HmacSha512), _) => "HMAC-SHA-512-256 [RFC4868]",
    };
    let sequence = if key.esn { "64-bit" } else { "32-bit" };
    format!(
        "\"{family}\",\"{}\",\"{}\",\"0x{:08x}\",\"{encryption}\",\"{}\",\"{authentication}\",\"{}\",\"{sequence}\",\
         \"\"\n",
        key.source,
        key.destination,
        key.spi,
        hex(&key.cipher),
        hex(&key.integrity),
    )
}

#[cfg(test)]
mod tests {
    use towpath_base::sa::EspSuite;

    use super::*;

    fn key(suite: EspSuite, integrity: &str) -> ExportedKey {
        ExportedKey {
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.0.2".parse().unwrap(),
            spi: 0x1002,
            suite,
            esn: true,
            cipher: "00ff".into(),
            integrity: integrity.into(),
        }
    }

    #[test]
    fn lines_are_those_of_the_esp_sa_file() {
        let front = "\"IPv4\",\"10.0.0.1\",\"10.0.0.2\",\"0x00001002\",";
        for (key, rest) in [
            (
                key(EspSuite::Aes128Gcm16, ""),
                "\"AES-GCM with 16 octet ICV [RFC4106]\",\"0x00ff\",\"NULL\",\"\",\"64-bit\",\"\"\n",
            ),
            (
                key(EspSuite::Aes256CbcSha256, "aa"),
                "\"AES-CBC [RFC3602]\",\"0x00ff\",\"HMAC-SHA-256-128 [RFC4868]\",\"0xaa\",\"64-bit\",\"\"\n",
            ),
            (
                key(EspSuite::Aes256CbcSha384, ""),
                "\"AES-CBC [RFC3602]\",\"0x00ff\",\"ANY 192 bit authentication [no checking]\",\"\",\"64-bit\",\"\"\n",
            ),
        ] {
            assert_eq!(line(&key), format!("{front}{rest}"));
        }
        assert!(line(&key(EspSuite::Aes128Ccm16, "")).starts_with("# SPI 00001002"));
    }
}
