//! Every link of a node.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use zeroize::Zeroizing;

use crate::Part;
use crate::frame::{self, Bytes};
use crate::identity::{ChannelError, Identity, check_peer, server_name};

/// Messages that may wait for one link. A link whose other end is this far behind is ended.
const QUEUE: usize = 1 << 16;
/// Events that may wait for the loop; then links are no longer read from.
const EVENTS: usize = 1024;
/// Handshakes at a time with whoever connects.
const HANDSHAKES: usize = 64;
/// Links accepted at a time.
const LINKS: usize = 4096;

/// Timing of links.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// A link that has nothing to say sends a heartbeat this often.
    pub heartbeat: Duration,
    /// A link silent for this long is down.
    pub dead_after: Duration,
    /// Longest wait between attempts to connect.
    pub retry_max: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(500),
            dead_after: Duration::from_secs(2),
            retry_max: Duration::from_secs(2),
        }
    }
}

/// Names one link for its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(u64);

/// The other end of a link.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Its name, checked against its certificate.
    pub name: String,
    /// What it is on this link, checked likewise.
    pub part: Part,
}

/// What happened on a link.
#[derive(Debug)]
pub enum Event {
    /// It works. A peer that connects anew, its older link not yet seen to be down, comes a second time.
    Up {
        /// The link.
        link: LinkId,
        /// What this node is on it.
        own: Part,
        /// Who is at the other end.
        peer: Peer,
    },
    /// A message.
    Message {
        /// The link.
        link: LinkId,
        /// As it was given to [`Hub::send`] at the other end.
        bytes: Bytes,
    },
    /// It is over. One that was dialled is dialled again.
    Down {
        /// The link.
        link: LinkId,
        /// Why, for people.
        reason: String,
    },
}

/// The links of one node.
pub struct Hub {
    shared: Shared,
    links: HashMap<LinkId, mpsc::Sender<Bytes>>,
    opened: mpsc::UnboundedReceiver<(LinkId, mpsc::Sender<Bytes>)>,
    events: mpsc::Receiver<Event>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Clone)]
struct Shared {
    identity: Identity,
    settings: Settings,
    next: Arc<AtomicU64>,
    events: mpsc::Sender<Event>,
    opened: mpsc::UnboundedSender<(LinkId, mpsc::Sender<Bytes>)>,
}

impl Drop for Hub {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Hub {
    /// A hub without links.
    pub fn new(identity: Identity, settings: Settings) -> Self {
        let (events, inbox) = mpsc::channel(EVENTS);
        let (announce, opened) = mpsc::unbounded_channel();
        let shared = Shared {
            identity,
            settings,
            next: Arc::new(AtomicU64::new(1)),
            events,
            opened: announce,
        };
        Self {
            shared,
            links: HashMap::new(),
            opened,
            events: inbox,
            tasks: Vec::new(),
        }
    }

    /// This node's name.
    pub fn name(&self) -> &str {
        self.shared.identity.name()
    }

    /// Accepts links at `address` from nodes that want one of `own`. Returns the address bound.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn listen(&mut self, address: SocketAddr, own: Vec<Part>) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        let shared = self.shared.clone();
        self.tasks.push(tokio::spawn(accept(shared, listener, own)));
        Ok(bound)
    }

    /// Keeps a link to `peer` at `address` (host or IP address, and port), as `own`.
    pub fn dial(&mut self, own: Part, peer: Peer, address: String) {
        let shared = self.shared.clone();
        self.tasks.push(tokio::spawn(keep(shared, own, peer, address)));
    }

    /// The next event. Waits for ever on a hub without links.
    pub async fn event(&mut self) -> Event {
        loop {
            if let Some(event) = self.events.recv().await {
                return self.follow(event);
            }
            // Never: this hub holds a sender itself.
            std::future::pending::<()>().await;
        }
    }

    /// The next event, if there is one now.
    pub fn try_event(&mut self) -> Option<Event> {
        let event = self.events.try_recv().ok()?;
        Some(self.follow(event))
    }

    fn follow(&mut self, event: Event) -> Event {
        while let Ok((link, sender)) = self.opened.try_recv() {
            self.links.insert(link, sender);
        }
        if let Event::Down { link, .. } = &event {
            self.links.remove(link);
        }
        event
    }

    /// Sends a message. False: the link is down, or too far behind and ended for it.
    pub fn send(&mut self, link: LinkId, message: Vec<u8>) -> bool {
        let message = Zeroizing::new(message);
        let Some(sender) = self.links.get(&link) else {
            return false;
        };
        if message.is_empty() || message.len() > frame::MAX_FRAME {
            tracing::error!(
                bytes = message.len(),
                "a message of this length does not fit a channel"
            );
            return false;
        }
        if sender.try_send(message).is_err() {
            // Dropping the sender ends the link.
            self.links.remove(&link);
            return false;
        }
        true
    }

    /// Ends a link; it is dialled again if it was dialled.
    pub fn close(&mut self, link: LinkId) {
        self.links.remove(&link);
    }
}

/// Dials until the hub is dropped.
async fn keep(shared: Shared, own: Part, peer: Peer, address: String) {
    let first = Duration::from_millis(100);
    let mut wait = first;
    let mut told = String::new();
    loop {
        match dial(&shared, own, &peer, &address).await {
            Ok(stream) => {
                (wait, told) = (first, String::new());
                run(&shared, stream, own, peer.clone()).await;
            }
            Err(error) => {
                let error = error.to_string();
                if error != told {
                    tracing::warn!(
                        node = peer.name,
                        address,
                        "no channel to the {}: {error}",
                        peer.part.name()
                    );
                    told = error;
                }
            }
        }
        sleep(wait).await;
        wait = (wait * 2).min(shared.settings.retry_max);
    }
}

async fn dial(
    shared: &Shared,
    own: Part,
    peer: &Peer,
    address: &str,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, ChannelError> {
    let limit = shared.settings.dead_after;
    within(limit, async {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let connector = TlsConnector::from(Arc::clone(&shared.identity.client));
        let mut stream = connector.connect(server_name(&peer.name)?, stream).await?;
        check_peer(stream.get_ref().1.peer_certificates(), &peer.name, peer.part)?;
        let hello = format!("{} {} {}", own.name(), peer.part.name(), shared.identity.name());
        frame::write(&mut stream, hello.as_bytes()).await?;
        stream.flush().await?;
        // What the other end refuses it closes: a link is up when it was answered.
        frame::read(&mut stream).await?;
        Ok(stream)
    })
    .await
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, ChannelError>>,
) -> Result<T, ChannelError> {
    match timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => Err(ChannelError::Refused(format!("no answer within {limit:?}"))),
    }
}

async fn accept(shared: Shared, listener: TcpListener, own: Vec<Part>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let links = Arc::new(Semaphore::new(LINKS));
    loop {
        let Ok(handshake) = Arc::clone(&handshakes).acquire_owned().await else {
            return;
        };
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "channel: cannot accept");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (shared, own) = (shared.clone(), own.clone());
        let links = Arc::clone(&links);
        tokio::spawn(async move {
            let answered = answer(&shared, &own, stream).await;
            drop(handshake);
            match (answered, links.try_acquire()) {
                (Ok((stream, own, peer)), Ok(_place)) => run(&shared, stream, own, peer).await,
                (Ok(_), Err(_)) => tracing::warn!(%from, "channel refused: too many links"),
                (Err(error), _) => tracing::warn!(%from, "channel refused: {error}"),
            }
        });
    }
}

async fn answer(
    shared: &Shared,
    own: &[Part],
    stream: TcpStream,
) -> Result<(tokio_rustls::server::TlsStream<TcpStream>, Part, Peer), ChannelError> {
    within(shared.settings.dead_after, async {
        stream.set_nodelay(true)?;
        let acceptor = TlsAcceptor::from(Arc::clone(&shared.identity.server));
        let mut stream = acceptor.accept(stream).await?;
        let hello = frame::read(&mut stream).await?;
        let (wanted, peer) = hello_of(&hello, stream.get_ref().1.peer_certificates())?;
        if !own.contains(&wanted) {
            let message = format!("{} wants a {}, which this node is not", peer.name, wanted.name());
            return Err(ChannelError::Refused(message));
        }
        frame::write(&mut stream, &[]).await?;
        stream.flush().await?;
        Ok((stream, wanted, peer))
    })
    .await
}

/// `keyserver registry ks1`: what the other end is, what it wants, its name.
fn hello_of(hello: &[u8], certificates: Option<&[CertificateDer<'_>]>) -> Result<(Part, Peer), ChannelError> {
    let malformed = || ChannelError::Refused("malformed greeting".into());
    let text = std::str::from_utf8(hello).map_err(|_| malformed())?;
    let words: Vec<&str> = text.split(' ').collect();
    let [part, wanted, name] = words.as_slice() else {
        return Err(malformed());
    };
    let (Some(part), Some(wanted)) = (Part::of_name(part), Part::of_name(wanted)) else {
        return Err(malformed());
    };
    check_peer(certificates, name, part)?;
    let name = (*name).to_owned();
    Ok((wanted, Peer { name, part }))
}

/// Carries messages until the link is down.
async fn run<S: AsyncRead + AsyncWrite + Unpin>(shared: &Shared, stream: S, own: Part, peer: Peer) {
    let link = LinkId(shared.next.fetch_add(1, Ordering::Relaxed));
    let (sender, mut queue) = mpsc::channel(QUEUE);
    let (mut from, mut to) = tokio::io::split(stream);
    if shared.opened.send((link, sender)).is_err() {
        return;
    }
    let up = Event::Up { link, own, peer };
    if shared.events.send(up).await.is_err() {
        return;
    }
    let Settings {
        heartbeat,
        dead_after,
        ..
    } = shared.settings;
    let reading = async {
        loop {
            match timeout(dead_after, frame::read(&mut from)).await {
                Ok(Ok(bytes)) if bytes.is_empty() => {}
                Ok(Ok(bytes)) => {
                    if shared.events.send(Event::Message { link, bytes }).await.is_err() {
                        return "this node stops".to_owned();
                    }
                }
                Ok(Err(error)) => return error.to_string(),
                Err(_) => return format!("silent for {dead_after:?}"),
            }
        }
    };
    let writing = async {
        let mut beat = interval(heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let written = tokio::select! {
                message = queue.recv() => match message {
                    Some(message) => timeout(dead_after, write_all(&mut to, &mut queue, message)).await,
                    None => return "closed here".to_owned(),
                },
                _ = beat.tick() => timeout(dead_after, async {
                    frame::write(&mut to, &[]).await?;
                    to.flush().await
                }).await,
            };
            match written {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return error.to_string(),
                Err(_) => return format!("nothing taken for {dead_after:?}"),
            }
        }
    };
    let reason = tokio::select! {
        reason = reading => reason,
        reason = writing => reason,
    };
    let _ = shared.events.send(Event::Down { link, reason }).await;
}

/// One message and, in the same flush, those behind it.
async fn write_all<W: AsyncWrite + Unpin>(
    to: &mut W,
    queue: &mut mpsc::Receiver<Bytes>,
    first: Bytes,
) -> io::Result<()> {
    frame::write(to, &first).await?;
    for _ in 0..256 {
        let Ok(message) = queue.try_recv() else { break };
        frame::write(to, &message).await?;
    }
    to.flush().await
}
