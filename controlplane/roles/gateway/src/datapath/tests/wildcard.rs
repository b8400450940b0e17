//! Mode `wildcard` at the gateway: one manual SA, both encapsulations, both ways.

use super::*;

#[test]
fn a_wildcard_sa_hands_on_transport_and_tunnel_as_they_came_both_ways() {
    let suite = EspSuite::Aes256Gcm16;
    for v6 in [false, true] {
        let [terminal, peer] = addresses(v6);
        let wildcard = ChildSa {
            mode: Mode::Wildcard,
            ..child(suite, terminal, peer, SPI_IN, SPI_OUT)
        };
        let (now, mut rng) = (Instant::from_secs(1), Counter(0));
        let mut path = Datapath::new(SoftEsp, 8);
        path.install(now, &full(1, wildcard.clone(), 3, 4)).unwrap();
        // The senders go on counting where the other mode's stopped: it is one SA.
        for (round, mode) in [Mode::Transport, Mode::Tunnel, Mode::Transport]
            .into_iter()
            .enumerate()
        {
            let negotiated = ChildSa {
                mode,
                ..wildcard.clone()
            };
            let segment = ChildSa {
                keys_in: keys(suite, 3),
                keys_out: keys(suite, 4),
                ..negotiated.clone()
            };
            let far = negotiated.mirrored();
            for (sender, receiver, arrival, original) in [
                (&segment, &far, ACCESS, plain(terminal, peer)),
                (&far, &segment, Arrival::default(), plain(peer, terminal)),
            ] {
                let mut frame = Frame::of(&original);
                let mut out = OutboundSa::new(&SoftEsp, now, sender).unwrap();
                out.skip_to(round as u64);
                frame.with(|p| out.seal(now, p, &mut rng)).unwrap();
                let length = frame.len;
                let disposition = frame.with(|p| path.process(now, arrival, p, &mut rng));
                assert_eq!(disposition, Disposition::Forward, "{mode}");
                assert_eq!(frame.len, length);
                let mut inward = InboundSa::<_>::new(&SoftEsp, now, receiver).unwrap();
                let opened = frame.with(|p| inward.open(now, p)).unwrap();
                assert_eq!(
                    (opened.sequence, frame.bytes()),
                    (round as u64 + 1, &original[..])
                );
            }
        }
    }
}
