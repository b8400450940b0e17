//! `towpath ike`.

use towpath_telemetry::admin::{Event, IkeInfo, IkeRequest, Reply, Request};

use super::unexpected;
use crate::backend::daemon;
use crate::cli::{Common, Ike, IkeLog};
use crate::failure::Outcome;
use crate::output;

/// Lists, shows, starts, replaces and ends IKE SAs.
pub(crate) fn ike(common: &Common, command: Ike) -> Outcome {
    let (request, done) = match command {
        Ike::List => return list(common),
        Ike::Show { ike } => return show(common, ike),
        Ike::Log(args) => return log(common, &args),
        Ike::Keys { ike } => return keys(common, ike),
        Ike::Initiate { subscriber, peer } => (IkeRequest::Initiate { subscriber, peer }, "exchange started"),
        Ike::Rekey { ike, child } => (IkeRequest::Rekey { ike, child }, "rekeying started"),
        Ike::Reauthenticate { ike } => (IkeRequest::Reauthenticate { ike }, "reauthentication started"),
        Ike::Terminate { ike, child } => (IkeRequest::Terminate { ike, child }, "deletion started"),
    };
    match daemon(common)?.request(&Request::Ike(request))? {
        Reply::IkeStarted if common.json => output::json(&serde_json::json!({ "started": true })),
        Reply::IkeStarted => output::print(&format!("{done}; `towpath ike log` shows how it goes\n")),
        reply => Err(unexpected(&reply)),
    }
}

fn list(common: &Common) -> Outcome {
    let sas = match daemon(common)?.request(&Request::IkeList)? {
        Reply::IkeList(sas) => sas,
        reply => return Err(unexpected(&reply)),
    };
    if common.json {
        return output::json(&sas);
    }
    let mut table = output::table(&[
        "SUBSCRIBER",
        "TERMINAL",
        "PEER",
        "PEER'S IDENTITY",
        "STATE",
        "STARTED BY",
        "PROPOSAL",
        "AGE",
        "SPIS",
    ]);
    for sa in &sas {
        table.add_row(row(sa));
    }
    output::print(&output::render(&table))
}

fn row(sa: &IkeInfo) -> [String; 9] {
    [
        sa.subscriber.clone(),
        sa.local.to_string(),
        sa.remote.to_string(),
        or_unknown(sa.remote_id.as_deref()),
        sa.state.clone(),
        started_by(sa).into(),
        or_unknown(sa.proposal.as_deref()),
        output::duration(sa.age_seconds),
        format!("{}_i {}_r", sa.spi_i, sa.spi_r),
    ]
}

/// Identities come from peers: control characters are shown, not obeyed.
fn or_unknown(text: Option<&str>) -> String {
    text.map_or("-".into(), |text| text.escape_debug().to_string())
}

const fn started_by(sa: &IkeInfo) -> &'static str {
    if sa.initiator { "us" } else { "peer" }
}

fn show(common: &Common, ike: u64) -> Outcome {
    let sas = match daemon(common)?.request(&Request::Ike(IkeRequest::Show { ike }))? {
        Reply::IkeList(sas) => sas,
        reply => return Err(unexpected(&reply)),
    };
    if common.json {
        return output::json(&sas);
    }
    let shown: Vec<String> = sas.iter().map(details).collect();
    output::print(&shown.join("\n"))
}

fn details(sa: &IkeInfo) -> String {
    let children = sa.children.iter();
    let children: Vec<String> = children
        .map(|child| format!("in {}, out {}", child.spi_in, child.spi_out))
        .collect();
    let rekey = sa.rekey_in_seconds.map_or("-".into(), output::duration);
    output::facts(&[
        ("subscriber", sa.subscriber.clone()),
        ("terminal", format!("{} port {}", sa.local, sa.local_port)),
        ("terminal's identity", or_unknown(sa.local_id.as_deref())),
        ("peer", format!("{} port {}", sa.remote, sa.remote_port)),
        ("peer's identity", or_unknown(sa.remote_id.as_deref())),
        ("state", sa.state.clone()),
        ("started by", started_by(sa).into()),
        ("spi", format!("{}_i {}_r", sa.spi_i, sa.spi_r)),
        ("proposal", or_unknown(sa.proposal.as_deref())),
        ("age", output::duration(sa.age_seconds)),
        ("rekeyed in", rekey),
        ("level", sa.level.to_string()),
        ("child sas", children.join("\n")),
    ])
}

fn keys(common: &Common, ike: Option<u64>) -> Outcome {
    let lines = match daemon(common)?.request(&Request::Ike(IkeRequest::Keys { ike }))? {
        Reply::IkeKeys(lines) => lines,
        reply => return Err(unexpected(&reply)),
    };
    if common.json {
        return output::json(&lines);
    }
    output::print(&lines.into_iter().map(|line| line + "\n").collect::<String>())
}

/// What the IKE log has of all events.
const KINDS: &[&str] = &[
    "ike",
    "ike_established",
    "ike_rekeyed",
    "ike_closed",
    "child_established",
    "child_deleted",
    "proxy_request",
    "peer_request",
    "operator_request",
    "exchange_failed",
    "exchange_refused",
    "policy_unusable",
    "key_transferred",
    "key_transfer_failed",
];

/// Lines shown of what happened before, unless asked otherwise.
const SHOWN: u64 = 200;

/// The last IKE messages of all SAs, or of one subscriber's; with `--follow` also those that come.
fn log(common: &Common, args: &IkeLog) -> Outcome {
    let spis = args.sa.map(|spi| names_of(common, spi)).transpose()?;
    let wanted = |event: &Event| {
        let name = args.subscriber.as_ref();
        let of_sa = |spis: &Vec<String>| event.ike.as_ref().is_some_and(|spi| spis.contains(spi));
        name.is_none_or(|name| *name == event.subscriber)
            && args.peer.is_none_or(|peer| event.peer == Some(peer))
            && spis.as_ref().is_none_or(of_sa)
            && KINDS.contains(&event.kind.as_str())
    };
    let show = |event: &Event| {
        if common.json {
            output::json_line(event)
        } else {
            output::print(&line(event))
        }
    };
    let mut follower = daemon(common)?;
    if args.follow {
        // First, so that nothing falls between what was and what comes.
        follower.follow()?;
    }
    let recent: Vec<Event> = daemon(common)?.recent()?.into_iter().filter(wanted).collect();
    let count = usize::try_from(args.count.unwrap_or(SHOWN)).unwrap_or(usize::MAX);
    for event in recent.iter().skip(recent.len().saturating_sub(count)) {
        show(event)?;
    }
    let last = recent.last().map_or(0, |event| event.number);
    if !args.follow {
        return Ok(());
    }
    while let Some(event) = follower.next_event()? {
        if event.number > last && wanted(&event) {
            show(&event)?;
        }
    }
    Ok(())
}

/// Events name an IKE SA by our SPI: both SPIs of the SA that has this one, as long as it is there.
fn names_of(common: &Common, spi: u64) -> Outcome<Vec<String>> {
    let given = format!("{spi:016x}");
    let sas = match daemon(common)?.request(&Request::IkeList)? {
        Reply::IkeList(sas) => sas,
        reply => return Err(unexpected(&reply)),
    };
    let of = sas
        .into_iter()
        .filter(|sa| sa.spi_i == given || sa.spi_r == given);
    let mut names: Vec<String> = of.flat_map(|sa| [sa.spi_i, sa.spi_r]).collect();
    names.push(given);
    Ok(names)
}

/// In the manner of strongSwan's log: `12:34:56.789 [ENC] <alice> generating IKE_AUTH request 1 [ IDi AUTH … ]`.
fn line(event: &Event) -> String {
    let millis = event.unix_millis % 86_400_000;
    let (hours, minutes) = (millis / 3_600_000, millis / 60_000 % 60);
    let (seconds, millis) = (millis / 1000 % 60, millis % 1000);
    let time = format!("{hours:02}:{minutes:02}:{seconds:02}.{millis:03}");
    let (group, text) = match event.kind.as_str() {
        "ike" => match event.text.split_once(' ') {
            Some(("-->", message)) => ("ENC", format!("generating {message}")),
            Some(("<--", message)) => ("ENC", format!("parsed {message}")),
            _ => ("ENC", event.text.clone()),
        },
        "child_established" => ("CHD", format!("CHILD_SA {}", event.text)),
        "child_deleted" => ("CHD", format!("CHILD_SA deleted: {}", event.text)),
        "key_transferred" | "key_transfer_failed" => ("KEY", event.text.clone()),
        "ike_established" => ("IKE", format!("IKE_SA established: {}", event.text)),
        "ike_closed" => ("IKE", format!("IKE_SA closed: {}", event.text)),
        "ike_rekeyed" => ("IKE", format!("IKE_SA rekeyed: {}", event.text)),
        kind => ("IKE", format!("{kind}: {}", event.text)),
    };
    let pair = [event.terminal, event.peer].map(|address| address.map(|address| address.to_string()));
    let pair: Vec<String> = pair.into_iter().flatten().collect();
    format!(
        "{time} [{group}] <{}|{}> {}\n",
        event.subscriber.escape_debug(),
        pair.join("=="),
        text.escape_debug()
            .to_string()
            .replace("\\'", "'")
            .replace("\\\"", "\"")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, text: &str) -> Event {
        Event {
            number: 1,
            unix_millis: 86_400_000 + 3_723_004,
            subscriber: "alice".into(),
            terminal: Some([10, 0, 0, 1].into()),
            peer: Some([192, 0, 2, 1].into()),
            ike: None,
            kind: kind.into(),
            text: text.into(),
        }
    }

    #[test]
    fn a_message_is_one_line_in_strongswans_words() {
        assert_eq!(
            line(&event("ike", "--> IKE_AUTH request 1 [ IDi AUTH SA TSi TSr ]")),
            "01:02:03.004 [ENC] <alice|10.0.0.1==192.0.2.1> generating IKE_AUTH request 1 [ IDi AUTH SA TSi TSr ]\n"
        );
        assert_eq!(
            line(&event("ike", "<-- IKE_AUTH response 1 [ N(AUTH_FAILED) ]")),
            "01:02:03.004 [ENC] <alice|10.0.0.1==192.0.2.1> parsed IKE_AUTH response 1 [ N(AUTH_FAILED) ]\n"
        );
    }

    #[test]
    fn control_characters_of_a_peer_do_nothing() {
        let text = line(&event("ike_established", "peer \u{1b}[2J\r\nforged line\u{7f}"));
        assert_eq!(text.matches('\n').count(), 1);
        assert!(!text.trim_end().chars().any(char::is_control), "{text:?}");
    }
}
