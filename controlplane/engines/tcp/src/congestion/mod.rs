//! Congestion control: how much may be in flight, and how fast it may leave.

mod bbr;
mod cubic;
mod filter;
mod hystart;
pub mod radio;

use core::time::Duration;

pub use bbr::Bbr;
pub use cubic::Cubic;
pub use radio::Radio;
use towpath_base::Instant;

use crate::codec::{Codec, Reader, RestoreError, Writer};
use crate::config::{Algorithm, Config, PathMemory};
use crate::rate::RateSample;

/// What one acknowledgment told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AckEvent {
    /// Now.
    pub now: Instant,
    /// Bytes newly delivered, acknowledged or SACKed.
    pub delivered: u64,
    /// Bytes newly found lost.
    pub lost: u64,
    /// Bytes in flight before.
    pub prior_in_flight: u64,
    /// Bytes in flight now.
    pub in_flight: u64,
    /// Round trip of the newest delivered segment that was sent only once.
    pub rtt: Option<Duration>,
    /// SRTT.
    pub smoothed_rtt: Option<Duration>,
    /// Delivery rate sample.
    pub sample: Option<RateSample>,
    /// Bytes delivered in all.
    pub total_delivered: u64,
    /// Loss recovery is under way.
    pub recovering: bool,
    /// The peer echoed a congestion mark (RFC 3168 §6.1.2).
    pub marked: bool,
}

/// The congestion control of one sender.
#[derive(Debug, Clone, PartialEq)]
pub enum Controller {
    /// CUBIC.
    Cubic(Cubic),
    /// BBR.
    Bbr(Bbr),
    /// Radio.
    Radio(Radio),
}

macro_rules! each {
    ($self:expr, $inner:ident => $body:expr) => {
        match $self {
            Controller::Cubic($inner) => $body,
            Controller::Bbr($inner) => $body,
            Controller::Radio($inner) => $body,
        }
    };
}

impl Controller {
    /// The controller `config` asks for, for segments of `mss` bytes.
    pub fn new(config: &Config, mss: u64) -> Self {
        let initial = u64::from(config.initial_window) * mss;
        match config.algorithm {
            Algorithm::Cubic => Self::Cubic(Cubic::new(mss, initial)),
            Algorithm::Bbr => Self::Bbr(Bbr::new(mss, initial)),
            Algorithm::Radio => Self::Radio(Radio::new(mss, initial, config.path)),
        }
    }

    /// Which algorithm it is.
    pub const fn algorithm(&self) -> Algorithm {
        match self {
            Self::Cubic(_) => Algorithm::Cubic,
            Self::Bbr(_) => Algorithm::Bbr,
            Self::Radio(_) => Algorithm::Radio,
        }
    }

    /// Congestion window, bytes.
    pub fn window(&self) -> u64 {
        each!(self, inner => inner.window())
    }

    /// Slow-start threshold, bytes: the target of rate reduction in recovery.
    pub fn threshold(&self) -> u64 {
        match self {
            Self::Cubic(cubic) => cubic.threshold(),
            Self::Bbr(_) | Self::Radio(_) => self.window(),
        }
    }

    /// True when PRR governs the window in recovery; false where the model itself does.
    pub const fn uses_prr(&self) -> bool {
        matches!(self, Self::Cubic(_))
    }

    /// Pacing rate, bytes per second; zero while unknown.
    pub fn pacing_rate(&self, smoothed_rtt: Option<Duration>) -> u64 {
        match self {
            Self::Cubic(cubic) => cubic.pacing_rate(smoothed_rtt),
            Self::Bbr(bbr) => bbr.pacing_rate(smoothed_rtt),
            Self::Radio(radio) => radio.pacing_rate(smoothed_rtt),
        }
    }

    /// An acknowledgment arrived.
    pub fn on_ack(&mut self, event: &AckEvent) {
        each!(self, inner => inner.on_ack(event));
    }

    /// Loss was found, recovery begins (once per window).
    pub fn on_congestion(&mut self, now: Instant, in_flight: u64) {
        each!(self, inner => inner.on_congestion(now, in_flight));
    }

    /// The retransmission timer expired: `prior` bytes were in flight, `left` of them are not given up.
    pub fn on_timeout(&mut self, now: Instant, prior: u64, left: u64) {
        each!(self, inner => inner.on_timeout(now, prior, left));
    }

    /// Recovery ended.
    pub fn on_recovered(&mut self, now: Instant) {
        each!(self, inner => inner.on_recovered(now));
    }

    /// The last reduction was a mistake.
    pub fn undo(&mut self) {
        each!(self, inner => inner.undo());
    }

    /// Sending resumes after silence longer than the retransmission timeout.
    pub fn on_idle(&mut self, now: Instant) {
        each!(self, inner => inner.on_idle(now));
    }

    /// The segment size changed.
    pub fn set_mss(&mut self, mss: u64) {
        each!(self, inner => inner.set_mss(mss));
    }

    /// Loss of the link's own, parts per million; only `radio` tells it apart.
    pub const fn loss_floor_ppm(&self) -> u64 {
        match self {
            Self::Radio(radio) => radio.loss_floor_ppm(),
            Self::Cubic(_) | Self::Bbr(_) => 0,
        }
    }

    /// What the next connection on this path should know.
    pub fn path_memory(&self) -> Option<PathMemory> {
        match self {
            Self::Radio(radio) => radio.path_memory(),
            Self::Cubic(_) | Self::Bbr(_) => None,
        }
    }
}

impl Codec for Controller {
    fn encode(&self, writer: &mut Writer) {
        self.algorithm().encode(writer);
        each!(self, inner => inner.encode(writer));
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, RestoreError> {
        Ok(match Algorithm::decode(reader)? {
            Algorithm::Cubic => Self::Cubic(Codec::decode(reader)?),
            Algorithm::Bbr => Self::Bbr(Codec::decode(reader)?),
            Algorithm::Radio => Self::Radio(Codec::decode(reader)?),
        })
    }
}

/// `bytes` per second times `duration`, saturating.
pub(crate) fn bytes_in(rate: u64, duration: Duration) -> u64 {
    u64::try_from(u128::from(rate) * duration.as_nanos() / 1_000_000_000).unwrap_or(u64::MAX)
}

/// `bytes` over `duration` as a rate per second.
pub(crate) fn rate_of(bytes: u64, duration: Duration) -> u64 {
    u64::try_from(u128::from(bytes) * 1_000_000_000 / duration.as_nanos().max(1)).unwrap_or(u64::MAX)
}
