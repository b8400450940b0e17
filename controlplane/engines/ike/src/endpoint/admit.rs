//! An IKE_SA_INIT request arrives: everything that is checked before state is made for it.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;

use towpath_base::Instant;
use towpath_base::crypto::{DhGroup, KeyGenerator, Rng};
use towpath_base::rate::Rate;
use towpath_common::DropReason;

use super::Endpoint;
use crate::command::{Command, Role};
use crate::config::IkeSaId;
use crate::puzzle;
use crate::sa::{Extra, IkeSa, Init, Path, State};
use crate::tasks::{Parts, ike_init};
use crate::wire::{Header, NotifyType, ParseError, Payload, parse_payloads};

impl<K: KeyGenerator, R: Rng> Endpoint<K, R> {
    /// Takes an IKE_SA_INIT request. Until an initiator returned a cookie, where cookies are demanded, nothing
    /// of it is kept.
    pub(super) fn admit(
        &mut self,
        now: Instant,
        path: Path,
        header: &Header,
        message: &[u8],
    ) -> Result<(), DropReason> {
        let (local, remote) = (path.destination.ip(), path.source.ip());
        if let Some(id) = self.by_initiator.get(&(remote, header.spi_i, local)) {
            return self.repeat_init(*id, path, message);
        }
        if message.len() > self.core.config.init_len {
            return Err(DropReason::IkeLimit);
        }
        let (_, body) = Header::parse(message).map_err(|_| DropReason::IkeMalformed)?;
        let payloads = match parse_payloads(header.next_payload, body) {
            Ok(payloads) => payloads,
            Err(ParseError::UnsupportedCritical(kind)) => {
                let refusal = Payload::notify(NotifyType::UNSUPPORTED_CRITICAL_PAYLOAD, vec![kind]);
                let answer = ike_init::stateless(header, &[refusal]);
                self.core.transmit(path.destination, path.source, answer);
                return Err(DropReason::IkeMalformed);
            }
            Err(_) => return Err(DropReason::IkeMalformed),
        };
        let parts = Parts::collect(&payloads).ok_or(DropReason::IkeMalformed)?;
        let (Some(_), Some(_), Some(ni)) = (parts.sa, parts.ke, parts.nonce) else {
            return Err(DropReason::IkeMalformed);
        };
        self.check_reflection(path, header)?;
        self.check_cookie(now, path, header, &parts, ni)?;
        self.check_limits(path)?;
        self.yield_or_win(now, local, remote, ni)?;

        let id = IkeSaId(self.core.new_ike_spi());
        let (ours, theirs) = (path.destination, path.source);
        let mut sa = IkeSa::new(
            id,
            Role::Responder,
            State::WaitPolicy,
            ours,
            theirs,
            header.spi_i,
            now,
        );
        sa.init = Some(Box::new(Init {
            private: None,
            // The request's group is looked at again when the policy is known.
            group: DhGroup::X25519,
            public: Vec::new(),
            ni: ni.to_vec(),
            nr: Vec::new(),
            message_i: message.to_vec(),
            message_r: Vec::new(),
            cookie: Vec::new(),
            attempts: 0,
            extra: Extra::default(),
        }));
        self.core.log(id, local, remote, false, header, &payloads);
        self.core.commands.push_back(Command::NeedPolicy {
            request: id,
            local,
            remote,
        });
        self.insert(now, sa);
        Ok(())
    }

    /// A retransmitted request gets the same response again; one that differs is not ours to answer.
    fn repeat_init(&mut self, id: IkeSaId, path: Path, message: &[u8]) -> Result<(), DropReason> {
        let sa = self.sas.get(&id).ok_or(DropReason::IkeUnexpected)?;
        let init = sa.init.as_ref().filter(|init| init.message_i == message);
        match (init, sa.state) {
            (Some(_), State::WaitPolicy) => Ok(()),
            (Some(init), State::InitAnswered) => {
                self.core
                    .transmit(path.destination, path.source, init.message_r.clone());
                Ok(())
            }
            _ => Err(DropReason::IkeUnexpected),
        }
    }

    /// Our own request sent back to us.
    fn check_reflection(&self, path: Path, header: &Header) -> Result<(), DropReason> {
        let own = self.sas.get(&IkeSaId(header.spi_i));
        match own.filter(|sa| sa.local.ip() == path.destination.ip()) {
            Some(_) => Err(DropReason::IkeUnexpected),
            None => Ok(()),
        }
    }

    fn check_cookie(
        &mut self,
        now: Instant,
        path: Path,
        header: &Header,
        parts: &Parts<'_>,
        ni: &[u8],
    ) -> Result<(), DropReason> {
        let (source, spi_i) = (path.source.ip(), header.spi_i);
        let config = &self.core.config;
        let from_source = self.half_open.get(&source).copied().unwrap_or(0);
        // Forged requests must not use up the share of the address they name.
        let crowded = from_source >= config.half_open_per_source.div_ceil(2);
        if self.half_open_total < config.cookie_threshold && !crowded {
            return Ok(());
        }
        let difficulty = config.puzzle_difficulty;
        let under_attack = self.half_open_total >= config.puzzle_threshold;
        let prf = parts.sa.and_then(puzzle::common_prf).filter(|_| under_attack);
        if let Some(cookie) = parts.notify(NotifyType::COOKIE)
            && self
                .cookies
                .check(&self.core.keygen, now, &cookie.data, ni, source, spi_i)
        {
            let keygen = &self.core.keygen;
            let solved = |prf| puzzle::check(keygen, prf, parts.payloads(), &cookie.data, difficulty);
            // Few initiators know puzzles: the others are let in, slowly.
            let slowly = Rate::per_second(config.unsolved_per_second);
            let welcome = !under_attack || prf.is_some_and(solved) || self.unsolved.take(now, slowly);
            return if welcome {
                Ok(())
            } else {
                Err(DropReason::IkeLimit)
            };
        }
        let (keygen, rng) = (&self.core.keygen, &mut self.core.rng);
        let cookie = self.cookies.make(keygen, rng, now, ni, source, spi_i);
        let mut payloads = vec![Payload::notify(NotifyType::COOKIE, cookie)];
        let ask = prf.map(|prf| Payload::notify(NotifyType::PUZZLE, puzzle::ask(prf, difficulty)));
        payloads.extend(ask);
        let answer = ike_init::stateless(header, &payloads);
        self.core.transmit(path.destination, path.source, answer);
        Err(DropReason::IkeLimit)
    }

    fn check_limits(&self, path: Path) -> Result<(), DropReason> {
        let config = &self.core.config;
        let from_source = self.half_open.get(&path.source.ip()).copied().unwrap_or(0);
        let full = self.half_open_total >= config.half_open_total
            || from_source >= config.half_open_per_source
            || self.sas.len() >= config.ike_sas_total;
        if full { Err(DropReason::IkeLimit) } else { Ok(()) }
    }
}
