//! The baseline: a relay that leaves everything to the kernel. One thread, epoll, two sockets and two pipes per
//! connection, `splice` between them, so that no byte enters user space.
//!
//! It is an ordinary proxy that clients connect to; a transparent one (TPROXY) costs the kernel a rule per packet more.

use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, SpliceFFlags, splice};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, getsockopt, shutdown, socket, sockopt,
};
use nix::unistd::pipe2;

/// Bytes per `splice`.
const CHUNK: usize = 1 << 20;
/// The listener's token.
const LISTENER: u64 = u64::MAX;

/// One direction: from a socket through a pipe to the other.
struct Way {
    pipe: (OwnedFd, OwnedFd),
    inside: usize,
    ended: bool,
}

struct Pair {
    /// The client's connection and ours to the server.
    ends: [OwnedFd; 2],
    ways: [Way; 2],
}

/// Relays every connection to `port` on to `server`, until killed.
pub fn run(port: u16, server: SocketAddr) -> Result<()> {
    crate::load::many_files()?;
    let listener = TcpListener::bind(("0.0.0.0", port)).with_context(|| format!("listen on {port}"))?;
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    println!("ready");
    let mut pairs: HashMap<u64, Pair> = HashMap::new();
    let mut next = 0;
    let mut events = vec![EpollEvent::empty(); 256];
    loop {
        let count = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        for event in events.iter().take(count) {
            let token = event.data();
            if token == LISTENER {
                while let Ok((client, _)) = listener.accept() {
                    if let Ok(pair) = open(&epoll, client, server, next) {
                        pairs.insert(next, pair);
                    }
                    next += 1;
                }
            } else if let Some(pair) = pairs.get_mut(&token)
                && !pair.move_on()
            {
                pairs.remove(&token);
            }
        }
    }
}

/// Connects onward. Edge-triggered: both ends are tried at every event.
fn open(epoll: &Epoll, client: TcpStream, server: SocketAddr, token: u64) -> Result<Pair> {
    client.set_nonblocking(true)?;
    client.set_nodelay(true)?;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let onward = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
    nix::sys::socket::setsockopt(&onward, sockopt::TcpNoDelay, &true)?;
    match connect(
        std::os::fd::AsRawFd::as_raw_fd(&onward),
        &SockaddrStorage::from(server),
    ) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(errno) => return Err(errno.into()),
    }
    let ends = [OwnedFd::from(client), onward];
    let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
    for end in &ends {
        epoll.add(end, EpollEvent::new(interest, token))?;
    }
    let way = || -> Result<Way> {
        Ok(Way {
            pipe: pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?,
            inside: 0,
            ended: false,
        })
    };
    Ok(Pair {
        ends,
        ways: [way()?, way()?],
    })
}

impl Pair {
    /// Moves what can be moved; false when the connection is over.
    fn move_on(&mut self) -> bool {
        if !matches!(getsockopt(&self.ends[1], sockopt::SocketError), Ok(0)) {
            return false;
        }
        let [client, server] = &self.ends;
        let [up, down] = &mut self.ways;
        up.carry(client, server) && down.carry(server, client) && !(up.ended && down.ended)
    }
}

impl Way {
    fn carry(&mut self, from: &OwnedFd, to: &OwnedFd) -> bool {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        loop {
            let mut moved = 0;
            if !self.ended {
                match splice(from.as_fd(), None, self.pipe.1.as_fd(), None, CHUNK, flags) {
                    Ok(0) => self.ended = true,
                    Ok(count) => {
                        self.inside += count;
                        moved += count;
                    }
                    Err(Errno::EAGAIN | Errno::ENOTCONN) => {}
                    Err(_) => return false,
                }
            }
            if self.inside > 0 {
                match splice(self.pipe.0.as_fd(), None, to.as_fd(), None, self.inside, flags) {
                    Ok(count) => {
                        self.inside -= count;
                        moved += count;
                    }
                    Err(Errno::EAGAIN | Errno::ENOTCONN) => {}
                    Err(_) => return false,
                }
            }
            if self.ended && self.inside == 0 {
                // It may be gone already.
                let _ = shutdown(
                    std::os::fd::AsRawFd::as_raw_fd(to),
                    nix::sys::socket::Shutdown::Write,
                );
            }
            if moved == 0 {
                return true;
            }
        }
    }
}
