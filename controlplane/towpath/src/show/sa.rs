//! `towpath sa`.

use towpath_base::Spi;
use towpath_telemetry::admin::{Reply, Request, SaFilter, SaInfo, Traffic};

use super::unexpected;
use crate::backend::daemon;
use crate::cli::{Common, Sa};
use crate::failure::{Failure, Outcome};
use crate::output;

/// Lists or shows ESP SAs.
pub(crate) fn sa(common: &Common, command: Sa) -> Outcome {
    let (request, spi) = match command {
        Sa::List {
            operator,
            subscriber,
            address,
            manual,
            keys,
        } => {
            if manual {
                return crate::sa::list(common, keys);
            }
            let filter = SaFilter {
                operator,
                subscriber,
                address,
            };
            (Request::SaList(filter), None)
        }
        Sa::Add(args) => return crate::sa::add(common, *args),
        Sa::Remove { name } => return crate::sa::remove(common, name),
        Sa::ExportWireshark { spi, side } => return crate::capture::export(common, spi, side),
        Sa::Show { spi } => (Request::SaShow { spi: Spi(spi) }, Some(spi)),
    };
    let sas = match daemon(common)?.request(&request)? {
        Reply::SaList(sas) => sas,
        reply => return Err(unexpected(&reply)),
    };
    if let Some(spi) = spi.filter(|_| sas.is_empty()) {
        return Err(Failure::usage(format!("no SA with SPI {spi:08x}")));
    }
    if common.json {
        return output::json(&sas);
    }
    if spi.is_none() {
        return output::print(&list(&sas));
    }
    let shown: Vec<String> = sas.iter().map(details).collect();
    output::print(&shown.join("\n"))
}

fn list(sas: &[SaInfo]) -> String {
    let mut table = output::table(&[
        "SUBSCRIBER",
        "TERMINAL",
        "PEER",
        "SPI IN",
        "SPI OUT",
        "CLASS",
        "SUITE",
        "MODE",
        "AGE",
        "TO TERMINAL",
        "TO PEER",
    ]);
    for sa in sas {
        table.add_row([
            sa.subscriber.clone(),
            sa.terminal.to_string(),
            sa.peer.to_string(),
            sa.spi_in.to_string(),
            sa.spi_out.to_string(),
            match sa.level {
                None | Some(0) => sa.class.to_string(),
                Some(level) => format!("{}, level {level}", sa.class),
            },
            or_unknown(sa.suite),
            or_unknown(sa.mode),
            output::duration(sa.age_seconds),
            traffic(sa.to_terminal),
            traffic(sa.to_peer),
        ]);
    }
    output::render(&table)
}

fn details(sa: &SaInfo) -> String {
    let selectors = |selectors: &[towpath_base::selector::TrafficSelector]| {
        let texts: Vec<String> = selectors.iter().map(ToString::to_string).collect();
        texts.join("\n")
    };
    output::facts(&[
        (
            "subscriber",
            format!("{} of {}, handle {}", sa.subscriber, sa.operator, sa.handle),
        ),
        ("terminal", sa.terminal.to_string()),
        ("peer", sa.peer.to_string()),
        ("spi", format!("in {}, out {}", sa.spi_in, sa.spi_out)),
        ("suite", or_unknown(sa.suite)),
        (
            "mode",
            format!(
                "{}{}",
                or_unknown(sa.mode),
                if sa.udp_encap { ", in UDP" } else { "" }
            ),
        ),
        (
            "esn",
            sa.esn
                .map_or("-".into(), |esn| if esn { "yes" } else { "no" }.into()),
        ),
        ("class", sa.class.to_string()),
        ("level", or_unknown(sa.level)),
        (
            "terminal has it",
            if sa.transferred { "yes" } else { "not yet" }.into(),
        ),
        ("age", output::duration(sa.age_seconds)),
        ("to terminal", traffic(sa.to_terminal)),
        ("to peer", traffic(sa.to_peer)),
        ("terminal's side", selectors(&sa.local_ts)),
        ("peer's side", selectors(&sa.remote_ts)),
        ("manual", sa.manual.clone().unwrap_or_else(|| "no".into())),
        ("untouched", format!("{} packets", sa.untouched)),
        ("note", sa.note.clone().unwrap_or_else(|| "-".into())),
    ])
}

fn or_unknown<T: ToString>(value: Option<T>) -> String {
    value.map_or("-".into(), |value| value.to_string())
}

fn traffic(traffic: Traffic) -> String {
    format!("{} / {}", traffic.packets, output::bytes(traffic.bytes))
}
