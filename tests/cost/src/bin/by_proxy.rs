//! A terminal without IKE: a packet that must be protected is held, a proxy request, a key transfer, installation,
//! the acknowledgement.
#![forbid(unsafe_code)]

use towpath_base::crypto::Rng;
use towpath_base::key::SecretKey;
use towpath_base::packet::PacketBuf;
use towpath_base::sa::{ChildSa, Class, EspKeys, Lifetime, Mode, Selectors};
use towpath_base::selector::TrafficSelector;
use towpath_base::testutil::SeededRng;
use towpath_base::{Instant, Spi, SubscriberHandle};
use towpath_cost::{PEER, ROUNDS, SUITE, TERMINAL, on_the_terminal};
use towpath_keyx::message::{FromTerminal, KeyTransfer, Operation, SaName, ToTerminal};
use towpath_keyx::registration::{Addresses, Terms, open_registration};
use towpath_keyx::{NetworkSession, frame};
use towpath_terminal_core::{
    Action, BUFFER_HEADROOM, Command, Config, Core, Disposition, Policy, ReservedSpi, SoftEsp, Timing,
    Transmit,
};

const HANDLE: SubscriberHandle = SubscriberHandle(7);
const RESERVED: ReservedSpi = ReservedSpi(100);
const NOW: Instant = Instant::from_secs(1);

type Terminal = Core<SoftEsp, 4, 4, 4096>;

/// A UDP packet of an application; nobody looks at its checksums.
fn packet() -> Vec<u8> {
    let mut packet = vec![
        0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 77, 1, 2, 10, 77, 9, 2,
    ];
    packet.extend([0x0f, 0xa0, 0x13, 0x88, 0, 40, 0, 0]);
    packet.resize(60, 0x5a);
    packet
}

fn terminal() -> Terminal {
    let config = Config {
        subscriber: HANDLE,
        ksub: SecretKey::new([7; 32]),
        addresses: Addresses::of([TERMINAL]),
        reserved: RESERVED,
        counter: 0,
        timing: Timing::default(),
    };
    let policy = Policy::new(TrafficSelector::host(PEER), Action::Protect { peer: None });
    Core::new(SoftEsp, config, &[policy]).expect("a configuration that fits")
}

/// The sealed message in what the terminal sends; `None` for a packet.
fn unframed(transmit: Option<Transmit<'_>>) -> Option<Vec<u8>> {
    match transmit? {
        Transmit::Datagram { payload, .. } => frame::unwrap(RESERVED, payload).map(<[u8]>::to_vec),
        Transmit::Packet(_) => None,
    }
}

fn next_message(terminal: &mut Terminal, rng: &mut SeededRng, buffer: &mut [u8]) -> Option<Vec<u8>> {
    unframed(on_the_terminal(|| terminal.poll_transmit(NOW, buffer, rng)))
}

fn register(terminal: &mut Terminal, rng: &mut SeededRng, buffer: &mut [u8]) -> NetworkSession {
    while let Some(command) = terminal.poll_command() {
        if let Command::Persist(mark) = command {
            terminal.persisted(mark);
        }
    }
    let ksub = SecretKey::new([7; 32]);
    let sealed = unframed(terminal.poll_transmit(NOW, buffer, rng)).expect("a registration");
    let registration = open_registration(&ksub, TERMINAL, &sealed).expect("a genuine registration");
    let terms = Terms {
        lifetime_seconds: 3600,
        keepalive_seconds: 60,
        epoch: 1,
    };
    let answer = registration.answer(&ksub, &[9; 32], &terms).expect("an answer");
    terminal.handle_datagram(NOW, PEER, &frame::wrap(RESERVED, answer.datagram.as_bytes()));
    let mut session = NetworkSession::new(HANDLE, &answer.keys);
    let hello = unframed(terminal.poll_transmit(NOW, buffer, rng)).expect("a sign of life");
    assert_eq!(session.open(&hello), Ok(FromTerminal::Hello));
    session
}

fn sa(round: u32, rng: &mut SeededRng) -> ChildSa {
    let mut keys = || {
        let mut material = vec![0; SUITE.key_material_len()];
        rng.fill(&mut material);
        EspKeys::split(SUITE, &material).expect("material of the suite's length")
    };
    ChildSa {
        local: TERMINAL,
        remote: PEER,
        suite: SUITE,
        mode: Mode::Transport,
        esn: false,
        encap: None,
        spi_in: Spi(0x1000 + round),
        spi_out: Spi(0x2000 + round),
        keys_in: keys(),
        keys_out: keys(),
        local_ts: Selectors::one(TrafficSelector::host(TERMINAL)),
        remote_ts: Selectors::one(TrafficSelector::host(PEER)),
        lifetime: Lifetime::default(),
    }
}

fn deliver(terminal: &mut Terminal, session: &mut NetworkSession, transfer_id: u64, operation: Operation) {
    let message = ToTerminal::KeyTransfer(KeyTransfer {
        transfer_id,
        request_id: None,
        operation,
    });
    let sealed = session.seal(&message).expect("a transfer that fits");
    let payload = frame::wrap(RESERVED, sealed.as_bytes());
    on_the_terminal(|| terminal.handle_datagram(NOW, PEER, &payload));
}

fn main() {
    let mut rng = SeededRng::new(1);
    let mut buffer = vec![0; 2048];
    let mut terminal = terminal();
    // Registration happens once, not once per SA: it is not counted, nor is what ends the SA of a round.
    let mut session = register(&mut terminal, &mut rng, &mut buffer);
    for round in 0..ROUNDS {
        let plain = packet();
        let mut room = vec![0; BUFFER_HEADROOM];
        room.extend(&plain);
        room.extend([0; 64]);
        let mut held = PacketBuf::new(&mut room, BUFFER_HEADROOM, plain.len()).expect("a buffer with rooms");
        let disposition = on_the_terminal(|| terminal.handle_plain(NOW, &mut held, &mut rng));
        assert_eq!(disposition, Disposition::Consumed);
        let request = next_message(&mut terminal, &mut rng, &mut buffer).expect("a request");
        assert!(matches!(
            session.open(&request),
            Ok(FromTerminal::ProxyRequest(_))
        ));
        let sa = sa(round, &mut rng);
        let name = SaName::of(&sa);
        let install = Operation::Install {
            class: Class::Full,
            level: 0,
            replaces: None,
            standby: false,
            sa,
        };
        deliver(&mut terminal, &mut session, u64::from(round) * 2 + 1, install);
        let ack = next_message(&mut terminal, &mut rng, &mut buffer).expect("an acknowledgement");
        assert!(matches!(session.open(&ack), Ok(FromTerminal::TransferAck(_))));
        // The packet is traffic, not set-up: a terminal with IKE of its own would send it just so.
        let sent = terminal.poll_transmit(NOW, &mut buffer, &mut rng);
        assert!(
            matches!(sent, Some(Transmit::Packet(_))),
            "the held packet leaves"
        );
        assert_eq!(terminal.sas().count(), 1);
        forget(
            &mut terminal,
            &mut session,
            u64::from(round) * 2 + 2,
            name,
            &mut rng,
            &mut buffer,
        );
    }
    println!("{ROUNDS} set-ups by proxy");
}

/// Ends the SA of a round, uncounted.
fn forget(
    terminal: &mut Terminal,
    session: &mut NetworkSession,
    transfer_id: u64,
    name: SaName,
    rng: &mut SeededRng,
    buffer: &mut [u8],
) {
    let operation = Operation::Delete(name);
    let message = ToTerminal::KeyTransfer(KeyTransfer {
        transfer_id,
        request_id: None,
        operation,
    });
    let sealed = session.seal(&message).expect("a transfer that fits");
    terminal.handle_datagram(NOW, PEER, &frame::wrap(RESERVED, sealed.as_bytes()));
    while terminal.poll_transmit(NOW, buffer, rng).is_some() {}
    while terminal.poll_command().is_some() {}
}
