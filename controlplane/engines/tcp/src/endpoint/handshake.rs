//! Segments in LISTEN, SYN-SENT and SYN-RECEIVED, and what the SYNs negotiate (RFC 9293 §3.10.7).

use towpath_base::Instant;

use super::input::{Disposition, Refusal};
use super::{Closed, Endpoint, State};
use crate::congestion::Controller;
use crate::reassembly::Reassembly;
use crate::segment::{Flags, Options, Segment};
use crate::seq::SeqSpace;
use crate::timer::Timer;
use crate::window;

/// MSS of a peer that names none (RFC 9293 §3.7.1); IPv6 peers always may use more, none do without.
const DEFAULT_MSS: u16 = 536;

impl Endpoint {
    /// Options of our SYN or SYN-ACK: the latter only repeats what the peer offered.
    pub(super) fn syn_options(&mut self, now: Instant) -> Options {
        let answering = self.state == State::SynReceived;
        let scale = window::scale_for(self.config.receive_limit);
        Options {
            mss: Some(self.config.mss),
            window_scale: if answering {
                self.config
                    .window_scale
                    .then_some(self.negotiated.receive_scale)
                    .filter(|_| self.scaled())
            } else {
                self.config.window_scale.then_some(scale)
            },
            sack_permitted: if answering {
                self.negotiated.sack
            } else {
                self.config.sack
            },
            timestamps: (if answering {
                self.negotiated.timestamps
            } else {
                self.config.timestamps
            })
            .then(|| self.paws.stamp(now, self.incoming.next())),
            ..Options::default()
        }
    }

    /// Window scale is in use (a shift of zero says so too).
    const fn scaled(&self) -> bool {
        self.negotiated.send_scale != u8::MAX
    }

    /// Takes the peer's SYN: sequence space, options, window.
    fn take_syn(&mut self, now: Instant, segment: &Segment<'_>) {
        let header = &segment.header;
        let options = &header.options;
        self.receive_space = SeqSpace { initial: header.seq };
        self.incoming = Reassembly::new(1);
        let negotiated = &mut self.negotiated;
        negotiated.mss = self.config.segment_size(options.mss.unwrap_or(DEFAULT_MSS));
        negotiated.sack = self.config.sack && options.sack_permitted;
        negotiated.timestamps = self.config.timestamps && options.timestamps.is_some();
        match options.window_scale.filter(|_| self.config.window_scale) {
            Some(scale) => {
                negotiated.send_scale = scale;
                negotiated.receive_scale = window::scale_for(self.config.receive_limit);
            }
            None => {
                // u8::MAX keeps "not in use" apart from a shift of zero; shifts treat it as zero.
                negotiated.send_scale = u8::MAX;
                negotiated.receive_scale = 0;
            }
        }
        if let Some(timestamps) = options.timestamps.filter(|_| self.negotiated.timestamps) {
            self.paws.start(now, timestamps);
        }
        self.peer_window = u64::from(header.window);
        self.peer_window_max = self.peer_window;
        self.window_update = (0, 0);
        self.update_segment_len();
        self.controller = Controller::new(&self.config, self.segment_len);
        self.last_received = now;
    }

    pub(super) fn input_listen(&mut self, now: Instant, segment: &Segment<'_>) -> Disposition {
        let flags = segment.header.flags;
        if flags.has(Flags::RST) || flags.has(Flags::ACK) || !flags.has(Flags::SYN) {
            return Disposition::Refused(Refusal::Unexpected);
        }
        self.take_syn(now, segment);
        self.negotiated.ecn = self.config.ecn && flags.has(Flags::ECE) && flags.has(Flags::CWR);
        self.state = State::SynReceived;
        self.owed.syn = true;
        Disposition::Accepted
    }

    pub(super) fn input_syn_sent(&mut self, now: Instant, segment: &Segment<'_>) -> Disposition {
        let header = &segment.header;
        let flags = header.flags;
        let acknowledges = flags.has(Flags::ACK);
        let acceptable = self.send_space.offset(header.ack, self.next) == Some(1) && self.next == 1;
        if acknowledges && !acceptable {
            // The peer still knows an earlier connection with these ports: the reset ends it there, and the SYN sent
            // again gets through (RFC 9293 §3.10.7.3, first check; §3.5.2, figure 9).
            if !flags.has(Flags::RST) {
                self.owed.stray = Some(header.ack);
            }
            return Disposition::Refused(Refusal::BadAck);
        }
        if flags.has(Flags::RST) {
            if acknowledges {
                self.finish(Closed::Refused);
                return Disposition::Accepted;
            }
            return Disposition::Refused(Refusal::Unexpected);
        }
        if !flags.has(Flags::SYN) {
            return Disposition::Refused(Refusal::Unexpected);
        }
        self.take_syn(now, segment);
        if acknowledges {
            self.negotiated.ecn = self.config.ecn && flags.has(Flags::ECE) && !flags.has(Flags::CWR);
            self.acknowledge_syn(now);
            self.ack.now();
        } else {
            // Simultaneous open (RFC 9293 §3.5).
            self.negotiated.ecn = false;
            self.state = State::SynReceived;
            self.owed.syn = true;
        }
        Disposition::Accepted
    }

    /// Our SYN was acknowledged: the connection is open.
    pub(super) fn acknowledge_syn(&mut self, now: Instant) {
        self.unacknowledged = 1;
        self.next = self.next.max(1);
        self.owed.syn = false;
        if self.failures == 0 {
            let rtt = now.saturating_since(self.syn_sent_at);
            self.rtt.sample(rtt);
            self.window.sample_rtt(rtt);
            if let Controller::Radio(radio) = &mut self.controller {
                radio.on_connected(rtt);
            }
        }
        self.failures = 0;
        self.rtt.reset_backoff();
        self.timers.clear(Timer::Retransmit);
        self.last_progress = now;
        self.state = State::Established;
        self.pending.connected = true;
        if self.fin.is_some() {
            self.fin = Some(self.outgoing.end());
            self.state = self.state.after_close();
        }
        self.arm_keep_alive();
    }
}
