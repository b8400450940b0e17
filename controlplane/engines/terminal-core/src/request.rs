//! Proxy requests under way, one per peer (K8), beside it one per connection of another level than 0 (T21): sent until the keys come, given up, or held off.

use core::net::IpAddr;
use core::time::Duration;

use towpath_base::{DropReason, Instant, Spi};
use towpath_ipsec::Flow;
use towpath_keyx::message::ProxyRequest;

use crate::config::Timing;
use crate::policy::Towards;

/// Most SAs asked for at a time.
pub(crate) const REQUESTS: usize = 8;

#[derive(Debug, Clone, Copy)]
enum State {
    /// To be sent at `due`.
    Asking { due: Instant, sent: u32 },
    /// Refused: not before `until`.
    HeldOff { until: Instant },
}

#[derive(Debug, Clone, Copy)]
struct Pending {
    request: ProxyRequest,
    state: State,
}

/// A request to be sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Due {
    pub(crate) request: ProxyRequest,
    /// Transmissions, this one included.
    pub(crate) attempt: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Requests {
    pending: [Option<Pending>; REQUESTS],
    last_id: u32,
}

impl Requests {
    /// An SA of `terminal` is wanted for `flow`; `replaces` one that is about to expire.
    pub(crate) fn want(
        &mut self,
        now: Instant,
        terminal: IpAddr,
        towards: Towards,
        flow: Option<&Flow>,
        replaces: Option<Spi>,
    ) -> Result<(), DropReason> {
        let mut request = ProxyRequest {
            request_id: 0,
            terminal,
            peer: towards.peer,
            protocol: flow.map_or(0, |flow| flow.protocol),
            terminal_port: flow.and_then(|flow| flow.source_port).unwrap_or(0),
            peer_port: flow.and_then(|flow| flow.destination_port).unwrap_or(0),
            replaces,
            level: towards.level,
        };
        if let Some(pending) = self.find(&request) {
            return match pending.state {
                State::Asking { .. } => Ok(()),
                State::HeldOff { until } if until > now => Err(DropReason::SaRefused),
                State::HeldOff { .. } => {
                    pending.state = State::Asking { due: now, sent: 0 };
                    pending.request.replaces = replaces;
                    Ok(())
                }
            };
        }
        self.last_id = self.last_id.wrapping_add(1);
        request.request_id = self.last_id;
        let slot = self.free_slot(now).ok_or(DropReason::HoldQueueFull)?;
        *slot = Some(Pending {
            request,
            state: State::Asking { due: now, sent: 0 },
        });
        Ok(())
    }

    /// The next request to be sent now; its next transmission is scheduled.
    pub(crate) fn poll(&mut self, now: Instant, timing: &Timing) -> Option<Due> {
        for pending in self.pending.iter_mut().flatten() {
            if let State::Asking { due, sent } = &mut pending.state
                && *due <= now
                && *sent < timing.request_transmissions
            {
                let wait = timing.request_first.saturating_mul(1 << (*sent).min(16));
                *due = now + wait.min(timing.request_longest);
                *sent += 1;
                return Some(Due {
                    request: pending.request,
                    attempt: *sent,
                });
            }
        }
        None
    }

    /// A request that went unanswered to the end, taken out.
    pub(crate) fn take_unanswered(&mut self, now: Instant, timing: &Timing) -> Option<ProxyRequest> {
        let over = |pending: &Pending| {
            matches!(pending.state, State::Asking { due, sent }
                if due <= now && sent >= timing.request_transmissions)
        };
        self.pending
            .iter_mut()
            .find(|slot| slot.as_ref().is_some_and(over))?
            .take()
            .map(|p| p.request)
    }

    /// The network works on it: ask again only after `patience`.
    pub(crate) fn accepted(&mut self, now: Instant, request_id: u32, patience: Duration) {
        if let Some(Pending {
            state: State::Asking { due, .. },
            ..
        }) = self.by_id(request_id)
        {
            *due = now + patience;
        }
    }

    /// The network will not: hold off. Returns the request.
    pub(crate) fn refused(
        &mut self,
        now: Instant,
        request_id: u32,
        hold_off: Duration,
    ) -> Option<ProxyRequest> {
        let pending = self.by_id(request_id)?;
        pending.state = State::HeldOff {
            until: now + hold_off,
        };
        Some(pending.request)
    }

    /// An SA is there. One of level 0 serves every request of that level, another one that which it answers.
    pub(crate) fn satisfied(&mut self, terminal: IpAddr, towards: Towards, answers: Option<u32>) {
        let served = |request: &ProxyRequest| match towards.level {
            0 => request.level == 0 && request.peer == towards.peer && request.terminal == terminal,
            _ => answers == Some(request.request_id),
        };
        for slot in &mut self.pending {
            if slot.is_some_and(|pending| served(&pending.request)) {
                *slot = None;
            }
        }
    }

    /// Everything may be asked (again) at once: there is a new session.
    pub(crate) fn restart(&mut self, now: Instant) {
        for pending in self.pending.iter_mut().flatten() {
            pending.state = State::Asking { due: now, sent: 0 };
        }
    }

    /// `can_send`: without a session requests wait for it, and need no timer.
    pub(crate) fn poll_timeout(&self, can_send: bool) -> Option<Instant> {
        let asking = |pending: &Pending| match pending.state {
            State::Asking { due, .. } if can_send => Some(due),
            State::Asking { .. } | State::HeldOff { .. } => None,
        };
        self.pending.iter().flatten().filter_map(asking).min()
    }

    fn find(&mut self, wanted: &ProxyRequest) -> Option<&mut Pending> {
        let ends = |of: &ProxyRequest| (of.peer, of.terminal, of.level);
        let connection = |of: &ProxyRequest| (of.protocol, of.terminal_port, of.peer_port, of.replaces);
        self.pending.iter_mut().flatten().find(|Pending { request, .. }| {
            ends(request) == ends(wanted) && (wanted.level == 0 || connection(request) == connection(wanted))
        })
    }

    fn by_id(&mut self, request_id: u32) -> Option<&mut Pending> {
        self.pending
            .iter_mut()
            .flatten()
            .find(|pending| pending.request.request_id == request_id)
    }

    /// An empty slot, or that of a peer whose time of being held off is over.
    fn free_slot(&mut self, now: Instant) -> Option<&mut Option<Pending>> {
        self.pending.iter_mut().find(|slot| match slot {
            None => true,
            Some(Pending {
                state: State::HeldOff { until },
                ..
            }) => *until <= now,
            Some(_) => false,
        })
    }
}
