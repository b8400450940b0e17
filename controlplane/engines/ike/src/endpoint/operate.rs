//! What the owner asks of an established IKE SA: end it, replace it, move it.

use ::core::net::SocketAddr;

use towpath_base::Instant;
use towpath_base::crypto::{KeyGenerator, Rng};
use towpath_base::ids::{IkeSpi, Spi};

use super::{Endpoint, UnknownSa};
use crate::command::{Command, FailReason, Role};
use crate::config::IkeSaId;
use crate::sa::{IkeSa, Sa, State, delete_replaced, pump, release};
use crate::tasks::mobike::{Mobike, announce};
use crate::tasks::{Task, ike_init};

impl<K: KeyGenerator, R: Rng> Endpoint<K, R> {
    /// Deletes a CHILD SA, named by the SPI of packets the terminal receives. The last one takes its IKE SA along.
    pub fn delete_child(&mut self, now: Instant, ike: IkeSaId, spi_in: Spi) -> Result<(), UnknownSa> {
        let sa = self.established(ike)?;
        let reason = FailReason::Requested;
        let last = sa
            .children
            .iter()
            .all(|child| child.spi_in == spi_in || child.deleting || child.replaced);
        sa.child_mut(spi_in).ok_or(UnknownSa)?.deleting = true;
        sa.enqueue(if last {
            Task::DeleteIke { reason }
        } else {
            Task::DeleteChild { spi_in, reason }
        });
        self.pump_and_after(now, ike);
        Ok(())
    }

    /// Deletes an IKE SA and its CHILD SAs. An attempt that is not established is given up without a word.
    pub fn delete_ike(&mut self, now: Instant, ike: IkeSaId) -> Result<(), UnknownSa> {
        let sa = self
            .sas
            .get_mut(&ike)
            .filter(|sa| !sa.is_closed())
            .ok_or(UnknownSa)?;
        let reason = FailReason::Requested;
        match sa.state {
            State::Established => sa.enqueue(Task::DeleteIke { reason }),
            State::Deleting => {}
            _ => sa.end(&mut self.core, now, reason),
        }
        self.pump_and_after(now, ike);
        Ok(())
    }

    /// Replaces a CHILD SA by a new one (CREATE_CHILD_SA with REKEY_SA).
    pub fn rekey_child(&mut self, now: Instant, ike: IkeSaId, spi_in: Spi) -> Result<(), UnknownSa> {
        let sa = self.established(ike)?;
        let child = sa.child_mut(spi_in).ok_or(UnknownSa)?;
        if !child.rekeying && !child.deleting {
            child.rekeying = true;
            sa.enqueue(Task::child_rekey(spi_in));
        }
        self.pump_and_after(now, ike);
        Ok(())
    }

    /// Replaces the IKE SA by a new one (CREATE_CHILD_SA).
    pub fn rekey_ike(&mut self, now: Instant, ike: IkeSaId) -> Result<(), UnknownSa> {
        self.established(ike)?.enqueue(Task::ike_rekey());
        self.pump_and_after(now, ike);
        Ok(())
    }

    /// Has an IKE SA of ours and its CHILD SAs go on between these ends (RFC 4555); ports as the wire will show them.
    /// [`Command::AddressesChanged`] follows at once, and again if a NAT is found on the new path.
    ///
    /// # Errors
    /// [`UnknownSa`]: not established, the peer does not know MOBIKE, or the peer is the one to decide.
    pub fn readdress_ike(
        &mut self,
        now: Instant,
        ike: IkeSaId,
        local: SocketAddr,
        remote: SocketAddr,
    ) -> Result<(), UnknownSa> {
        let cookie2 = self.core.random();
        let sa = self.established(ike)?;
        if sa.mobike != Some(Role::Initiator) || local.is_ipv4() != remote.is_ipv4() {
            return Err(UnknownSa);
        }
        let old = (sa.local, sa.remote);
        (sa.local, sa.remote) = (local, remote);
        sa.queue.push_front(Task::Mobike(Mobike::update(cookie2)));
        if let Some(out) = sa.outstanding.as_mut() {
            // What was on its way goes from the new address, at once.
            out.due = now;
        }
        if let Some(sa) = self.sas.get(&ike) {
            announce(sa, &mut self.core, old.0, old.1);
        }
        self.pump_and_after(now, ike);
        Ok(())
    }

    /// Whoever receives on a CHILD SA that was announced is ready for it. The answer to a peer's rekeying, which was
    /// held back until then, goes out, and so does the Delete of what a rekeying of ours replaced; without this call
    /// both do after [`Config::ready_within`](crate::Config::ready_within).
    ///
    /// # Errors
    /// [`UnknownSa`]: it has ended meanwhile.
    pub fn child_ready(&mut self, now: Instant, ike: IkeSaId, spi_in: Spi) -> Result<(), UnknownSa> {
        let sa = self.established(ike)?;
        let replaces = sa.child_mut(spi_in).ok_or(UnknownSa)?.replaces.take();
        let answer = sa.withheld.is_some_and(|withheld| withheld.spi_in == spi_in);
        if let Some(old) = replaces {
            delete_replaced(sa, |child| child.spi_in == old);
        }
        if answer && let Some(sa) = self.sas.get_mut(&ike) {
            release(sa, &mut self.core);
        }
        self.pump_and_after(now, ike);
        Ok(())
    }

    /// Starts an IKE SA that takes over from this one, with a CHILD SA in place of its own: both sides prove again
    /// who they are (RFC 7296 §2.8.3). The old one is deleted when the new one is established.
    ///
    /// # Errors
    /// [`UnknownSa`]: it is not established, or no key generator serves its group.
    pub fn reauthenticate(&mut self, now: Instant, ike: IkeSaId) -> Result<(), UnknownSa> {
        let old = self.sas.get(&ike).filter(|sa| sa.state == State::Established);
        let old = old.ok_or(UnknownSa)?;
        let (local, mut remote, policy, lane) = (old.local.ip(), old.remote, old.policy.clone(), old.lane);
        let child = old
            .children
            .iter()
            .rev()
            .find(|child| !child.replaced && !child.deleting);
        let child = child.map(|child| child.spi_in);
        let succeeding = |sa: &Sa<K>| sa.succeeds.is_some_and(|(of, _)| of == ike) && !sa.is_closed();
        let mut pair = self.pair(local, remote.ip()).into_iter();
        if pair.any(|id| self.sas.get(&id).is_some_and(succeeding)) {
            return Ok(());
        }
        let policy = policy.ok_or(UnknownSa)?;
        let group = policy
            .ike_proposals
            .first()
            .and_then(|proposal| proposal.groups.first());
        let group = group.copied().ok_or(UnknownSa)?;
        let init = ike_init::prepare(&mut self.core, group).map_err(|_| UnknownSa)?;
        let id = IkeSaId(self.core.new_ike_spi());
        let ike_port = self.core.config.ike_port;
        if remote.port() == self.core.config.nat_port {
            remote.set_port(ike_port);
        }
        let local = SocketAddr::new(local, ike_port);
        let mut sa = IkeSa::new(
            id,
            Role::Initiator,
            State::InitSent,
            local,
            remote,
            IkeSpi(0),
            now,
        );
        sa.lane = lane;
        sa.succeeds = Some((ike, child));
        sa.policy = Some(policy);
        sa.ni.clone_from(&init.ni);
        sa.init = Some(init);
        self.core
            .commands
            .push_back(Command::IkeSucceeding { old: ike, new: id });
        sa.enqueue(Task::IkeInit);
        pump(&mut sa, &mut self.core, now);
        self.insert(now, sa);
        Ok(())
    }
}
