//! For hosts whose operating system seals and opens the packets: the core gets no packets, so it is told.
//!
//! SAs reach the operating system through [`EspProvider::adopt`]; which of them there are, and which send, is what
//! [`Core::sas`] says at any time.

use core::net::IpAddr;

use towpath_base::crypto::EspProvider;
use towpath_base::{DropReason, Instant};
use towpath_ipsec::Flow;
use towpath_keyx::message::SaName;

use crate::command::Event;
use crate::face::Core;
use crate::policy::Towards;

impl<P: EspProvider, const POLICIES: usize, const SAS: usize, const HOLD: usize>
    Core<P, POLICIES, SAS, HOLD>
{
    /// A packet of this flow and sensitivity level wants an SA between one of the terminal's addresses and `peer`.
    ///
    /// # Errors
    /// It will not be asked for: held off after a refusal, too many are asked for, or the address is not the terminal's.
    pub fn acquire(
        &mut self,
        now: Instant,
        terminal: IpAddr,
        peer: IpAddr,
        level: u8,
        flow: &Flow,
    ) -> Result<(), DropReason> {
        if !self.addresses().contains(terminal) {
            return Err(DropReason::NoRoute);
        }
        let towards = Towards { peer, level };
        let wanted = self.requests.want(now, terminal, towards, Some(flow), None);
        wanted.inspect_err(|reason| {
            self.count(*reason);
        })
    }

    /// Packets were sent or received on an SA since the last call.
    pub fn used(&mut self, now: Instant, name: &SaName, sent: bool, received: bool) {
        if received {
            self.sad.promote(now, name, self.timing.linger);
            self.enrolment.heard(now);
        }
        if sent {
            self.enrolment.sent(now, self.timing.silence);
        }
    }

    /// An SA reached a limit the operating system watches: its soft one, or its hard one, and is gone.
    pub fn limit_reached(&mut self, now: Instant, name: &SaName, hard: bool) {
        let Some(level) = self.sad.level(name) else {
            return;
        };
        if hard {
            self.sad.remove(name);
            self.events.push(Event::Expired(*name));
        } else {
            // Held off or no room: the hard limit leads to a request of its own.
            let towards = Towards {
                peer: name.remote,
                level,
            };
            let _ = self
                .requests
                .want(now, name.local, towards, None, Some(name.spi_in));
        }
    }
}
