//! Messages that belong to no IKE SA, and what their senders are told (RFC 7296 §2.5, §2.21.4): errors without
//! protection, few enough that nobody can use us to flood a third party.

use alloc::vec::Vec;

use towpath_base::Instant;
use towpath_base::crypto::{KeyGenerator, Rng};
use towpath_base::ids::{IkeSpi, MessageId};
use towpath_base::rate::Rate;
use towpath_common::DropReason;

use super::Endpoint;
use crate::sa::Path;
use crate::wire::{ExchangeType, Header, NotifyType, ParseError, Payload, encode_message};

/// Highest major version we speak.
const MAJOR: u8 = 2;

impl<K: KeyGenerator, R: Rng> Endpoint<K, R> {
    /// A message whose header does not parse.
    pub(super) fn unreadable(
        &mut self,
        now: Instant,
        path: Path,
        message: &[u8],
        error: ParseError,
    ) -> DropReason {
        if let ParseError::Version(major) = error
            && major > MAJOR
            && let Some(header) = header_of_other_version(message)
            && !header.response
        {
            self.tell(now, path, &header, NotifyType::INVALID_MAJOR_VERSION);
        }
        DropReason::IkeMalformed
    }

    /// A message under SPIs that no IKE SA here has.
    pub(super) fn unknown(&mut self, now: Instant, path: Path, header: &Header) -> DropReason {
        if !header.response && header.exchange != ExchangeType::IKE_SA_INIT {
            self.tell(now, path, header, NotifyType::INVALID_IKE_SPI);
        }
        DropReason::IkeUnknownSpi
    }

    fn tell(&mut self, now: Instant, path: Path, request: &Header, kind: NotifyType) {
        let rate = Rate::per_second(self.core.config.stray_answers_per_second);
        if !self.strays.take(now, rate) {
            return;
        }
        let header = Header {
            from_initiator: !request.from_initiator,
            response: true,
            ..*request
        };
        let answer = encode_message(header, &[Payload::notify(kind, Vec::new())]);
        self.core.transmit(path.destination, path.source, answer);
    }
}

/// What the headers of all versions have in common (RFC 7296 §3.1).
fn header_of_other_version(message: &[u8]) -> Option<Header> {
    let field = |at: usize| <[u8; 8]>::try_from(message.get(at..at + 8)?).ok();
    let flags = *message.get(19)?;
    let id = <[u8; 4]>::try_from(message.get(20..24)?).ok()?;
    message.get(24..28)?;
    Some(Header {
        spi_i: IkeSpi(u64::from_be_bytes(field(0)?)),
        spi_r: IkeSpi(u64::from_be_bytes(field(8)?)),
        next_payload: 0,
        exchange: ExchangeType(*message.get(18)?),
        from_initiator: flags & 0x08 != 0,
        response: flags & 0x20 != 0,
        message_id: MessageId(u32::from_be_bytes(id)),
    })
}
