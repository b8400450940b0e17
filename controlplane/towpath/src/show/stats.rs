//! `towpath stats`: with a daemon all its counters, without one those of the data plane that is still attached.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use towpath_telemetry::admin::{Client, Counter, FlowFilter, FlowList, Reply, Request, Stats};

use super::{prometheus, unexpected};
use crate::backend::socket;
use crate::cli::{Common, Stats as Args};
use crate::config::Config;
use crate::failure::{Failure, Outcome};
use crate::output;

/// Shows counters.
pub(crate) fn stats(common: &Common, args: &Args) -> Outcome {
    if args.prometheus {
        return output::print(&prometheus::text(&fetch(common)?, flows(common).as_ref()));
    }
    let mut before: Option<(Instant, Stats)> = None;
    loop {
        let now = Instant::now();
        let mut stats = fetch(common)?;
        if !args.all {
            stats
                .counters
                .retain(|counter| counter.packets > 0 || counter.bytes > 0);
        }
        if common.json {
            if !args.watch {
                return output::json(&stats);
            }
            output::json_line(&stats)?;
        } else {
            let rates = before.as_ref().map(|(then, stats)| (now - *then, stats));
            let clear = if args.watch && std::io::stdout().is_terminal() {
                "\x1b[2J\x1b[H"
            } else {
                ""
            };
            output::print(&format!("{clear}{}", text(&stats, rates)))?;
            if !args.watch {
                return Ok(());
            }
        }
        before = Some((now, stats));
        std::thread::sleep(Duration::from_secs(args.interval));
    }
}

/// Relayed connections; none without a daemon.
fn flows(common: &Common) -> Option<FlowList> {
    let mut client = Client::connect(&socket(common).ok()?).ok()??;
    match client.request(&Request::FlowList(FlowFilter::default())).ok()? {
        Reply::FlowList(list) => Some(list),
        _ => None,
    }
}

fn fetch(common: &Common) -> Outcome<Stats> {
    let socket = socket(common)?;
    if let Some(mut client) = Client::connect(&socket)? {
        return match client.request(&Request::Stats)? {
            Reply::Stats(stats) => Ok(stats),
            reply => Err(unexpected(&reply)),
        };
    }
    if common.admin.is_some() {
        return Err(Failure::runtime(format!("no daemon serves {}", socket.display())));
    }
    let pin_dir = Config::load_or_default(&common.config)?.gateway.pin_dir;
    if !pin_dir.exists() {
        return Err(Failure::runtime(format!(
            "no daemon serves {} and no data plane is pinned at {}",
            socket.display(),
            pin_dir.display()
        )));
    }
    let counters = towpath_bpf::counters(&pin_dir).map_err(Failure::runtime)?;
    let counters = counters
        .into_iter()
        .map(|(counter, count)| Counter::of_dataplane(counter, count.packets, count.bytes))
        .collect();
    Ok(Stats { counters })
}

fn text(stats: &Stats, before: Option<(Duration, &Stats)>) -> String {
    let mut headings = vec!["GROUP", "COUNTER", "PACKETS", "BYTES", ""];
    if before.is_some() {
        headings.insert(4, "PACKETS/S");
    }
    let known: HashMap<_, _> = before
        .iter()
        .flat_map(|(_, stats)| &stats.counters)
        .map(|counter| ((&counter.group, &counter.name), counter.packets))
        .collect();
    let mut table = output::table(&headings);
    for counter in &stats.counters {
        let mut row = vec![
            counter.group.clone(),
            counter.name.clone(),
            counter.packets.to_string(),
            output::bytes(counter.bytes),
            counter.text.clone(),
        ];
        if let Some((passed, _)) = before {
            let known = known.get(&(&counter.group, &counter.name)).copied().unwrap_or(0);
            let rate = counter.packets.saturating_sub(known) as f64 / passed.as_secs_f64().max(0.001);
            row.insert(4, format!("{rate:.0}"));
        }
        table.add_row(row);
    }
    output::render(&table)
}
