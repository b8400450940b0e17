//! What the terminal tells about itself, and the control socket it tells it on.
//!
//! The socket speaks lines of JSON: the request `{"command":"status"}`, the answer a [`Status`] or
//! `{"error":"…"}`. One connection may ask again and again; `nc -U` will do as a client.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader as AsyncBufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::warn;

/// Longest request line, bytes.
const MAX_REQUEST: u64 = 4096;

/// Most connections served at a time.
const MAX_CONNECTIONS: usize = 8;

/// How long a client may be silent, and how long one waits for the terminal.
const PATIENCE: Duration = Duration::from_secs(5);

/// The terminal's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Name in the configuration.
    pub name: String,
    /// Number the registry gave the subscriber.
    pub handle: u64,
    /// Interface towards the network.
    pub interface: String,
    /// Who seals and opens packets: `kernel` or `user-space`.
    #[serde(default)]
    pub backend: String,
    /// TUN device of level 0; empty where the kernel seals and opens.
    pub tun: String,
    /// MTU of the TUN device, bytes, or of the interface where there is none.
    pub mtu: u16,
    /// Addresses the terminal registers.
    pub addresses: Vec<IpAddr>,
    /// Whether a registration is in force.
    pub registered: bool,
    /// Seconds since the terminal started.
    pub uptime_seconds: u64,
    /// Packets that wait for their SA.
    pub held: u64,
    /// Security associations, one per pair of directions.
    pub sas: Vec<SaStatus>,
    /// Counters by name; those of dropped packets are `drop.REASON`.
    pub counters: BTreeMap<String, u64>,
}

/// One pair of ESP SAs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaStatus {
    /// The terminal's address.
    pub local: IpAddr,
    /// The peer's address.
    pub peer: IpAddr,
    /// SPI of packets the terminal receives, eight hex digits.
    pub spi_in: String,
    /// SPI of packets the terminal sends, eight hex digits.
    pub spi_out: String,
    /// Algorithms.
    pub suite: String,
    /// `transport` or `tunnel`.
    pub mode: String,
    /// Whether ESP is inside UDP.
    pub udp_encapsulated: bool,
    /// Whether packets are sent with it: an SA that was replaced still receives for a while.
    pub sending: bool,
    /// What the gateway may do: `full` or `none`.
    pub class: String,
    /// Sensitivity level of its packets.
    #[serde(default)]
    pub level: u8,
    /// Packets received.
    pub packets_in: u64,
    /// Bytes received: plain IP packets.
    pub bytes_in: u64,
    /// Packets sent.
    pub packets_out: u64,
    /// Bytes sent: plain IP packets.
    pub bytes_out: u64,
}

impl From<&towpath_terminal_core::SaStatus> for SaStatus {
    fn from(sa: &towpath_terminal_core::SaStatus) -> Self {
        Self {
            local: sa.name.local,
            peer: sa.name.remote,
            spi_in: sa.name.spi_in.to_string(),
            spi_out: sa.name.spi_out.to_string(),
            suite: sa.suite.to_string(),
            mode: sa.mode.to_string(),
            udp_encapsulated: sa.encap,
            sending: !sa.replaced && !sa.standby,
            class: sa.class.to_string(),
            level: sa.level,
            packets_in: sa.packets_in,
            bytes_in: sa.bytes_in,
            packets_out: sa.packets_out,
            bytes_out: sa.bytes_out,
        }
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    command: Command,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Command {
    Status,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Answer {
    Status(Box<Status>),
    Error { error: String },
}

/// A question of the control socket to the loop.
pub type Question = oneshot::Sender<Status>;

/// The listening socket; removed when dropped.
#[derive(Debug)]
pub struct Control {
    path: PathBuf,
    task: JoinHandle<()>,
}

impl Control {
    /// Listens at `path`, for its owner alone; questions go to `questions`. A stale socket there is replaced,
    /// one that answers or anything else is not.
    pub fn listen(path: &Path, questions: mpsc::Sender<Question>) -> io::Result<Self> {
        match path.symlink_metadata() {
            Ok(metadata) if metadata.file_type().is_socket() => {
                if BlockingStream::connect(path).is_ok() {
                    return Err(io::Error::new(
                        io::ErrorKind::AddrInUse,
                        "another process answers there",
                    ));
                }
                std::fs::remove_file(path)?;
            }
            Ok(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "exists and is no socket",
                ));
            }
            Err(_) => {}
        }
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder)?;
        }
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let task = tokio::spawn(accept(listener, questions));
        Ok(Self {
            path: path.to_owned(),
            task,
        })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.task.abort();
        if let Err(error) = std::fs::remove_file(&self.path) {
            warn!(path = %self.path.display(), %error, "removing the control socket");
        }
    }
}

async fn accept(listener: UnixListener, questions: mpsc::Sender<Question>) {
    let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
    while let Ok(slot) = slots.clone().acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let questions = questions.clone();
                tokio::spawn(async move {
                    // A client that goes away mid-answer is its own affair.
                    let _ = serve(stream, questions).await;
                    drop(slot);
                });
            }
            Err(error) => {
                warn!(%error, "control socket");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(stream: UnixStream, questions: mpsc::Sender<Question>) -> io::Result<()> {
    use tokio::io::AsyncReadExt;

    let (reader, mut writer) = stream.into_split();
    let mut reader = AsyncBufReader::new(reader);
    loop {
        let mut line = String::new();
        let mut limited = (&mut reader).take(MAX_REQUEST);
        if tokio::time::timeout(PATIENCE, limited.read_line(&mut line)).await?? == 0 {
            return Ok(());
        }
        let answer = match serde_json::from_str::<Request>(&line) {
            Ok(Request {
                command: Command::Status,
            }) => match ask(&questions).await {
                Some(status) => Answer::Status(Box::new(status)),
                None => Answer::Error {
                    error: "the terminal is stopping".to_owned(),
                },
            },
            Err(error) => Answer::Error {
                error: format!("request: {error}"),
            },
        };
        let mut bytes = serde_json::to_vec(&answer)?;
        bytes.push(b'\n');
        writer.write_all(&bytes).await?;
        if !line.ends_with('\n') {
            return Ok(());
        }
    }
}

async fn ask(questions: &mpsc::Sender<Question>) -> Option<Status> {
    let (question, answer) = oneshot::channel();
    questions.send(question).await.ok()?;
    answer.await.ok()
}

/// Asks the terminal at control socket `path` for its state. Blocks for at most a few seconds.
pub fn query(path: &Path) -> io::Result<Status> {
    let mut stream = BlockingStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = serde_json::to_vec(&Request {
        command: Command::Status,
    })?;
    request.push(b'\n');
    stream.write_all(&request)?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    match serde_json::from_str(&line)? {
        Answer::Status(status) => Ok(*status),
        Answer::Error { error } => Err(io::Error::other(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        Status {
            backend: "user-space".into(),
            name: "alice".to_owned(),
            handle: 7,
            interface: "eth0".to_owned(),
            tun: "towpath0".to_owned(),
            mtu: 1390,
            addresses: vec!["192.0.2.7".parse().unwrap()],
            registered: true,
            uptime_seconds: 3,
            held: 0,
            sas: vec![SaStatus {
                local: "192.0.2.7".parse().unwrap(),
                peer: "198.51.100.1".parse().unwrap(),
                spi_in: "00001001".to_owned(),
                spi_out: "00001002".to_owned(),
                suite: "aes256gcm16".to_owned(),
                mode: "transport".to_owned(),
                udp_encapsulated: false,
                sending: true,
                class: "full".to_owned(),
                level: 0,
                packets_in: 1,
                bytes_in: 84,
                packets_out: 2,
                bytes_out: 168,
            }],
            counters: BTreeMap::from([("drop.esp_replayed".to_owned(), 4)]),
        }
    }

    #[tokio::test]
    async fn the_socket_answers_questions_and_refuses_nonsense() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("terminal.sock");
        let (questions, mut asked) = mpsc::channel::<Question>(1);
        let control = Control::listen(&path, questions.clone()).unwrap();
        assert!(
            Control::listen(&path, questions).is_err(),
            "the other one answers"
        );
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);

        let loop_side = async {
            asked.recv().await.unwrap().send(status()).unwrap();
        };
        let at = path.clone();
        let client = tokio::task::spawn_blocking(move || query(&at));
        let ((), answer) = tokio::join!(loop_side, client);
        assert_eq!(answer.unwrap().unwrap(), status());

        let at = path.clone();
        let refused = tokio::task::spawn_blocking(move || {
            let mut stream = BlockingStream::connect(at).unwrap();
            stream.write_all(b"{\"command\":\"reboot\"}\n").unwrap();
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line).unwrap();
            line
        });
        let line = refused.await.unwrap();
        assert!(
            line.starts_with("{\"error\":\"request: unknown variant `reboot`"),
            "{line}"
        );
        drop(control);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("terminal.sock");
        let (questions, _asked) = mpsc::channel::<Question>(1);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        drop(Control::listen(&path, questions.clone()).unwrap());
        std::fs::write(&path, "precious").unwrap();
        assert!(Control::listen(&path, questions).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}
