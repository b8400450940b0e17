//! A link in words: `rate=50M,delay=50ms,queue=600k,loss=1%`.
//!
//! | key | value |
//! |---|---|
//! | `rate` | bits per second of IP packets, with k, M or G; 0 for no limit |
//! | `delay`, `jitter` | time one way, with us, ms or s |
//! | `queue` | bytes with k or M; with p packets: `queue=100p` |
//! | `loss` | probability, `0.01` or `1%` |
//! | `bursts` | Gilbert-Elliott, ENTER/LEAVE/GOOD/BAD: probabilities per packet to enter and to leave the bad state, loss in either |
//! | `reorder` | PROBABILITY/TIME a packet is held back |
//! | `duplicate` | probability |
//! | `outage` | FROM-TO in time since the start, `5s-6s`; may be repeated |
//! | `mtu` | bytes |

use std::time::Duration;

use towpath_base::Instant;

use crate::model::{LinkConfig, Loss};

/// A description that says nothing sensible.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No such key.
    #[error(
        "there is no {0:?}; there are rate, delay, jitter, queue, loss, bursts, reorder, duplicate, outage and mtu"
    )]
    Key(String),
    /// Wrong value.
    #[error("{key} is {value:?}; expected {expected}")]
    Value {
        /// Of which key.
        key: String,
        /// What was given.
        value: String,
        /// What would do.
        expected: &'static str,
    },
}

/// Applies `key=value,...` to `config`. Nothing is changed when a part is wrong.
pub fn apply(config: &mut LinkConfig, spec: &str) -> Result<(), SpecError> {
    let mut changed = config.clone();
    for part in spec.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        set(&mut changed, key.trim(), value.trim())?;
    }
    *config = changed;
    Ok(())
}

fn set(config: &mut LinkConfig, key: &str, value: &str) -> Result<(), SpecError> {
    let wrong = |expected| SpecError::Value {
        key: key.into(),
        value: value.into(),
        expected,
    };
    let time = |text| duration(text).ok_or_else(|| wrong("a time such as 50ms"));
    let share = |text| probability(text).ok_or_else(|| wrong("a probability such as 0.01 or 1%"));
    match key {
        "rate" => config.rate = number(value).ok_or_else(|| wrong("bits per second such as 50M"))?,
        "delay" => config.delay = time(value)?,
        "jitter" => config.jitter = time(value)?,
        "queue" => match value.strip_suffix('p') {
            Some(packets) => {
                config.queue_packets = packets.parse().map_err(|_| wrong("packets such as 100p"))?;
            }
            None => {
                config.queue =
                    number(value).ok_or_else(|| wrong("bytes such as 600k, or packets such as 100p"))?
            }
        },
        "loss" => {
            config.loss = match share(value)? {
                0.0 => Loss::None,
                probability => Loss::Random(probability),
            };
        }
        "bursts" => {
            let parts: Vec<f64> = value.split('/').filter_map(probability).collect();
            let [enter, leave, good, bad] = parts[..] else {
                return Err(wrong("ENTER/LEAVE/GOOD/BAD, four probabilities"));
            };
            config.loss = Loss::Bursts {
                enter,
                leave,
                good,
                bad,
            };
        }
        "reorder" => {
            let (chance, by) = value.split_once('/').ok_or_else(|| wrong("PROBABILITY/TIME"))?;
            (config.reorder, config.reorder_by) = (share(chance)?, time(by)?);
        }
        "duplicate" => config.duplicate = share(value)?,
        "outage" => {
            let (from, to) = value
                .split_once('-')
                .ok_or_else(|| wrong("FROM-TO such as 5s-6s"))?;
            let at = |text| time(text).map(|time| Instant::ZERO + time);
            config.outages.push((at(from)?, at(to)?));
        }
        "mtu" => config.mtu = value.parse().map_err(|_| wrong("bytes"))?,
        other => return Err(SpecError::Key(other.into())),
    }
    Ok(())
}

/// `config` in the words [`apply`] reads.
pub fn describe(config: &LinkConfig) -> String {
    let mut text = format!("rate={},delay={:?}", config.rate, config.delay);
    let mut add = |wanted: bool, part: String| {
        if wanted {
            text.push(',');
            text.push_str(&part);
        }
    };
    add(!config.jitter.is_zero(), format!("jitter={:?}", config.jitter));
    add(config.queue < 1 << 30, format!("queue={}", config.queue));
    add(
        config.queue_packets > 0,
        format!("queue={}p", config.queue_packets),
    );
    match config.loss {
        Loss::None => {}
        Loss::Random(probability) => add(true, format!("loss={probability}")),
        Loss::Bursts {
            enter,
            leave,
            good,
            bad,
        } => add(true, format!("bursts={enter}/{leave}/{good}/{bad}")),
    }
    add(
        config.reorder > 0.0,
        format!("reorder={}/{:?}", config.reorder, config.reorder_by),
    );
    add(config.duplicate > 0.0, format!("duplicate={}", config.duplicate));
    for (from, to) in &config.outages {
        let (from, to) = (*from - Instant::ZERO, *to - Instant::ZERO);
        add(true, format!("outage={from:?}-{to:?}"));
    }
    add(config.mtu != 1500, format!("mtu={}", config.mtu));
    text
}

/// A whole number with k, M or G.
fn number(text: &str) -> Option<u64> {
    let scaled = [('k', 1e3), ('M', 1e6), ('G', 1e9)]
        .into_iter()
        .find_map(|(suffix, scale)| Some((text.strip_suffix(suffix)?, scale)));
    let (digits, scale) = scaled.unwrap_or((text, 1.0));
    let value = digits.parse::<f64>().ok().filter(|value| *value >= 0.0)? * scale;
    (value < 1e15).then_some(value as u64)
}

fn probability(text: &str) -> Option<f64> {
    let (digits, scale) = text
        .strip_suffix('%')
        .map_or((text, 1.0), |digits| (digits, 100.0));
    let value = digits.parse::<f64>().ok()? / scale;
    (0.0..=1.0).contains(&value).then_some(value)
}

fn duration(text: &str) -> Option<Duration> {
    let units = [("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("s", 1.0)];
    let scaled = units
        .into_iter()
        .find_map(|(suffix, scale)| Some((text.strip_suffix(suffix)?, scale)));
    let (digits, scale) = scaled.or((text == "0").then_some((text, 1.0)))?;
    let seconds = digits.parse::<f64>().ok()? * scale;
    (0.0..1e6)
        .contains(&seconds)
        .then(|| Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_read_and_told_alike() {
        let mut config = LinkConfig::default();
        let text = "rate=50M, delay=50ms,jitter=2ms,queue=600k,queue=100p,loss=1%,reorder=0.1/5ms,\
                    duplicate=0.02,outage=5s-6s,outage=8s-8500ms,mtu=1400";
        apply(&mut config, text).expect("a good description");
        assert_eq!(
            (config.rate, config.queue, config.queue_packets),
            (50_000_000, 600_000, 100)
        );
        assert_eq!(config.delay, Duration::from_millis(50));
        assert_eq!(config.loss, Loss::Random(0.01));
        assert_eq!(config.outages.len(), 2);
        let mut again = LinkConfig::default();
        apply(&mut again, &describe(&config)).expect("its own description");
        assert_eq!(again, config);
    }

    #[test]
    fn bursts_take_four_probabilities() {
        let mut config = LinkConfig::default();
        apply(&mut config, "bursts=1%/20%/0/0.5").expect("a good description");
        assert!((config.loss.mean() - 0.5 / 21.0).abs() < 1e-9);
    }

    #[test]
    fn a_wrong_part_is_named_and_changes_nothing() {
        let mut config = LinkConfig::default();
        for text in [
            "delay=50",
            "loss=2",
            "speed=1",
            "rate=fast",
            "outage=5s",
            "bursts=1/2/3",
            "delay=1ms,x",
        ] {
            let error = apply(&mut config, text).expect_err(text).to_string();
            assert!(error.contains('"'), "{error}");
            assert_eq!(config, LinkConfig::default());
        }
    }
}
