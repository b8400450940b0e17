//! Both ends of IKE set-ups over real sockets, for `cargo xtask bench ike`: the responder that is measured beside
//! charon, and the initiator that loads either.
//!
//! ```text
//! ike_load respond  ADDRESS AUTH PROPOSAL             prints `ready`, answers until killed
//! ike_load initiate ADDRESS AUTH PROPOSAL PHASE…      PHASE: COUNTxPARALLEL, e.g. 9800x32, or SECONDSsxPARALLEL
//! ```
//!
//! AUTH is `psk`, or a folder with `ca.der` and, per end (`a` initiates, `b` responds), `a.der` and `a.key`.
//! Each set-up of the initiator comes from an address of its own below 10.128.0.0/9, which must be local. Both
//! sides force UDP encapsulation, because charon's ESP in user space needs it. The responder is the engine behind
//! two sockets: no gateway, no terminal to hand keys to.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::error::Error;
use std::io::{ErrorKind, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt, sockopt,
};
use towpath_base::Instant;
use towpath_base::credentials::CertificateKey;
use towpath_base::profile::{IkeId, Psk};
use towpath_base::sa::{EspSuite, Lifetime, Mode};
use towpath_base::selector::TrafficSelector;
use towpath_crypto::{CertificateSigner, IkeCrypto, SystemRng, TrustVerifier};
use towpath_ike::{Auth, Command, Config, Endpoint, Initiate, Policy};

type Outcome<T> = Result<T, Box<dyn Error>>;
type Engine = Endpoint<IkeCrypto, SystemRng>;

/// First address set-ups come from.
const SOURCES: u32 = u32::from_be_bytes([10, 128, 0, 1]);
/// First address their CHILD SAs protect; the responder's side is [`INSIDE`].
const INNER: u32 = u32::from_be_bytes([10, 64, 0, 1]);
/// What the responder's CHILD SAs protect.
const INSIDE: &str = "10.200.0.0/24";
const PORTS: [u16; 2] = [500, 4500];
const MARKER: [u8; 4] = [0; 4];

fn config() -> Config {
    Config {
        dpd_after: None,
        ike_rekey_after: None,
        half_open_timeout: Duration::from_secs(10),
        ..Config::default()
    }
}

fn policy(end: &str, auth: &str, proposal: &str) -> Outcome<Policy> {
    let other = if end == "a" { "b" } else { "a" };
    let certified = auth != "psk";
    Ok(Policy {
        local_id: IkeId::Fqdn(format!("{end}.test")),
        remote_id: Some(IkeId::Fqdn(format!("{other}.test"))),
        psk: Psk::new(if certified {
            Vec::new()
        } else {
            b"swordfish".to_vec()
        }),
        ike_proposals: vec![proposal.parse().map_err(|_| format!("proposal {proposal}"))?],
        esp_suites: vec![EspSuite::Aes256Gcm16],
        esn: false,
        mode: Mode::Tunnel,
        local_ts: vec![inside(if end == "a" { "10.64.0.0/10" } else { INSIDE })?],
        remote_ts: vec![inside(if end == "a" { INSIDE } else { "10.64.0.0/10" })?],
        lifetime: Lifetime::default(),
        force_encap: true,
        auth: if certified {
            certificates(end, auth.as_ref())?
        } else {
            Auth::default()
        },
    })
}

fn inside(text: &str) -> Outcome<TrafficSelector> {
    Ok(TrafficSelector::any_of(
        text.parse().map_err(|_| text.to_owned())?,
    ))
}

fn certificates(end: &str, folder: &Path) -> Outcome<Auth> {
    let read = |name: String| std::fs::read(folder.join(&name)).map_err(|error| format!("{name}: {error}"));
    let credential = CertificateKey {
        chain: vec![read(format!("{end}.der"))?],
        key: Psk::new(read(format!("{end}.key"))?),
    };
    let signer = CertificateSigner::new(&credential).map_err(|error| format!("{end}.key: {error:?}"))?;
    let verifier =
        TrustVerifier::new(&[read("ca.der".into())?], &[]).map_err(|error| format!("{error:?}"))?;
    Ok(Auth {
        signer: Some(Arc::new(signer)),
        verifier: Some(Arc::new(verifier)),
        ..Auth::default()
    })
}

fn clock() -> impl Fn() -> Instant {
    let start = Clock::now();
    move || Instant::from_secs(1) + start.elapsed()
}

/// Port 500 and 4500 of every local address.
struct Sockets([UdpSocket; 2]);

impl Sockets {
    fn open(address: Ipv4Addr) -> Outcome<Self> {
        let open = |port| -> Outcome<UdpSocket> {
            let socket = UdpSocket::bind((address, port))?;
            socket.set_nonblocking(true)?;
            setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?;
            setsockopt(&socket, sockopt::RcvBuf, &(4 << 20))?;
            Ok(socket)
        };
        Ok(Self([open(PORTS[0])?, open(PORTS[1])?]))
    }

    fn wait(&self, at_most: Duration) -> Outcome<()> {
        let mut fds = self
            .0
            .each_ref()
            .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        poll(
            &mut fds,
            PollTimeout::try_from(at_most.min(Duration::from_secs(1)))?,
        )?;
        Ok(())
    }

    /// Every datagram that is there: source, destination, IKE message.
    fn receive(&self, mut take: impl FnMut(SocketAddr, SocketAddr, &[u8])) -> Outcome<()> {
        let mut buffer = [0; 16 << 10];
        for (socket, port) in self.0.iter().zip(PORTS) {
            loop {
                let mut space = nix::cmsg_space!(nix::libc::in_pktinfo);
                let mut slices = [IoSliceMut::new(&mut buffer)];
                let flags = MsgFlags::MSG_DONTWAIT;
                let received =
                    recvmsg::<SockaddrIn>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags);
                let (len, source, local) = match received {
                    Ok(message) => {
                        let local = message.cmsgs()?.find_map(|control| match control {
                            ControlMessageOwned::Ipv4PacketInfo(info) => {
                                Some(Ipv4Addr::from(u32::from_be(info.ipi_addr.s_addr)))
                            }
                            _ => None,
                        });
                        (message.bytes, message.address, local)
                    }
                    Err(nix::errno::Errno::EAGAIN) => break,
                    Err(error) => return Err(error.into()),
                };
                let (Some(source), Some(local)) = (source, local) else {
                    continue;
                };
                let payload = match port {
                    500 => buffer.get(..len),
                    _ => buffer
                        .get(..len)
                        .and_then(|payload| payload.strip_prefix(&MARKER)),
                };
                if let Some(payload) = payload {
                    let source = SocketAddrV4::from(source);
                    take(source.into(), SocketAddr::new(local.into(), port), payload);
                }
            }
        }
        Ok(())
    }

    fn send(&self, source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Outcome<()> {
        let (IpAddr::V4(from), SocketAddr::V4(to)) = (source.ip(), destination) else {
            return Err("only IPv4 here".into());
        };
        let natted = source.port() == PORTS[1];
        let socket = &self.0[usize::from(natted)];
        let marker = if natted { &MARKER[..] } else { &[] };
        let slices = [IoSlice::new(marker), IoSlice::new(payload)];
        let info = nix::libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: nix::libc::in_addr {
                s_addr: u32::from(from).to_be(),
            },
            ipi_addr: nix::libc::in_addr { s_addr: 0 },
        };
        let control = [ControlMessage::Ipv4PacketInfo(&info)];
        let to = SockaddrIn::from(to);
        match sendmsg(
            socket.as_raw_fd(),
            &slices,
            &control,
            MsgFlags::empty(),
            Some(&to),
        ) {
            Ok(_) => Ok(()),
            Err(error) if std::io::Error::from(error).kind() == ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Lets datagrams and timers act; gives every command to `obey`.
fn turn(
    engine: &mut Engine,
    sockets: &Sockets,
    now: &impl Fn() -> Instant,
    mut obey: impl FnMut(&mut Engine, Command),
) -> Outcome<()> {
    sockets.receive(|source, destination, payload| {
        // What is dropped is repeated by whoever sent it.
        let _ = engine.handle_datagram(now(), source, destination, payload);
        while let Some(command) = engine.poll_command() {
            obey(engine, command);
        }
    })?;
    engine.handle_timeout(now());
    while let Some(command) = engine.poll_command() {
        obey(engine, command);
    }
    while let Some(transmit) = engine.poll_transmit() {
        sockets.send(transmit.source, transmit.destination, &transmit.payload)?;
    }
    Ok(())
}

fn pause(engine: &Engine, now: Instant) -> Duration {
    let next = engine.poll_timeout().map(|(at, _)| at.saturating_since(now));
    next.unwrap_or(Duration::from_secs(1))
        .max(Duration::from_millis(1))
}

fn respond(address: Ipv4Addr, auth: &str, proposal: &str) -> Outcome<()> {
    let policy = policy("b", auth, proposal)?;
    let (mut engine, now) = (Endpoint::new(config(), IkeCrypto, SystemRng), clock());
    let sockets = Sockets::open(address)?;
    println!("ready");
    loop {
        sockets.wait(pause(&engine, now()))?;
        turn(&mut engine, &sockets, &now, |engine, command| {
            if let Command::NeedPolicy { request, .. } = command {
                engine.provide_policy(now(), request, Some(policy.clone()));
            }
        })?;
    }
}

/// So many set-ups, so many at a time; or as many as fit in a time.
struct Phase {
    count: u64,
    time: Duration,
    parallel: usize,
}

impl Phase {
    fn parse(text: &str) -> Outcome<Self> {
        let (amount, parallel) = text.split_once('x').ok_or("COUNTxPARALLEL")?;
        let (count, time) = match amount.strip_suffix('s') {
            Some(seconds) => (u64::MAX, Duration::from_secs_f64(seconds.parse()?)),
            None => (amount.parse()?, Duration::MAX),
        };
        Ok(Self {
            count,
            time,
            parallel: parallel.parse()?,
        })
    }
}

/// Gives one line per phase: set-ups, failures, seconds, median seconds of one.
fn initiate(peer: Ipv4Addr, auth: &str, proposal: &str, phases: &[String]) -> Outcome<()> {
    let policy = policy("a", auth, proposal)?;
    let (mut engine, now) = (Endpoint::new(config(), IkeCrypto, SystemRng), clock());
    let sockets = Sockets::open(Ipv4Addr::UNSPECIFIED)?;
    let mut next = 0u32;
    for phase in phases {
        let phase = Phase::parse(phase)?;
        let (mut started, mut failed, mut took) = (0, 0u64, Vec::new());
        let mut under_way: HashMap<u64, Clock> = HashMap::new();
        let begin = Clock::now();
        loop {
            let more = |started: u64| started < phase.count && begin.elapsed() < phase.time;
            while under_way.len() < phase.parallel && more(started) {
                let wish = Initiate {
                    tag: next.into(),
                    local: Ipv4Addr::from(SOURCES + next).into(),
                    remote: peer.into(),
                    remote_port: None,
                    policy: Policy {
                        local_ts: vec![TrafficSelector::host(Ipv4Addr::from(INNER + next).into())],
                        ..policy.clone()
                    },
                };
                under_way.insert(next.into(), Clock::now());
                engine.initiate(now(), wish)?;
                (next, started) = (next + 1, started + 1);
            }
            turn(&mut engine, &sockets, &now, |_, command| match command {
                Command::ChildEstablished { tag: Some(tag), .. } => {
                    took.extend(under_way.remove(&tag).map(|since| since.elapsed().as_secs_f64()));
                }
                Command::Failed {
                    tag: Some(tag),
                    reason,
                    ..
                } => {
                    if failed == 0 {
                        eprintln!("first failure: {reason}");
                    }
                    failed += u64::from(under_way.remove(&tag).is_some());
                }
                _ => {}
            })?;
            if under_way.is_empty() && !more(started) {
                break;
            }
            if under_way.len() >= phase.parallel || !more(started) {
                sockets.wait(pause(&engine, now()))?;
            }
        }
        let seconds = begin.elapsed().as_secs_f64();
        took.sort_by(f64::total_cmp);
        let median = took.get(took.len() / 2).copied().unwrap_or(f64::NAN);
        println!("{} {failed} {seconds:.6} {median:.9}", took.len());
    }
    Ok(())
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [mode, address, auth, proposal] if mode == "respond" => respond(address.parse()?, auth, proposal),
        [mode, address, auth, proposal, phases @ ..] if mode == "initiate" => {
            initiate(address.parse()?, auth, proposal, phases)
        }
        _ => Err("ike_load respond|initiate ADDRESS AUTH PROPOSAL [PHASE…]".into()),
    }
}
