//! Messages in pieces (RFC 7383): what goes into each on the way out, and putting them together again.
//!
//! A piece counts only once it is authenticated, so whoever has no keys cannot fill anything. Whoever has (any
//! initiator, before it proves who it is) fills one message at most, of bounded size.

use alloc::vec;
use alloc::vec::Vec;

use towpath_base::ids::MessageId;
use towpath_common::DropReason;

/// Most pieces of one message.
pub(crate) const MAX_FRAGMENTS: u16 = 64;
/// Most bytes of a message put together.
const MAX_MESSAGE: usize = 65_535;
/// The same before the other side proved who it is.
const MAX_UNPROVEN: usize = 32_768;

/// Place of a piece: its number, from 1, and how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) number: u16,
    pub(crate) total: u16,
}

impl Place {
    /// RFC 7383 §2.5: numbers run from 1 to the total.
    pub(crate) const fn is_possible(self) -> bool {
        self.number >= 1 && self.number <= self.total && self.total <= MAX_FRAGMENTS
    }
}

/// Pieces of one message.
#[derive(Debug)]
struct Partial {
    id: MessageId,
    /// Type of the first payload, once the first piece is there.
    first: u8,
    pieces: Vec<Option<Vec<u8>>>,
    bytes: usize,
}

/// Fragmentation on one IKE SA.
#[derive(Debug, Default)]
pub(crate) struct Fragments {
    /// Both sides announced it.
    pub(crate) agreed: bool,
    request: Option<Partial>,
    response: Option<Partial>,
}

impl Fragments {
    /// Takes an authentic piece of a message that is awaited. Gives type of the first payload and the payloads once
    /// it was the last one missing.
    pub(crate) fn add(
        &mut self,
        response: bool,
        proven: bool,
        id: MessageId,
        place: Place,
        first: u8,
        text: Vec<u8>,
    ) -> Result<Option<(u8, Vec<u8>)>, DropReason> {
        if !place.is_possible() {
            return Err(DropReason::IkeMalformed);
        }
        let slot = if response {
            &mut self.response
        } else {
            &mut self.request
        };
        let total = usize::from(place.total);
        // RFC 7383 §2.6: more pieces than before mean smaller ones, sent anew; fewer are old ones coming late.
        let known = slot
            .as_ref()
            .filter(|partial| partial.id == id)
            .map(|partial| partial.pieces.len());
        if known.is_some_and(|known| total < known) {
            return Err(DropReason::IkeUnexpected);
        }
        if known != Some(total) {
            *slot = Some(Partial {
                id,
                first: 0,
                pieces: vec![None; total],
                bytes: 0,
            });
        }
        let Some(partial) = slot.as_mut() else {
            return Err(DropReason::IkeUnexpected);
        };
        let piece = partial.pieces.get_mut(usize::from(place.number - 1));
        let Some(piece) = piece.filter(|piece| piece.is_none()) else {
            return Err(DropReason::IkeUnexpected);
        };
        let limit = if proven { MAX_MESSAGE } else { MAX_UNPROVEN };
        if partial.bytes + text.len() > limit {
            *slot = None;
            return Err(DropReason::IkeLimit);
        }
        partial.bytes += text.len();
        *piece = Some(text);
        // RFC 7383 §2.5: only the first piece says what the first payload is.
        match (place.number, first) {
            (1, first) => partial.first = first,
            (_, 0) => {}
            _ => {
                *slot = None;
                return Err(DropReason::IkeMalformed);
            }
        }
        if partial.pieces.iter().any(Option::is_none) {
            return Ok(None);
        }
        let whole = slot.take().map(|partial| {
            let pieces: Vec<Vec<u8>> = partial.pieces.into_iter().flatten().collect();
            (partial.first, pieces.concat())
        });
        Ok(whole)
    }

    /// Forgets pieces of messages nobody waits for any more.
    pub(crate) fn forget(&mut self, response: bool) {
        let slot = if response {
            &mut self.response
        } else {
            &mut self.request
        };
        *slot = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: MessageId = MessageId(1);

    fn add(
        fragments: &mut Fragments,
        number: u16,
        total: u16,
        len: usize,
    ) -> Result<Option<usize>, DropReason> {
        let first = if number == 1 { 35 } else { 0 };
        let added = fragments.add(
            false,
            false,
            ID,
            Place { number, total },
            first,
            vec![number as u8; len],
        );
        added.map(|whole| {
            whole.map(|(first, text)| {
                assert_eq!(first, 35);
                text.len()
            })
        })
    }

    #[test]
    fn any_order_gives_the_message_once() {
        let mut fragments = Fragments::default();
        for number in (2..=9).rev() {
            assert_eq!(add(&mut fragments, number, 9, 10), Ok(None));
            assert_eq!(
                add(&mut fragments, number, 9, 10),
                Err(DropReason::IkeUnexpected),
                "duplicate"
            );
        }
        assert_eq!(add(&mut fragments, 1, 9, 10), Ok(Some(90)));
        assert!(fragments.request.is_none());
        assert_eq!(add(&mut fragments, 1, 1, 10), Ok(Some(10)));
    }

    #[test]
    fn a_greater_total_starts_over_and_a_smaller_one_is_late() {
        let mut fragments = Fragments::default();
        assert_eq!(add(&mut fragments, 1, 2, 10), Ok(None));
        assert_eq!(add(&mut fragments, 1, 3, 7), Ok(None));
        assert_eq!(add(&mut fragments, 2, 2, 10), Err(DropReason::IkeUnexpected));
        assert_eq!(add(&mut fragments, 3, 3, 7), Ok(None));
        assert_eq!(add(&mut fragments, 2, 3, 7), Ok(Some(21)));
    }

    #[test]
    fn impossible_places_and_too_many_bytes_are_refused() {
        let mut fragments = Fragments::default();
        for (number, total) in [
            (0, 0),
            (0, 1),
            (2, 1),
            (1, 0),
            (1, 65_535),
            (65_535, 65_535),
            (1, 65),
        ] {
            assert_eq!(
                add(&mut fragments, number, total, 1),
                Err(DropReason::IkeMalformed)
            );
        }
        assert_eq!(add(&mut fragments, 1, 3, MAX_UNPROVEN), Ok(None));
        assert_eq!(add(&mut fragments, 2, 3, 1), Err(DropReason::IkeLimit));
        assert!(fragments.request.is_none(), "nothing is kept");
    }

    #[test]
    fn another_message_takes_the_place_and_the_two_directions_do_not_mix() {
        let mut fragments = Fragments::default();
        let place = |number| Place { number, total: 2 };
        let text = || vec![1; 4];
        assert_eq!(fragments.add(false, true, ID, place(1), 35, text()), Ok(None));
        assert_eq!(fragments.add(true, true, ID, place(2), 0, text()), Ok(None));
        assert_eq!(
            fragments.add(false, true, MessageId(2), place(2), 0, text()),
            Ok(None)
        );
        assert_eq!(
            fragments.add(true, true, ID, place(1), 36, text()),
            Ok(Some((36, vec![1; 8])))
        );
        assert_eq!(
            fragments.add(false, true, MessageId(2), place(1), 37, text()),
            Ok(Some((37, vec![1; 8])))
        );
        assert_eq!(
            fragments.add(false, true, ID, place(2), 35, text()),
            Err(DropReason::IkeMalformed),
            "a first payload in a later piece"
        );
    }
}
