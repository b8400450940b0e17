//! Keys are replaced every few seconds, by either side and by both at once, while packets flow: none is lost.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::stack::Stack;
use crate::lab::{Family, Node};
use crate::sh::Cmd;

/// Between two packets.
const INTERVAL: Duration = Duration::from_millis(10);
/// Between two rekeyings.
const PAUSE: Duration = Duration::from_millis(1500);

/// One stream of packets and whose keys are replaced under it.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// The terminal.
    pub terminal: Node,
    /// Address family.
    pub family: Family,
}

/// What became of a stream.
#[derive(Clone, Debug)]
pub struct Report {
    /// Which.
    pub stream: Stream,
    /// Packets sent.
    pub sent: u64,
    /// Packets answered.
    pub answered: u64,
    /// CHILD SAs replaced: by the peer, by us, by both at once.
    pub children: [u32; 3],
    /// IKE SAs replaced: by the peer, by us, by both at once.
    pub ikes: [u32; 3],
    /// CHILD SAs of the pair at the end, as the daemon lists them.
    pub left: usize,
}

impl Report {
    /// As JSON.
    pub fn row(&self) -> Value {
        json!({
            "family": self.stream.family.to_string(),
            "passed": self.passed(),
            "sent": self.sent,
            "answered": self.answered,
            "children": self.children,
            "ikes": self.ikes,
            "left": self.left,
        })
    }

    /// Nothing was lost, and nothing is left over.
    pub fn passed(&self) -> bool {
        self.sent > 0 && self.sent == self.answered && self.left == 1
    }
}

/// Runs one stream for `time`.
pub fn run(stack: &Stack, stream: Stream, time: Duration) -> Result<Report> {
    let Stream { terminal, family } = stream;
    let peer = Node::Peer.addr(family).to_string();
    // The first packet brings the SA.
    let first = Cmd::new("ping").args(["-c", "1", "-W", "10", "-q", &peer]);
    if !stack.lab.exec(terminal, &first, Duration::from_secs(15))?.ok() {
        bail!("no SA between {} and the peer", terminal.name());
    }
    let count = (time.as_millis() / INTERVAL.as_millis()).to_string();
    let ping = Cmd::new("ping").args(["-i", "0.01", "-c", &count, "-W", "3", "-q", &peer]);
    let mut report = Report {
        stream,
        sent: 0,
        answered: 0,
        children: [0; 3],
        ikes: [0; 3],
        left: 0,
    };
    let limit = time * 2 + Duration::from_secs(30);
    let (outcome, output) = std::thread::scope(|scope| {
        let pinging = scope.spawn(|| stack.lab.exec(terminal, &ping, limit));
        let outcome = replace(stack, stream, time, &mut report);
        (outcome, pinging.join())
    });
    outcome?;
    let output = output.map_err(|_| anyhow::anyhow!("the thread that pings panicked"))??;
    (report.sent, report.answered) =
        counts(&output.stdout).with_context(|| format!("cannot read ping's report:\n{}", output.all()))?;
    // What was replaced is gone after its time.
    std::thread::sleep(Duration::from_secs(1));
    let ours = |sa: &&Value| sa["terminal"] == terminal.addr(family).to_string() && sa["peer"] == peer;
    report.left = stack.sas()?.iter().filter(ours).count();
    Ok(report)
}

/// Replaces keys until shortly before the end.
fn replace(stack: &Stack, stream: Stream, time: Duration, report: &mut Report) -> Result<()> {
    let end = Instant::now() + time.saturating_sub(Duration::from_secs(5));
    let mut step = 0;
    while Instant::now() < end {
        let child = step / 3 % 2 == 0;
        let by = step % 3;
        if by != 0 {
            by_us(stack, stream, child)?;
        }
        if by != 1 {
            let tag = if stream.family == Family::V4 { "v4" } else { "v6" };
            let name = format!("{}-{tag}", stream.terminal.name());
            stack
                .lab
                .peer()
                .rekey(if child { "--child" } else { "--ike" }, &name)?;
        }
        let counts = if child {
            &mut report.children
        } else {
            &mut report.ikes
        };
        counts[by] += 1;
        step += 1;
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Has the keyserver replace the pair's newest CHILD SA, or its IKE SA.
fn by_us(stack: &Stack, stream: Stream, child: bool) -> Result<()> {
    let (terminal, peer) = (
        stream.terminal.addr(stream.family),
        Node::Peer.addr(stream.family),
    );
    let list = stack.cli(&["ike", "list"])?;
    let of_pair = |sa: &&Value| {
        sa["local"] == terminal.to_string()
            && sa["remote"] == peer.to_string()
            && sa["state"] == "established"
    };
    let sas = list.as_array().context("towpath ike list")?;
    let sa = sas.iter().rev().find(of_pair).context("no IKE SA of the pair")?;
    let ike = sa["spi_i"].as_str().context("spi_i")?;
    let children = sa["children"].as_array().map(Vec::as_slice).unwrap_or_default();
    let spi = children.last().and_then(|child| child["spi_in"].as_str());
    let outcome = match spi.filter(|_| child) {
        Some(spi) => stack.cli(&["ike", "rekey", ike, "--child", spi]),
        None => stack.cli(&["ike", "rekey", ike]),
    };
    match outcome {
        Ok(_) => Ok(()),
        // It was being replaced in this moment.
        Err(error)
            if error.to_string().contains("not established") || error.to_string().contains("no IKE SA") =>
        {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// `3000 packets transmitted, 3000 received, 0% packet loss, …`
fn counts(text: &str) -> Option<(u64, u64)> {
    let line = text.lines().find(|line| line.contains("packets transmitted"))?;
    let mut numbers = line.split_whitespace().filter_map(|word| word.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_report_is_read() {
        let text = "PING 10.77.9.2\n\n--- 10.77.9.2 ping statistics ---\n\
                    3000 packets transmitted, 2998 received, 0.0666667% packet loss, time 30012ms\n";
        assert_eq!(counts(text), Some((3000, 2998)));
        assert_eq!(counts("no answer"), None);
    }
}
