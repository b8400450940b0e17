//! A CHILD SA comes about (RFC 7296 §1.2, §1.3.1): in IKE_AUTH, or by CREATE_CHILD_SA.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::net::IpAddr;
use core::time::Duration;

use towpath_base::Instant;
use towpath_base::crypto::{DhGroup, KeyGenerator, Rng};
use towpath_base::ids::Spi;
use towpath_base::profile::IkeId;
use towpath_base::sa::{ChildSa, Mode, Selectors};
use towpath_base::selector::TrafficSelector;

use super::followup::{Of, wait_for};
use super::{Parts, Task};
use crate::choose::{ChosenEsp, accept_esp, choose_esp, narrow, offer_esp};
use crate::command::{Command, FailReason, Role};
use crate::config::Policy;
use crate::endpoint::Core;
pub(super) use crate::keys::Keying;
use crate::sa::{Child, Sa, State, Withheld, answer};
use crate::wire::{Header, NotifyType, Payload, Protocol};

/// Most CHILD SAs of one IKE SA.
const MAX_CHILDREN: usize = 16;

/// What both sides agreed on.
pub(super) struct Agreement {
    chosen: ChosenEsp,
    mode: Mode,
    local_ts: Vec<TrafficSelector>,
    remote_ts: Vec<TrafficSelector>,
    /// Our side and the peer's as the peer wrote them.
    answer_ts: (Vec<TrafficSelector>, Vec<TrafficSelector>),
}

/// The policy's selectors of both sides, addresses filled in.
fn policy_selectors<P>(
    sa: &crate::sa::IkeSa<P>,
    policy: &Policy,
) -> (Vec<TrafficSelector>, Vec<TrafficSelector>) {
    let or_host = |selectors: &[TrafficSelector], address| {
        if selectors.is_empty() {
            vec![TrafficSelector::host(address)]
        } else {
            selectors.to_vec()
        }
    };
    (
        or_host(&policy.local_ts, sa.local.ip()),
        or_host(&policy.remote_ts, sa.remote.ip()),
    )
}

/// SA, TSi, TSr and notifies of a request of ours.
pub(super) fn offer<P>(sa: &crate::sa::IkeSa<P>, policy: &Policy, spi: Spi) -> Vec<Payload<'static>> {
    let (local_ts, remote_ts) = policy_selectors(sa, policy);
    let mut payloads = vec![
        Payload::Sa(offer_esp(&policy.esp_suites, policy.esn, spi)),
        Payload::TsI(local_ts),
        Payload::TsR(remote_ts),
    ];
    payloads.extend(notifies(policy.mode));
    payloads
}

/// The notifies that go with a CHILD SA. Our ESP does not strip traffic-flow padding (RFC 4303 §2.7).
pub(super) fn notifies(mode: Mode) -> Vec<Payload<'static>> {
    let mut payloads = vec![Payload::notify(
        NotifyType::ESP_TFC_PADDING_NOT_SUPPORTED,
        &[][..],
    )];
    if mode == Mode::Transport {
        payloads.push(Payload::bare(NotifyType::USE_TRANSPORT_MODE));
    }
    payloads
}

impl Agreement {
    /// Group of the key exchange.
    pub(super) const fn group(&self) -> Option<DhGroup> {
        self.chosen.group
    }

    /// Method of the additional key exchange.
    pub(super) const fn additional(&self) -> Option<DhGroup> {
        self.chosen.additional
    }

    /// The CHILD SA, without limits in time.
    pub(super) fn child(&self, spi_in: Spi) -> Child {
        Child {
            spi_in,
            spi_out: self.chosen.spi,
            soft_at: None,
            hard_at: None,
            deleting: false,
            rekeying: false,
            replaced: false,
            delete_at: None,
            replaces: None,
            silent: false,
            local_ts: self.local_ts.clone(),
            remote_ts: self.remote_ts.clone(),
            mode: self.mode,
        }
    }
}

/// What the peer answered to our offer. `only` narrows to the selectors of a CHILD SA being replaced.
pub(super) fn accept<P>(
    sa: &crate::sa::IkeSa<P>,
    parts: &Parts<'_>,
    only: Option<&Child>,
) -> Result<Agreement, FailReason> {
    accept_rekeyed(sa, parts, only, None, None)
}

/// As [`accept`], with the group of the key exchange and the method of an additional one that were offered along, which
/// the peer may leave out.
pub(super) fn accept_rekeyed<P>(
    sa: &crate::sa::IkeSa<P>,
    parts: &Parts<'_>,
    only: Option<&Child>,
    group: Option<DhGroup>,
    additional: Option<DhGroup>,
) -> Result<Agreement, FailReason> {
    let policy = sa.policy.as_ref().ok_or(FailReason::ProtocolError)?;
    let (Some(proposals), Some(ts_i), Some(ts_r)) = (parts.sa, parts.ts_i, parts.ts_r) else {
        return Err(match parts.error() {
            Some(NotifyType::NO_PROPOSAL_CHOSEN) => FailReason::NoProposalChosen,
            Some(NotifyType::TS_UNACCEPTABLE) => FailReason::TsUnacceptable,
            Some(other) => FailReason::Notify(other.0),
            None => FailReason::ProtocolError,
        });
    };
    let chosen = accept_esp(&policy.esp_suites, policy.esn, proposals)
        .filter(|chosen| chosen.group.is_none() || chosen.group == group)
        .filter(|chosen| chosen.additional.is_none() || chosen.additional == additional)
        .ok_or(FailReason::ProtocolError)?;
    let (local_ts, remote_ts) = match only {
        Some(child) => (child.local_ts.clone(), child.remote_ts.clone()),
        None => policy_selectors(sa, policy),
    };
    let agreement = Agreement {
        chosen,
        mode: mode(parts, policy.mode),
        local_ts: narrow(&local_ts, ts_i),
        remote_ts: narrow(&remote_ts, ts_r),
        answer_ts: (Vec::new(), Vec::new()),
    };
    if agreement.local_ts.is_empty() || agreement.remote_ts.is_empty() {
        return Err(FailReason::TsUnacceptable);
    }
    Ok(agreement)
}

/// Transport mode where both sides want it (RFC 7296 §1.3.1).
fn mode(parts: &Parts<'_>, ours: Mode) -> Mode {
    match parts.notify(NotifyType::USE_TRANSPORT_MODE) {
        Some(_) => ours,
        None => Mode::Tunnel,
    }
}

/// Chooses from the peer's offer, which is to replace `old` if that is given.
pub(super) fn choose<P>(
    sa: &crate::sa::IkeSa<P>,
    parts: &Parts<'_>,
    key_exchange: bool,
    old: Option<&Child>,
) -> Result<Agreement, NotifyType> {
    let policy = sa.policy.as_ref().ok_or(NotifyType::NO_PROPOSAL_CHOSEN)?;
    let (Some(proposals), Some(ts_i), Some(ts_r)) = (parts.sa, parts.ts_i, parts.ts_r) else {
        return Err(NotifyType::INVALID_SYNTAX);
    };
    let chosen = choose_esp(&policy.esp_suites, policy.esn, proposals)
        .filter(|chosen| key_exchange || chosen.group.is_none())
        .ok_or(NotifyType::NO_PROPOSAL_CHOSEN)?;
    let (mut local_ts, mut remote_ts) = policy_selectors(sa, policy);
    if let Some(old) = old {
        // Where the addresses alone say what is protected, those of the beginning do: an end may have moved since.
        if policy.local_ts.is_empty() {
            local_ts.clone_from(&old.local_ts);
        }
        if policy.remote_ts.is_empty() {
            remote_ts.clone_from(&old.remote_ts);
        }
    }
    let mode = mode(parts, policy.mode);
    let natted = |nat: bool| nat && mode == Mode::Transport;
    let (local_ts, local_answer) = narrow_natted(&local_ts, ts_r, natted(sa.nat.local), sa.local.ip());
    let (remote_ts, remote_answer) = narrow_natted(&remote_ts, ts_i, natted(sa.nat.remote), sa.remote.ip());
    let agreement = Agreement {
        chosen,
        mode,
        local_ts,
        remote_ts,
        answer_ts: (local_answer, remote_answer),
    };
    if agreement.local_ts.is_empty() || agreement.remote_ts.is_empty() {
        return Err(NotifyType::TS_UNACCEPTABLE);
    }
    Ok(agreement)
}

/// Narrows, and gives the result once as it is here and once as the peer wrote it. In transport mode a host that
/// sits behind a NAT names an address nobody outside knows: the one on its packets takes its place
/// (RFC 7296 §2.23.1).
fn narrow_natted(
    ours: &[TrafficSelector],
    theirs: &[TrafficSelector],
    natted: bool,
    seen: IpAddr,
) -> (Vec<TrafficSelector>, Vec<TrafficSelector>) {
    let host = theirs
        .iter()
        .find(|their| their.first == their.last && their.first.is_ipv4() == seen.is_ipv4());
    let Some(host) = host.filter(|_| natted) else {
        let common = narrow(ours, theirs);
        return (common.clone(), common);
    };
    let inside = host.first;
    let replace = |selectors: &[TrafficSelector], from: IpAddr, to: IpAddr| -> Vec<TrafficSelector> {
        let replaced = selectors
            .iter()
            .map(|selector| match (selector.first, selector.last) {
                ends if ends == (from, from) => TrafficSelector {
                    first: to,
                    last: to,
                    ..*selector
                },
                _ => *selector,
            });
        replaced.collect()
    };
    let common = narrow(ours, &replace(theirs, inside, seen));
    let answer = replace(&common, seen, inside);
    (common, answer)
}

/// SA, TSi, TSr and notifies of a response of ours.
pub(super) fn answer_payloads(agreement: &Agreement, spi: Spi) -> Vec<Payload<'static>> {
    let mut payloads = vec![
        Payload::Sa(vec![agreement.chosen.answer(spi)]),
        Payload::TsI(agreement.answer_ts.1.clone()),
        Payload::TsR(agreement.answer_ts.0.clone()),
    ];
    payloads.extend(notifies(agreement.mode));
    payloads
}

/// Derives the keys, notes the CHILD SA and tells the owner. `role` is ours in this exchange.
pub(super) fn install<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    agreement: Agreement,
    spi_in: Spi,
    role: Role,
    keying: &Keying<'_>,
    replaces: Option<Spi>,
) -> Result<(), FailReason> {
    let (keys, policy) = sa
        .keys
        .as_ref()
        .zip(sa.policy.as_ref())
        .ok_or(FailReason::ProtocolError)?;
    let suite = agreement.chosen.suite;
    let (to_responder, to_initiator) = keys
        .keymat(&core.keygen, suite, keying)
        .ok_or(FailReason::ProtocolError)?;
    let (keys_in, keys_out) = match role {
        Role::Initiator => (to_initiator, to_responder),
        Role::Responder => (to_responder, to_initiator),
    };
    let replaces = replaces.or(sa.succeeds.and_then(|(_, child)| child));
    let lifetime = policy.lifetime;
    let after = |seconds: u32| (seconds > 0).then(|| Duration::from_secs(seconds.into()));
    // Up to a tenth earlier, so that both sides rarely rekey at once.
    let jitter = u32::from(core.random::<1>()[0]);
    let soft_at = after(lifetime.soft_seconds).map(|soft| now + (soft - soft / 2560 * jitter));
    sa.children.push(Child {
        soft_at,
        hard_at: after(lifetime.hard_seconds).map(|hard| now + hard),
        ..agreement.child(spi_in)
    });
    core.commands.push_back(Command::ChildEstablished {
        ike: sa.id,
        tag: sa.tag.take(),
        role,
        child: ChildSa {
            local: sa.local.ip(),
            remote: sa.remote.ip(),
            suite,
            mode: agreement.mode,
            esn: agreement.chosen.esn,
            encap: sa.encap(),
            spi_in,
            spi_out: agreement.chosen.spi,
            keys_in,
            keys_out,
            local_ts: Selectors::from_iter(agreement.local_ts),
            remote_ts: Selectors::from_iter(agreement.remote_ts),
            lifetime,
        },
        remote_id: sa.remote_id.clone().unwrap_or(IkeId::Address(sa.remote.ip())),
        replaces,
    });
    Ok(())
}

/// Answers CREATE_CHILD_SA for a CHILD SA, new or in place of another.
pub(super) fn respond<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    header: &Header,
    parts: &Parts<'_>,
) -> Result<(), Payload<'static>> {
    // RFC 7296 §2.25.2: not while the IKE SA itself is being rekeyed.
    let under_way = sa.outstanding.as_ref().map(|out| &out.task);
    let moving = matches!(under_way, Some(Task::IkeRekey(_)));
    let following = match under_way {
        Some(Task::ChildRekey(ours)) if ours.follows() => Some(ours.old()),
        _ => None,
    };
    if sa.state != State::Established || moving || sa.rival.is_some() {
        return Err(Payload::bare(NotifyType::TEMPORARY_FAILURE));
    }
    if sa.children.len() + sa.followups.len() >= MAX_CHILDREN {
        return Err(Payload::bare(NotifyType::NO_ADDITIONAL_SAS));
    }
    let ni = parts.nonce.ok_or(Payload::bare(NotifyType::INVALID_SYNTAX))?;
    let replaces = replaced(sa, parts)?;
    if following.is_some() && following == replaces {
        // Ours is decided, and in the middle of its key exchanges (RFC 9370 §2.2.4).
        return Err(Payload::bare(NotifyType::TEMPORARY_FAILURE));
    }
    let agreement =
        choose(sa, parts, true, replaces.and_then(|spi_in| sa.child(spi_in))).map_err(Payload::bare)?;
    let exchanged = match (agreement.chosen.group, parts.ke) {
        (None, _) => None,
        (Some(group), Some((sent, public))) if sent == group.number() => Some(
            core.keygen
                .respond(group, public, &mut core.rng)
                .map_err(|_| Payload::bare(NotifyType::INVALID_SYNTAX))?,
        ),
        (Some(group), _) => {
            let data = group.number().to_be_bytes().to_vec();
            return Err(Payload::notify(NotifyType::INVALID_KE_PAYLOAD, data));
        }
    };
    let nr = core.nonce();
    let spi = core.new_esp_spi(sa.local.ip());
    let mut payloads = answer_payloads(&agreement, spi);
    payloads.insert(1, Payload::Nonce(nr.clone().into()));
    if let (Some((public, _)), Some(group)) = (&exchanged, agreement.chosen.group) {
        payloads.insert(
            2,
            Payload::Ke {
                group: group.number(),
                data: public.clone().into(),
            },
        );
    }
    let shared = exchanged.map(|(_, shared)| shared);
    if let (Some(method), Some(shared)) = (agreement.additional(), shared.clone()) {
        if let Some(old) = replaces {
            crossed(sa, old, spi, (ni, &nr));
        }
        let of = Of::Child {
            agreement: Box::new(agreement),
            spi,
            replaces,
        };
        payloads.push(wait_for(sa, core, now, method, (ni, &nr, shared), of));
        answer(sa, core, header.exchange, header.message_id, &payloads);
        return Ok(());
    }
    let keying = Keying {
        ni,
        nr: &nr,
        shared: shared.as_ref(),
        additional: None,
    };
    complete(
        sa,
        core,
        now,
        header,
        agreement,
        (spi, replaces),
        &keying,
        &payloads,
    )
}

/// Tells a rekeying of ours that the peer makes one of the same CHILD SA.
fn crossed<P>(sa: &mut crate::sa::IkeSa<P>, old: Spi, spi_in: Spi, nonces: (&[u8], &[u8])) {
    if let Some(out) = sa.outstanding.as_mut()
        && let Task::ChildRekey(ours) = &mut out.task
    {
        ours.crossed(old, spi_in, nonces.0, nonces.1);
    }
}

/// Makes what the peer asked for, with the last message of its series: the CHILD SA whose packets to us have `spi`, in
/// place of another one where that is given.
pub(super) fn complete<K: KeyGenerator, R: Rng>(
    sa: &mut Sa<K>,
    core: &mut Core<K, R>,
    now: Instant,
    header: &Header,
    agreement: Agreement,
    (spi, replaces): (Spi, Option<Spi>),
    keying: &Keying<'_>,
    payloads: &[Payload<'_>],
) -> Result<(), Payload<'static>> {
    if install(sa, core, now, agreement, spi, Role::Responder, keying, replaces).is_err() {
        core.release_esp_spi(sa.local.ip(), spi);
        return Err(Payload::bare(NotifyType::NO_PROPOSAL_CHOSEN));
    }
    if let Some(old) = replaces
        && let Some(child) = sa.child_mut(old)
    {
        // The peer deletes it (RFC 7296 §2.8); should it forget, the hard limit does.
        child.replaced = true;
        child.soft_at = None;
        crossed(sa, old, spi, (keying.ni, keying.nr));
        let wait = core.config.ready_within;
        sa.withheld = (!wait.is_zero()).then_some(Withheld {
            spi_in: spi,
            due: now + wait,
        });
    }
    answer(sa, core, header.exchange, header.message_id, payloads);
    Ok(())
}

/// The CHILD SA that REKEY_SA names, by our inbound SPI.
fn replaced<P>(sa: &crate::sa::IkeSa<P>, parts: &Parts<'_>) -> Result<Option<Spi>, Payload<'static>> {
    let Some(notify) = parts.notify(NotifyType::REKEY_SA) else {
        return Ok(None);
    };
    let named = <[u8; 4]>::try_from(notify.spi.as_ref())
        .ok()
        .map(u32::from_be_bytes);
    let (Some(spi), true) = (named, notify.protocol == Protocol::ESP.0) else {
        return Err(Payload::bare(NotifyType::INVALID_SYNTAX));
    };
    // The peer names the SPI of packets to itself (RFC 7296 §1.3.3).
    match sa.children.iter().find(|child| child.spi_out == Spi(spi)) {
        // On its way out already (RFC 7296 §2.25.1). One that we are rekeying is rekeyed twice, and the nonces decide.
        Some(child) if child.deleting || child.replaced => Err(Payload::bare(NotifyType::TEMPORARY_FAILURE)),
        Some(child) => Ok(Some(child.spi_in)),
        None => {
            let mut notify = crate::wire::Notify::new(NotifyType::CHILD_SA_NOT_FOUND, &[][..]);
            notify.protocol = Protocol::ESP.0;
            notify.spi = spi.to_be_bytes().to_vec().into();
            Err(Payload::Notify(notify))
        }
    }
}
