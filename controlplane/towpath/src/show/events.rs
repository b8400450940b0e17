//! `towpath events`.

use std::fmt::Write;

use towpath_telemetry::admin::Event;

use crate::backend::daemon;
use crate::cli::{Common, Events};
use crate::failure::Outcome;
use crate::output;

/// Prints events as they happen.
pub(crate) fn events(common: &Common, args: &Events) -> Outcome {
    let mut client = daemon(common)?;
    client.follow()?;
    let mut last = None;
    let mut left = args.count.unwrap_or(u64::MAX);
    while left > 0 {
        let Some(event) = client.next_event()? else {
            break;
        };
        let lost = last.map_or(0, |last: u64| event.number.saturating_sub(last + 1));
        if lost > 0 {
            eprintln!("warning: {lost} events lost, the reader was too slow");
        }
        last = Some(event.number);
        if common.json {
            output::json_line(&event)?;
        } else {
            output::print(&text(&event))?;
        }
        left -= 1;
    }
    Ok(())
}

/// `12:34:56.789  alice  10.0.0.1 = 192.0.2.1  ike_established  …`, time in UTC.
fn text(event: &Event) -> String {
    let millis = event.unix_millis % 86_400_000;
    let (hours, minutes) = (millis / 3_600_000, millis / 60_000 % 60);
    let (seconds, millis) = (millis / 1000 % 60, millis % 1000);
    let mut text = format!(
        "{hours:02}:{minutes:02}:{seconds:02}.{millis:03}  {}",
        event.subscriber
    );
    let pair = [event.terminal, event.peer].map(|address| address.map(|address| address.to_string()));
    let pair: Vec<String> = pair.into_iter().flatten().collect();
    if !pair.is_empty() {
        // Writing into a string cannot fail.
        let _ = write!(text, "  {}", pair.join(" = "));
    }
    let _ = writeln!(text, "  {}  {}", event.kind, event.text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let event = Event {
            number: 1,
            unix_millis: 86_400_000 + 3_723_004,
            subscriber: "alice".into(),
            terminal: Some([10, 0, 0, 1].into()),
            peer: Some([192, 0, 2, 1].into()),
            ike: None,
            kind: "child_established".into(),
            text: "aes256gcm16".into(),
        };
        assert_eq!(
            text(&event),
            "01:02:03.004  alice  10.0.0.1 = 192.0.2.1  child_established  aes256gcm16\n"
        );
    }
}
