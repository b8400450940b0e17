//! What captures must show, and must not.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::lab::{Frame, What};

/// The value both SPIs hold in a terminal's messages to the network, in the lab.
pub const RESERVED_SPI: u64 = 100;

/// Who may be seen.
#[derive(Clone, Copy, Debug)]
pub struct Expectation<'a> {
    /// The terminal's address.
    pub terminal: IpAddr,
    /// The other end's address.
    pub other: IpAddr,
    /// Every address the gateway has.
    pub gateway: &'a [IpAddr],
    /// Whether the terminal asked the network for the exchange.
    pub requested: bool,
    /// Whether ESP is UDP-encapsulated.
    pub encap: bool,
}

/// The peer's side: IKE with the terminal's address alone, no gateway, no reserved SPIs, nothing in the clear.
pub fn peer_side(frames: &[Frame], expect: &Expectation<'_>) -> Result<String, String> {
    let (mut ike, mut esp) = (0, 0);
    for seen in frames.iter().filter_map(Frame::seen) {
        let pair = [seen.src, seen.dst];
        let between = pair.contains(&expect.terminal) && pair.contains(&expect.other);
        if seen.what != What::Neighbour && pair.iter().any(|a| expect.gateway.contains(a)) {
            return Err(format!("a gateway address on the peer's side: {seen:?}"));
        }
        match seen.what {
            What::Ike { spi_i, spi_r } => {
                if spi_i == RESERVED_SPI && spi_r == RESERVED_SPI {
                    return Err(format!("a message to the network reached the peer: {seen:?}"));
                }
                if !between {
                    return Err(format!("IKE that is not between terminal and peer: {seen:?}"));
                }
                ike += 1;
            }
            What::Esp(_) if between && !expect.encap => esp += 1,
            What::UdpEsp(_) if between && expect.encap => esp += 1,
            What::Esp(_) | What::UdpEsp(_) => return Err(format!("ESP in an unexpected form: {seen:?}")),
            What::Icmp | What::Tcp if between => return Err(format!("in the clear: {seen:?}")),
            _ => {}
        }
    }
    if ike < 4 {
        return Err(format!(
            "{ike} IKE messages on the peer's side, at least 4 were expected"
        ));
    }
    if esp == 0 {
        return Err("no ESP on the peer's side".to_owned());
    }
    Ok(format!("{ike} IKE, {esp} ESP"))
}

/// The access side: the request carries the reserved SPIs and is addressed to the peer; nothing in the clear; no IKE
/// of the exchange ever reaches the terminal.
pub fn access_side(frames: &[Frame], expect: &Expectation<'_>) -> Result<String, String> {
    let (mut requests, mut answers, mut esp) = (0, 0, 0);
    for seen in frames.iter().filter_map(Frame::seen) {
        let between =
            [seen.src, seen.dst].contains(&expect.terminal) && [seen.src, seen.dst].contains(&expect.other);
        match seen.what {
            What::Ike {
                spi_i: RESERVED_SPI,
                spi_r: RESERVED_SPI,
            } => {
                if seen.src == expect.terminal && seen.dst == expect.other {
                    requests += 1;
                } else if seen.dst == expect.terminal && expect.gateway.contains(&seen.src) {
                    answers += 1;
                }
            }
            What::Ike { .. } => return Err(format!("IKE on the access side: {seen:?}")),
            What::Esp(_) | What::UdpEsp(_) if between => esp += 1,
            What::Icmp | What::Tcp if between => return Err(format!("in the clear: {seen:?}")),
            _ => {}
        }
    }
    if requests == 0 && expect.requested {
        return Err("no request with the reserved SPIs from the terminal to the peer's address".to_owned());
    }
    if answers == 0 {
        return Err("no key transfer from the gateway's address to the terminal".to_owned());
    }
    if esp == 0 {
        return Err("no ESP on the access side".to_owned());
    }
    Ok(format!("{requests} to the network, {answers} from it, {esp} ESP"))
}

/// No sender, whoever it is, may put one IV into two packets of an SA: under a counter-mode cipher that gives the
/// plaintext away. Looked for on the wire, so terminals and peers are judged as the daemon is. Returns how many packets
/// were compared. Only for ciphers with an IV of eight bytes or more.
///
/// # Errors
/// Two packets that differ and have SPI, addresses and the first eight bytes of the IV in common.
pub fn ivs(frames: &[Frame]) -> Result<usize, String> {
    let mut packets = HashMap::new();
    for frame in frames {
        let Some((seen, esp)) = frame.seen().zip(frame.esp()) else {
            continue;
        };
        let (Some(spi), Some(iv)) = (esp.get(..4), esp.get(8..16)) else {
            continue; // a NAT keep-alive
        };
        // The same packet may be seen twice: Snoop sends originals again.
        if *packets.entry((seen.src, seen.dst, spi, iv)).or_insert(esp) != esp {
            return Err(format!("one IV in two packets: {seen:?}"));
        }
    }
    Ok(packets.len())
}

/// Searches captures for keys.
#[derive(Debug, Default)]
pub struct KeySearch {
    /// Keys by their first eight bytes.
    by_start: HashMap<[u8; 8], Vec<Vec<u8>>>,
    /// Which pairs of first bytes occur, so that most positions cost one look.
    starts: Vec<bool>,
    count: usize,
}

impl KeySearch {
    /// A search for these secrets; those under eight bytes are left out.
    pub fn new(keys: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let mut search = Self {
            starts: vec![false; 1 << 16],
            ..Self::default()
        };
        for key in keys {
            let Some(start) = key.first_chunk::<8>().copied() else {
                continue;
            };
            let same = search.by_start.entry(start).or_default();
            if !same.contains(&key) {
                search.starts[usize::from(u16::from_be_bytes([start[0], start[1]]))] = true;
                same.push(key);
                search.count += 1;
            }
        }
        search
    }

    /// How many different secrets are searched for.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is nothing to search for.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The first frame that holds one of the secrets.
    pub fn find(&self, frames: &[Frame]) -> Option<String> {
        if self.is_empty() {
            return None;
        }
        frames.iter().find_map(|frame| {
            frame.bytes.windows(8).enumerate().find_map(|(at, window)| {
                if !self.starts[usize::from(u16::from_be_bytes([window[0], window[1]]))] {
                    return None;
                }
                let start: [u8; 8] = window.try_into().ok()?;
                let keys = self.by_start.get(&start)?;
                let hit = keys.iter().any(|k| frame.bytes[at..].starts_with(k));
                hit.then(|| format!("a key at byte {at} of {:?}", frame.seen()))
            })
        })
    }
}

/// Every run of at least 32 hex digits in a text, as bytes: the keys of a key log.
pub fn keys_of_log(text: &str) -> Vec<Vec<u8>> {
    let mut keys: Vec<Vec<u8>> = Vec::new();
    for word in text
        .split(|c: char| !c.is_ascii_hexdigit())
        .filter(|w| w.len() >= 32 && w.len().is_multiple_of(2))
    {
        let digits: Vec<u8> = word
            .chars()
            .filter_map(|c| c.to_digit(16))
            .map(|d| d as u8)
            .collect();
        keys.push(
            digits
                .chunks_exact(2)
                .map(|pair| pair[0] << 4 | pair[1])
                .collect(),
        );
    }
    keys
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use etherparse::PacketBuilder;

    use super::*;

    const TERMINAL: [u8; 4] = [10, 77, 1, 2];
    const PEER: [u8; 4] = [10, 77, 9, 2];
    const GATEWAY: [u8; 4] = [10, 77, 9, 1];

    fn udp(src: [u8; 4], dst: [u8; 4], payload: &[u8]) -> Frame {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4(src, dst, 64)
            .udp(500, 500);
        builder
            .write(&mut bytes, payload)
            .expect("a vector takes everything");
        Frame {
            at: Duration::ZERO,
            bytes,
        }
    }

    fn esp(src: [u8; 4], dst: [u8; 4]) -> Frame {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(src, dst, 64);
        builder
            .write(&mut bytes, etherparse::IpNumber(50), &[0xc1; 60])
            .expect("a vector takes everything");
        Frame {
            at: Duration::ZERO,
            bytes,
        }
    }

    fn ike(spi: u64) -> Vec<u8> {
        [spi.to_be_bytes(), spi.to_be_bytes(), [0; 8], [0; 8]].concat()
    }

    fn expectation(gateway: &[IpAddr]) -> Expectation<'_> {
        Expectation {
            terminal: TERMINAL.into(),
            other: PEER.into(),
            gateway,
            requested: true,
            encap: false,
        }
    }

    fn good_peer_side() -> Vec<Frame> {
        let mut frames = vec![esp(TERMINAL, PEER)];
        for _ in 0..2 {
            frames.push(udp(TERMINAL, PEER, &ike(7)));
            frames.push(udp(PEER, TERMINAL, &ike(7)));
        }
        frames
    }

    #[test]
    fn the_peers_side_may_show_the_terminal_alone() {
        let gateway = [GATEWAY.into()];
        let expect = expectation(&gateway);
        assert!(peer_side(&good_peer_side(), &expect).is_ok());
        for (bad, word) in [
            (udp(GATEWAY, PEER, &ike(7)), "gateway address"),
            (udp(TERMINAL, PEER, &ike(RESERVED_SPI)), "to the network"),
            (udp([10, 77, 2, 2], PEER, &ike(7)), "not between"),
        ] {
            let mut frames = good_peer_side();
            frames.push(bad);
            let error = peer_side(&frames, &expect).expect_err("a rule is broken");
            assert!(error.contains(word), "{error}");
        }
        assert!(peer_side(&[], &expect).is_err());
    }

    #[test]
    fn the_access_side_shows_the_request_and_no_ike() {
        let gateway = [IpAddr::from([10, 77, 1, 1])];
        let expect = expectation(&gateway);
        let mut frames = vec![
            esp(TERMINAL, PEER),
            udp(TERMINAL, PEER, &ike(RESERVED_SPI)),
            udp([10, 77, 1, 1], TERMINAL, &ike(RESERVED_SPI)),
        ];
        assert!(access_side(&frames, &expect).is_ok());
        assert!(access_side(&frames[..2], &expect).is_err(), "no answer");
        frames.push(udp(PEER, TERMINAL, &ike(7)));
        assert!(
            access_side(&frames, &expect)
                .expect_err("IKE leaked")
                .contains("IKE")
        );
    }

    #[test]
    fn an_iv_in_two_packets_is_found() {
        let packet = |iv: u8, text: u8| {
            let mut frame = esp(TERMINAL, PEER);
            let at = frame.bytes.len() - 60;
            frame.bytes[at + 8..at + 16].fill(iv);
            frame.bytes[at + 16..].fill(text);
            frame
        };
        assert_eq!(ivs(&[packet(1, 1), packet(2, 1), packet(1, 1)]), Ok(2));
        let error = ivs(&[packet(1, 1), packet(2, 1), packet(1, 2)]).expect_err("one IV, two packets");
        assert!(error.contains("10.77.1.2"), "{error}");
    }

    #[test]
    fn a_key_in_a_capture_is_found() {
        let keys = keys_of_log("sk_ei = 00112233445566778899aabbccddeeff, n=12\nshort 0011\n");
        assert_eq!(keys.len(), 1);
        let search = KeySearch::new(keys.clone());
        assert_eq!(search.len(), 1);
        assert!(search.find(&good_peer_side()).is_none());
        let mut frames = good_peer_side();
        frames.push(udp(
            TERMINAL,
            PEER,
            &[&[9, 9, 9], keys[0].as_slice(), &[1]].concat(),
        ));
        assert!(search.find(&frames).is_some());
    }
}
