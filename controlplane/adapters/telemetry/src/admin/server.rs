//! The daemon's side of the admin socket.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::unix::OwnedWriteHalf;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::line::{self, LineError};
use super::{AdminError, ErrorKind, EventBus, MAX_CONNECTIONS, Reply, Request, Response};

/// A connection that sends nothing for this long is closed.
const IDLE: Duration = Duration::from_secs(60);

/// A client that takes nothing for this long is cut off.
const WRITE: Duration = Duration::from_secs(10);

/// Where the daemon's loop puts the answer to one request. Dropped unused, the client is told so.
#[derive(Debug)]
pub struct Responder(oneshot::Sender<Response>);

impl Responder {
    /// Answers.
    pub fn respond(self, response: impl Into<Response>) {
        // An error only says that the client is gone.
        let _ = self.0.send(response.into());
    }

    /// A responder and the end at which its answer arrives, for tests of the daemon's loop.
    pub fn pair() -> (Self, oneshot::Receiver<Response>) {
        let (sender, receiver) = oneshot::channel();
        (Self(sender), receiver)
    }
}

/// A bound admin socket; the file is removed on drop.
#[derive(Debug)]
pub struct AdminServer {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for AdminServer {
    fn drop(&mut self) {
        // A file that is gone already is what we want.
        let _ = fs::remove_file(&self.path);
    }
}

impl AdminServer {
    /// Creates the socket at `path`, mode 0600 from the first moment, and its directory if need be. A socket that
    /// nobody serves is replaced; one that is served gives [`io::ErrorKind::AddrInUse`].
    ///
    /// Must be called inside a tokio runtime.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                format!("a running daemon serves {}", path.display()),
            ));
        }
        if let Some(directory) = path
            .parent()
            .filter(|directory| !directory.as_os_str().is_empty())
        {
            fs::create_dir_all(directory)?;
        }
        // Bound under another name and moved when its mode is right, so that nobody connects before.
        let mut early = path.as_os_str().to_owned();
        early.push(format!(".{}", std::process::id()));
        let early = PathBuf::from(early);
        let _ = fs::remove_file(&early);
        let listener = UnixListener::bind(&early)?;
        fs::set_permissions(&early, fs::Permissions::from_mode(0o600))?;
        fs::rename(&early, path)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }

    /// Serves until the receiver of `requests` is gone. Runs in the caller's task; connections get their own.
    pub async fn serve(
        self,
        requests: mpsc::Sender<(Request, Responder)>,
        events: EventBus,
    ) -> io::Result<()> {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = requests.closed() => return Ok(()),
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, most likely: wait for connections to end instead of spinning.
                    tracing::warn!(%error, "admin socket: cannot accept");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            if !may_connect(&stream) {
                tracing::warn!("admin socket: connection of another user closed");
                continue;
            }
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                tracing::warn!("admin socket: more than {MAX_CONNECTIONS} connections, one closed");
                continue;
            };
            let (requests, events) = (requests.clone(), events.clone());
            tokio::spawn(async move {
                if let Err(error) = converse(stream, &requests, &events).await {
                    tracing::debug!(%error, "admin connection ended");
                }
                drop(slot);
            });
        }
    }
}

/// [`AdminServer::bind`] and [`AdminServer::serve`] in one.
pub async fn serve(
    path: &Path,
    requests: mpsc::Sender<(Request, Responder)>,
    events: EventBus,
) -> io::Result<()> {
    AdminServer::bind(path)?.serve(requests, events).await
}

/// Only root and the user the daemon runs as.
fn may_connect(stream: &UnixStream) -> bool {
    stream
        .peer_cred()
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == nix::unistd::geteuid().as_raw())
}

async fn converse(
    stream: UnixStream,
    requests: &mpsc::Sender<(Request, Responder)>,
    events: &EventBus,
) -> io::Result<()> {
    let (input, mut output) = stream.into_split();
    let mut input = BufReader::new(input);
    loop {
        let line = match timeout(IDLE, line::read(&mut input)).await {
            Err(_) | Ok(Ok(None)) => return Ok(()),
            Ok(Ok(Some(line))) => line,
            Ok(Err(LineError::Io(error))) => return Err(error),
            Ok(Err(error)) => {
                let refusal = AdminError::invalid(error.to_string());
                return write(&mut output, &Response::Error(refusal)).await;
            }
        };
        let response = match line::decode(&line) {
            Err(error) => Response::Error(AdminError::invalid(format!("request does not parse: {error}"))),
            Ok(Request::Events) => return follow(&mut input, &mut output, events).await,
            Ok(Request::Recent) => Response::Ok(Reply::Recent(events.recent())),
            Ok(request) => ask(request, requests).await,
        };
        drop(line);
        write(&mut output, &response).await?;
    }
}

async fn ask(request: Request, requests: &mpsc::Sender<(Request, Responder)>) -> Response {
    let (responder, answer) = Responder::pair();
    let stopping = || {
        Response::Error(AdminError::new(
            ErrorKind::Unavailable,
            "the daemon is stopping or does not run the role asked for",
        ))
    };
    if requests.send((request, responder)).await.is_err() {
        return stopping();
    }
    answer.await.unwrap_or_else(|_| stopping())
}

async fn write(output: &mut OwnedWriteHalf, value: &impl serde::Serialize) -> io::Result<()> {
    let line = line::encode(value)?;
    timeout(WRITE, output.write_all(&line))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// Writes events until the client hangs up.
async fn follow(
    input: &mut (impl tokio::io::AsyncBufRead + Unpin),
    output: &mut OwnedWriteHalf,
    events: &EventBus,
) -> io::Result<()> {
    let mut reader = events.subscribe();
    write(output, &Response::Ok(Reply::Events)).await?;
    loop {
        tokio::select! {
            event = reader.next() => match event {
                Some(event) => write(output, &event).await?,
                None => return Ok(()),
            },
            // The client has nothing more to say: this is its end of file, or noise that ends it as well.
            _ = line::read(input) => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::admin::{Client, ClientError, Event, Status};

    fn with_server<T: Send + 'static>(test: impl FnOnce(PathBuf, EventBus) -> T + Send + 'static) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/admin.sock");
        runtime.block_on(async {
            let server = AdminServer::bind(&path).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
            let (sender, mut receiver) = mpsc::channel::<(Request, Responder)>(4);
            let events = EventBus::new();
            tokio::spawn(server.serve(sender, events.clone()));
            tokio::spawn(async move {
                while let Some((request, responder)) = receiver.recv().await {
                    match request {
                        Request::Status => responder.respond(Ok(Reply::Status(Status {
                            version: "7".into(),
                            ..Status::default()
                        }))),
                        Request::Stats => responder.respond(Err(AdminError::invalid("no"))),
                        _ => drop(responder),
                    }
                }
            });
            tokio::task::spawn_blocking(move || test(path, events))
                .await
                .unwrap()
        })
    }

    #[test]
    fn requests_are_answered_in_turn() {
        with_server(|path, _| {
            let mut client = Client::connect(&path).unwrap().unwrap();
            for _ in 0..3 {
                let reply = client.request(&Request::Status).unwrap();
                assert!(matches!(reply, Reply::Status(status) if status.version == "7"));
            }
            let refused = client.request(&Request::Stats).unwrap_err();
            assert!(matches!(refused, ClientError::Refused(error) if error.kind == ErrorKind::Invalid));
            let unserved = client.request(&Request::IkeList).unwrap_err();
            assert!(matches!(unserved, ClientError::Refused(error) if error.kind == ErrorKind::Unavailable));
        });
    }

    #[test]
    fn noise_gets_an_error_and_the_connection_goes_on() {
        with_server(|path, _| {
            use std::io::{BufRead, Write};

            let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
            stream
                .write_all(b"{\"sa_list\":{\"colour\":1}}\n\xff\n\"status\"\n")
                .unwrap();
            let answers: Vec<String> = std::io::BufReader::new(&stream)
                .lines()
                .take(3)
                .map(Result::unwrap)
                .collect();
            assert!(answers[0].contains("unknown field `colour`"), "{answers:?}");
            assert!(answers[1].starts_with("{\"error\""), "{answers:?}");
            assert!(answers[2].starts_with("{\"ok\":{\"status\""), "{answers:?}");
        });
    }

    #[test]
    fn followers_see_what_is_published() {
        with_server(|path, events| {
            let mut client = Client::connect(&path).unwrap().unwrap();
            client.follow().unwrap();
            for kind in ["registered", "proxy_request"] {
                events.publish(Event {
                    kind: kind.into(),
                    ..Event::default()
                });
            }
            assert_eq!(client.next_event().unwrap().unwrap().kind, "registered");
            assert_eq!(client.next_event().unwrap().unwrap().number, 2);
        });
    }

    #[test]
    fn a_served_socket_is_not_taken_and_a_stale_one_is() {
        with_server(|path, _| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            let _guard = runtime.enter();
            assert_eq!(
                AdminServer::bind(&path).unwrap_err().kind(),
                io::ErrorKind::AddrInUse
            );
            let stale = path.with_extension("stale");
            drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
            assert!(stale.exists() && Client::connect(&stale).unwrap().is_none());
            AdminServer::bind(&stale).unwrap();
        });
    }
}
