//! The figures as a picture: goodput against the bound over loss, and every figure against its goal.

use std::fmt::Write as _;

use super::super::{Better, Record};

const WIDTH: f64 = 900.0;
const LEFT: f64 = 250.0;
const ROW: f64 = 20.0;
/// A figure is drawn up to this multiple of its goal.
const MOST: f64 = 2.0;

/// How well a figure does, 1 being its goal; more is better.
fn merit(record: &Record) -> Option<f64> {
    let goal = record.goal?;
    let merit = match record.better {
        Better::Higher => record.value / goal,
        Better::Lower if record.value <= 0.0 => MOST,
        Better::Lower => goal / record.value,
    };
    merit.is_finite().then_some(merit)
}

/// One bar per figure that has a goal; the line is the goal.
pub(super) fn svg(records: &[Record]) -> String {
    let rows: Vec<(&Record, f64)> = records.iter().filter_map(|r| Some((r, merit(r)?))).collect();
    let height = 70.0 + ROW * rows.len() as f64;
    let scale = (WIDTH - LEFT - 130.0) / MOST;
    let goal = LEFT + scale;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"10\" y=\"22\" \
         font-size=\"15\">TCP relay: figures against their goals (right of the line: met)</text>\n"
    );
    for (index, (record, merit)) in rows.iter().enumerate() {
        let y = 40.0 + ROW * index as f64;
        let length = scale * merit.clamp(0.0, MOST);
        let colour = if *merit >= 1.0 { "#3a7d44" } else { "#c2571a" };
        let sign = if record.better == Better::Higher {
            "≥"
        } else {
            "≤"
        };
        let (id, value, unit) = (&record.id, record.value, record.unit);
        let (base, middle, end) = (y + 14.0, y + 3.0, LEFT + length + 6.0);
        let wanted = record.goal.unwrap_or_default();
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "<text x=\"{x}\" y=\"{base}\" text-anchor=\"end\">{id}</text><rect x=\"{LEFT}\" y=\"{middle}\" \
             width=\"{length:.1}\" height=\"14\" fill=\"{colour}\"/><text x=\"{end:.1}\" y=\"{base}\">{value} {unit} \
             ({sign} {wanted})</text>",
            x = LEFT - 8.0,
        );
    }
    let bottom = height - 24.0;
    let _ = writeln!(
        text,
        "<line x1=\"{goal}\" y1=\"34\" x2=\"{goal}\" y2=\"{bottom}\" stroke=\"black\"/><text x=\"{goal}\" y=\"{y}\" \
         text-anchor=\"middle\">goal</text>\n</svg>",
        y = height - 8.0,
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_reaches_the_line_where_the_goal_is_met() {
        let higher = Record::new("a", "ratio", Better::Higher, &[0.9]).goal(0.9);
        let lower = Record::new("b", "ratio", Better::Lower, &[2.0]).goal(1.0);
        assert_eq!((merit(&higher), merit(&lower)), (Some(1.0), Some(0.5)));
        let text = svg(&[higher, lower, Record::new("c", "ratio", Better::Lower, &[1.0])]);
        assert_eq!(
            text.matches("<rect x=").count(),
            2,
            "a figure without a goal has no bar"
        );
        assert!(text.starts_with("<svg") && text.ends_with("</svg>\n"));
    }
}
