//! How an IKE SA and its CHILD SAs end.

use towpath_base::Instant;
use towpath_base::crypto::{KeyGenerator, Rng};
use towpath_base::ids::Spi;

use super::{IkeSa, State};
use crate::command::{Command, FailReason};
use crate::endpoint::Core;
use crate::tasks::forget;

impl<P> IkeSa<P> {
    /// Takes a CHILD SA out and tells the owner.
    pub(crate) fn remove_child<K, R>(&mut self, core: &mut Core<K, R>, spi_in: Spi, reason: FailReason)
    where
        K: KeyGenerator<Private = P>,
        R: Rng,
    {
        let Some(at) = self.children.iter().position(|child| child.spi_in == spi_in) else {
            return;
        };
        let child = self.children.swap_remove(at);
        core.release_esp_spi(self.local.ip(), child.spi_in);
        if child.silent {
            return;
        }
        core.commands.push_back(Command::ChildDeleted {
            ike: self.id,
            local: self.local.ip(),
            remote: self.remote.ip(),
            spi_in: child.spi_in,
            spi_out: child.spi_out,
            reason,
        });
    }

    /// Tells the owner that the SA is no longer to be used; each end is told once.
    pub(crate) fn announce_end<K, R>(&mut self, core: &mut Core<K, R>, reason: FailReason)
    where
        K: KeyGenerator<Private = P>,
        R: Rng,
    {
        while let Some(spi_in) = self.children.first().map(|child| child.spi_in) {
            self.remove_child(core, spi_in, reason);
        }
        let (local, remote) = (self.local.ip(), self.remote.ip());
        let tag = self.tag.take();
        match self.state {
            State::Established if self.silent => {}
            State::Established => core.commands.push_back(Command::IkeClosed {
                ike: self.id,
                local,
                remote,
                reason,
            }),
            // Nobody was told about an attempt whose policy was never given.
            State::InitSent | State::AuthSent | State::InitAnswered => {
                core.commands.push_back(Command::Failed {
                    ike: self.id,
                    tag,
                    local,
                    remote,
                    reason,
                })
            }
            State::WaitPolicy | State::Deleting | State::Closed(_) => {}
        }
    }

    /// Ends the SA without another word to the peer; it lingers to answer a retransmitted last request.
    pub(crate) fn end<K, R>(&mut self, core: &mut Core<K, R>, now: Instant, reason: FailReason)
    where
        K: KeyGenerator<Private = P>,
        R: Rng,
    {
        if self.is_closed() {
            return;
        }
        self.announce_end(core, reason);
        for task in self
            .outstanding
            .take()
            .map(|out| out.task)
            .into_iter()
            .chain(self.queue.drain(..))
        {
            task.abandon(core, self.local.ip());
        }
        forget(self, core, |_| true);
        self.init = None;
        self.redundant_at = None;
        self.rekey_at = None;
        self.reauth_at = None;
        self.expire_at = None;
        self.withheld = None;
        let linger = if self.last_response.is_some() {
            core.config.linger
        } else {
            core::time::Duration::ZERO
        };
        self.state = State::Closed(now + linger);
    }
}
