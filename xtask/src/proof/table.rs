//! The result as a table for people.

use comfy_table::{ContentArrangement, Table, presets};

use super::runner::{CHECKS, Outcome};
use super::scenario::Starter;
use crate::lab::Node;

/// Prints all outcomes and, below, what went wrong.
pub fn print(outcomes: &[Outcome]) {
    let mut table = Table::new();
    table
        .load_preset(presets::UTF8_BORDERS_ONLY)
        .set_content_arrangement(ContentArrangement::Disabled);
    let mut header = vec!["peer", "family", "started by", "suite", "class"];
    header.extend(CHECKS);
    header.push("s");
    table.set_header(header);
    for outcome in outcomes {
        let s = &outcome.scenario;
        let between = s.other != Node::Peer;
        let peer = if between {
            "terminal B"
        } else {
            outcome.peer.name()
        };
        let starter = if s.starter == Starter::Terminal {
            "terminal"
        } else {
            "peer"
        };
        let mut row = vec![
            peer.to_owned(),
            s.family.to_string(),
            starter.to_owned(),
            s.suite.name().to_owned(),
            s.class.name().to_owned(),
        ];
        row.extend(
            outcome
                .verdicts
                .iter()
                .enumerate()
                .map(|(i, v)| cell(i, v.as_ref())),
        );
        row.push(format!("{:.1}", outcome.took.as_secs_f32()));
        table.add_row(row);
    }
    println!("{table}");
    for outcome in outcomes.iter().filter(|o| !o.passed()) {
        println!(
            "FAILED with {}: {}",
            outcome.peer.name(),
            outcome.scenario.title()
        );
        for line in outcome.complaints() {
            println!("    {line}");
        }
    }
}

/// Short: the figure where there is one, otherwise a word.
fn cell(check: usize, verdict: Option<&Result<String, String>>) -> String {
    match verdict {
        Some(Ok(text)) if matches!(check, 0 | 3 | 4) => text.clone(),
        Some(Ok(_)) => "ok".to_owned(),
        Some(Err(_)) => "FAIL".to_owned(),
        None => "-".to_owned(),
    }
}
