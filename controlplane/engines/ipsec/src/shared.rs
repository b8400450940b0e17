//! An SA whose keys both ends *and* the gateway hold (schemes 1 and 3 with end-to-end keys): two senders per
//! direction under one key.
//!
//! | suite | the gateway |
//! |---|---|
//! | CBC, NULL with HMAC | re-seals with random IVs, or none |
//! | GCM, CCM, ChaCha20-Poly1305, CTR | re-seals only while the endpoint provably keeps to the other half of the IV space |
//!
//! ```text
//!              8 authentic packets, one top half        block on disk
//!   Probation ───────────────────────────────► Proven ───────────────► Intervening
//!       │ another top half                                                │ another top half
//!       └───────────────────────────► Degraded ◄──────────────────────────┘
//! ```
//!
//! In every state but *Intervening* the packet goes on bit for bit as it came (class `none`). An endpoint that
//! counts its IVs, with or without a constant mask (RFC 4106 §3.1; Linux, strongSwan), keeps their upper 32 bits
//! constant. The gateway's IVs differ from them in the top bit, so no IV of one is ever one of the other. Random
//! IVs fail the probation but for a chance of 2^-224. *Degraded* is for good: it is stored with the key.
//!
//! Only authenticated packets count, so nobody but the endpoint can end the intervention. While it intervenes the
//! gateway is the only sender towards each end; its sequence numbers are never below the endpoint's.

use core::time::Duration;

use towpath_base::crypto::{EspProvider, EspTransform, InvalidKey, Rng};
use towpath_base::packet::PacketBuf;
use towpath_base::sa::{ChildSa, Lifetime};
use towpath_base::{DropReason, Instant};

use crate::checksum::{self, ChecksumRepair};
use crate::ends::Ends;
use crate::highwater::Reserved;
use crate::inbound::{DEFAULT_WINDOW_WORDS, InboundSa};
use crate::lifetime::{LifetimeEvent, Meter};
use crate::locate::{self, ESP_LEN};
use crate::outbound::OutboundSa;
use crate::used::Used;

/// Authentic packets of one IV pattern before it is believed.
pub const PROBATION: u8 = 8;

/// Whether the gateway intervenes in one direction of a shared-key SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Stage {
    /// The endpoint's IVs are being watched.
    #[default]
    Probation,
    /// The endpoint keeps to one half; the proof and a block of numbers are to be stored.
    Proven,
    /// The gateway opens and seals.
    Intervening,
    /// The endpoint's IVs are random or entered the gateway's half: class `none` from now on.
    Degraded,
}

/// What is stored with each sending key, and known again after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SharedStart {
    /// Limit of the numbers a former owner reserved; 0 if none.
    pub stored: u64,
    /// Limit that is on disk now; [`SharedStart::stored`] if nothing was reserved since.
    pub limit: u64,
    /// Upper half of the endpoint's IVs, if it was proven.
    pub top: Option<u32>,
    /// The endpoint broke the rule before.
    pub degraded: bool,
}

/// What one direction wants stored; answered by [`SharedBridge::grant`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Numbers up to here.
    pub limit: u64,
    /// Upper half of the endpoint's IVs; `None` where IVs are random.
    pub top: Option<u32>,
}

/// Watches the counter IVs of one endpoint.
#[derive(Debug, Clone, Copy)]
struct Watch {
    top: Option<u32>,
    agreed: u8,
    stage: Stage,
}

impl Watch {
    const fn new(start: &SharedStart) -> Self {
        let stage = match (start.degraded, start.top) {
            (true, _) => Stage::Degraded,
            (false, Some(_)) if start.limit > start.stored => Stage::Intervening,
            (false, Some(_)) => Stage::Proven,
            (false, None) => Stage::Probation,
        };
        Self {
            top: start.top,
            agreed: if start.top.is_some() { PROBATION } else { 0 },
            stage,
        }
    }

    /// An authentic packet carried `iv`.
    fn observe(&mut self, iv: u64) -> Stage {
        let top = (iv >> 32) as u32;
        match (self.stage, self.top) {
            (Stage::Degraded, _) => {}
            (_, Some(known)) if known != top => self.stage = Stage::Degraded,
            (Stage::Probation, _) => {
                self.top = Some(top);
                self.agreed = self.agreed.saturating_add(1);
                if self.agreed >= PROBATION {
                    self.stage = Stage::Proven;
                }
            }
            (Stage::Proven | Stage::Intervening, _) => {}
        }
        self.stage
    }

    /// Whether the gateway's half is the upper one: the one the endpoint is not in.
    fn upper(&self) -> bool {
        self.top.is_some_and(|top| top >> 31 == 0)
    }
}

/// What became of a packet of a shared-key SA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// Opened and sealed anew by the gateway.
    Resealed,
    /// As it came.
    Untouched,
    /// As it came, and from now on every packet will: the endpoint broke the rule.
    Degraded,
}

#[derive(Debug)]
struct Half<T, const WORDS: usize> {
    from: InboundSa<T, WORDS>,
    to: OutboundSa<T>,
    /// `None` where IVs are random, or there are none.
    watch: Option<Watch>,
}

impl<T: EspTransform, const WORDS: usize> Half<T, WORDS> {
    fn new(from: InboundSa<T, WORDS>, mut to: OutboundSa<T>, counted: bool, start: &SharedStart) -> Self {
        to.start_reserved(Reserved::above(start.stored, start.limit));
        let watch = counted.then(|| Watch::new(start));
        let mut half = Self { from, to, watch };
        half.choose_half();
        half
    }

    fn stage(&self) -> Stage {
        self.watch.map_or(Stage::Intervening, |watch| watch.stage)
    }

    fn choose_half(&mut self) {
        if let Some(watch) = &self.watch {
            self.to.keep_to_half(watch.upper());
        }
    }

    fn pass(
        &mut self,
        now: Instant,
        bytes: &mut [u8],
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<Passed, DropReason> {
        if self.stage() == Stage::Degraded {
            return Ok(Passed::Untouched);
        }
        let at = locate::esp(bytes)?;
        let iv_at = at.esp_at + ESP_LEN;
        let iv = bytes
            .get(iv_at..)
            .and_then(|rest| rest.first_chunk::<8>())
            .copied();
        let plain = self.from.decrypt(now, bytes, &at)?;
        let len = plain.len(self.from.mode(), &at);
        self.from.meter_mut().count(now, len);
        let stage = match &mut self.watch {
            Some(watch) => watch.observe(u64::from_be_bytes(iv.ok_or(DropReason::EspMalformed)?)),
            None => Stage::Intervening,
        };
        if stage != Stage::Intervening {
            self.to.restore(bytes, &at, plain.sequence)?;
            // Numbers of the endpoint that went by: the gateway's start above them.
            self.to.skip_to(plain.sequence);
            return Ok(if stage == Stage::Degraded {
                Passed::Degraded
            } else {
                Passed::Untouched
            });
        }
        // Never below the endpoint's number: then its packets can go by themselves again, should they have to.
        self.to.skip_to(plain.sequence.saturating_sub(1));
        self.to.reseal(now, bytes, at.esp_at, at.end, len, rng)?;
        if let Some(udp_at) = at.udp_at {
            checksum::finish_udp(bytes, udp_at, at.end);
        }
        Ok(Passed::Resealed)
    }

    fn wanted(&self) -> Option<Wanted> {
        let top = self.watch.and_then(|watch| watch.top);
        match self.stage() {
            Stage::Proven => Some(Wanted {
                limit: self
                    .to
                    .wants_reserved()
                    .unwrap_or_else(|| self.to.last_sequence().saturating_add(crate::highwater::BLOCK)),
                top,
            }),
            Stage::Intervening => self.to.wants_reserved().map(|limit| Wanted { limit, top }),
            Stage::Probation | Stage::Degraded => None,
        }
    }

    fn grant(&mut self, granted: &Wanted) {
        match &mut self.watch {
            Some(watch) if watch.top != granted.top => return,
            Some(watch) if watch.stage == Stage::Proven => watch.stage = Stage::Intervening,
            _ => {}
        }
        self.to.reserve(granted.limit);
        self.choose_half();
    }
}

/// Both directions of a shared-key SA at a gateway.
///
/// Build it once per set of keys and process: a second one would be a second sender in the same half.
#[derive(Debug)]
pub struct SharedBridge<T, const WORDS: usize = DEFAULT_WINDOW_WORDS> {
    to_peer: Half<T, WORDS>,
    to_terminal: Half<T, WORDS>,
    told: Option<LifetimeEvent>,
}

impl<T: EspTransform, const WORDS: usize> SharedBridge<T, WORDS> {
    /// `sa`, seen from the terminal. `to_peer`, `to_terminal`: what is stored of the key of either direction.
    ///
    /// # Errors
    /// [`InvalidKey`] if the keys do not fit the suite.
    pub fn new<P>(
        provider: &P,
        now: Instant,
        sa: &ChildSa,
        to_peer: &SharedStart,
        to_terminal: &SharedStart,
    ) -> Result<Self, InvalidKey>
    where
        P: EspProvider<Transform = T>,
    {
        let counted = sa.suite.is_counter_mode();
        let ends = Ends::outward(sa);
        let (limited, endless) = (Meter::new(sa.lifetime, now), Meter::new(Lifetime::default(), now));
        let inbound = |keys, ends| {
            InboundSa::with_keys(provider, limited.clone(), sa, keys, ends, ChecksumRepair::Keep)
        };
        let outbound = |keys, ends| OutboundSa::with_keys(provider, endless.clone(), sa, keys, ends);
        Ok(Self {
            to_peer: Half::new(
                inbound(&sa.keys_out, ends.clone())?.reversed(sa.spi_out),
                outbound(&sa.keys_out, ends.clone())?,
                counted,
                to_peer,
            ),
            to_terminal: Half::new(
                inbound(&sa.keys_in, ends.clone())?,
                outbound(&sa.keys_in, ends)?.reversed(sa.spi_in),
                counted,
                to_terminal,
            ),
            told: None,
        })
    }

    /// A packet of the terminal: for the peer afterwards. On error its contents are unspecified.
    ///
    /// # Errors
    /// Reason to drop the packet.
    pub fn to_peer(
        &mut self,
        now: Instant,
        packet: &mut PacketBuf<'_>,
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<Passed, DropReason> {
        self.to_peer.pass(now, packet.bytes_mut(), rng)
    }

    /// A packet of the peer: for the terminal afterwards. On error its contents are unspecified.
    ///
    /// # Errors
    /// Reason to drop the packet.
    pub fn to_terminal(
        &mut self,
        now: Instant,
        packet: &mut PacketBuf<'_>,
        rng: &mut (impl Rng + ?Sized),
    ) -> Result<Passed, DropReason> {
        self.to_terminal.pass(now, packet.bytes_mut(), rng)
    }

    /// Chooses both replay windows; see [`InboundSa::set_replay_window`].
    pub fn set_replay_window(&mut self, packets: u32) -> Option<()> {
        self.to_peer.from.set_replay_window(packets)?;
        self.to_terminal.from.set_replay_window(packets)
    }

    /// What it has used up.
    pub const fn used(&self) -> Used {
        let (to_peer, to_terminal) = (&self.to_peer.from, &self.to_terminal.from);
        Used {
            received: [to_peer.highest_sequence(), to_terminal.highest_sequence()],
            packets: [to_peer.meter().packets(), to_terminal.meter().packets()],
            bytes: [to_peer.meter().bytes(), to_terminal.meter().bytes()],
        }
    }

    /// Goes on where a former owner of the same SA was, `age` old. After [`SharedBridge::set_replay_window`].
    pub fn resume(&mut self, used: &Used, age: Duration) {
        let halves = [&mut self.to_peer.from, &mut self.to_terminal.from];
        let numbers = used.received.into_iter().zip(used.packets).zip(used.bytes);
        for (half, ((received, packets), bytes)) in halves.into_iter().zip(numbers) {
            half.resume_window(received);
            half.meter_mut().resume(age, packets, bytes);
        }
    }

    /// What is to be stored, first for the direction to the peer. Asked again until granted.
    pub fn wanted(&self) -> [Option<Wanted>; 2] {
        [self.to_peer.wanted(), self.to_terminal.wanted()]
    }

    /// `granted` is stored: for the direction to the peer, or to the terminal.
    pub fn grant(&mut self, to_peer: bool, granted: &Wanted) {
        if to_peer {
            self.to_peer.grant(granted);
        } else {
            self.to_terminal.grant(granted);
        }
    }

    /// How far each direction is, first the one to the peer.
    pub fn stages(&self) -> [Stage; 2] {
        [self.to_peer.stage(), self.to_terminal.stage()]
    }

    /// A limit reached by either direction since the last call; each limit once for the pair.
    pub fn take_event(&mut self) -> Option<LifetimeEvent> {
        let halves = [
            self.to_peer.from.meter_mut().take_event(),
            self.to_terminal.from.meter_mut().take_event(),
        ];
        let event = halves.into_iter().flatten().max()?;
        (self.told < Some(event)).then(|| {
            self.told = Some(event);
            event
        })
    }

    /// Notices limits in time without a packet; see [`SharedBridge::take_event`].
    pub fn tick(&mut self, now: Instant) {
        self.to_peer.from.meter_mut().tick(now);
        self.to_terminal.from.meter_mut().tick(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> SharedStart {
        SharedStart::default()
    }

    #[test]
    fn a_counting_endpoint_is_proven_and_the_gateway_takes_the_other_half() {
        for mask in [0u64, 0x8000_0000_0000_0000, 0x1234_5678_9abc_def0, u64::MAX] {
            let mut watch = Watch::new(&start());
            for sequence in 1..=u64::from(PROBATION) {
                let stage = watch.observe(sequence ^ mask);
                assert_eq!(stage == Stage::Proven, sequence == u64::from(PROBATION));
            }
            let ours = u64::from(watch.upper()) << 63;
            for sequence in [1, 77, 0xffff_ffff] {
                assert_ne!((sequence ^ mask) >> 63, ours >> 63);
            }
        }
    }

    #[test]
    fn one_iv_with_another_top_half_ends_it_for_good() {
        for stored in [None, Some(7)] {
            let mut watch = Watch::new(&SharedStart {
                limit: 10,
                top: stored,
                ..start()
            });
            watch.observe(7 << 32);
            assert_eq!(watch.observe(8 << 32), Stage::Degraded);
            assert_eq!(watch.observe(7 << 32), Stage::Degraded);
        }
        let watch = Watch::new(&SharedStart {
            top: Some(7),
            degraded: true,
            ..start()
        });
        assert_eq!(watch.stage, Stage::Degraded);
    }

    #[test]
    fn what_was_proven_is_known_again_but_nothing_is_sent_without_reserved_numbers() {
        let known = SharedStart {
            stored: 65536,
            limit: 65536,
            top: Some(7),
            degraded: false,
        };
        assert_eq!(Watch::new(&known).stage, Stage::Proven);
        let reserved = SharedStart {
            limit: 131_072,
            ..known
        };
        assert_eq!(Watch::new(&reserved).stage, Stage::Intervening);
    }
}
