//! What arrives in clear though a policy protects or discards it (RFC 4301 §5.2), where packets are opened in user
//! space: the core does not see it, so the kernel must not let it in.
//!
//! A classic BPF program at the interface's ingress (`tc`, clsact) tells: ESP, AH, IKE's and the network's messages and
//! the search for neighbours pass, and so does what no policy, or one that bypasses, matches. What was protected comes
//! in by the TUN device, where there is no filter. Later fragments pass: without the first, which does not, they are
//! nothing. Where the program `tc` or the kernel's part is missing, clear packets reach the applications.

use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use towpath_base::selector::Prefix;
use towpath_common::wire::{PORT_IKE, PORT_IKE_NATT, protocol};
use tracing::debug;

use crate::config::{Action, PolicyConfig};

/// Place of our filter among those at the interface ("tp" in ASCII).
const PREFERENCE: &str = "29808";

/// The filter at an interface; removed when dropped.
#[derive(Debug)]
pub(crate) struct Filter {
    interface: String,
    /// The hook was not there before us.
    own_hook: bool,
    /// Packets dropped there before us.
    before: u64,
}

impl Filter {
    /// Puts the filter in front of `interface`, in place of one that a killed process left there.
    pub(crate) fn install(
        interface: &str,
        policies: &[PolicyConfig],
        addresses: &[IpAddr],
    ) -> io::Result<Self> {
        let program = Program::of(policies, addresses).text();
        let own_hook = tc(&["qdisc", "add", "dev", interface, "clsact"]).is_ok();
        let mut filter = Self {
            interface: interface.to_owned(),
            own_hook,
            before: 0,
        };
        filter.remove_filter();
        let place = [
            "filter", "add", "dev", interface, "ingress", "protocol", "all", "pref", PREFERENCE,
        ];
        tc(&[&place[..], &["bpf", "direct-action", "bytecode", &program]].concat())?;
        filter.before = filter.drops().unwrap_or(0);
        Ok(filter)
    }

    /// Packets dropped at the hook since it was installed. Other filters there drop into the same counter.
    pub(crate) fn dropped(&self) -> Option<u64> {
        Some(self.drops()?.saturating_sub(self.before))
    }

    fn drops(&self) -> Option<u64> {
        let text = tc(&["-s", "-j", "qdisc", "show", "dev", &self.interface, "clsact"]).ok()?;
        let hooks: serde_json::Value = serde_json::from_str(&text).ok()?;
        let hook = hooks
            .as_array()?
            .iter()
            .find(|hook| hook.get("kind").is_some_and(|kind| kind == "clsact"))?;
        hook.get("drops")?.as_u64()
    }

    fn remove_filter(&self) {
        // Usually there is none.
        let _ = tc(&[
            "filter",
            "del",
            "dev",
            &self.interface,
            "ingress",
            "pref",
            PREFERENCE,
        ]);
    }
}

impl Drop for Filter {
    fn drop(&mut self) {
        self.remove_filter();
        if self.own_hook
            && let Err(error) = tc(&["qdisc", "del", "dev", &self.interface, "clsact"])
        {
            debug!(%error, "the interface's hook stays");
        }
    }
}

/// Runs `tc`; what it says, or why it refuses.
fn tc(arguments: &[&str]) -> io::Result<String> {
    let output = Command::new("tc").args(arguments).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("tc: {}", said.trim())))
}

// Classic BPF (`linux/filter.h`). Loads count from the network header, whatever the link's is.
const NETWORK: u32 = 0xfff0_0000;
/// Where the link's protocol number is.
const LINK_PROTOCOL: u32 = 0xffff_f000;
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const LOAD_HALF_INDEXED: u16 = 0x48;
const LOAD_HEADER_LEN: u16 = 0xb1;
const LOAD_INDEX: u16 = 0x01;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
/// `TC_ACT_UNSPEC`: the next filter decides. `TC_ACT_SHOT`.
const PASS: u32 = u32::MAX;
const DROP: u32 = 2;

/// A place in the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Label(usize);

#[derive(Debug, Clone, Copy)]
enum Instruction {
    Plain(u16, u32),
    /// Goes on if the comparison's outcome is as said, else jumps.
    Unless(u16, u32, bool, Label),
    Mark(Label),
}

/// The filter's program.
#[derive(Debug, Default)]
struct Program {
    instructions: Vec<Instruction>,
    labels: usize,
}

impl Program {
    fn of(policies: &[PolicyConfig], addresses: &[IpAddr]) -> Self {
        let mut program = Self::default();
        for (link, ipv4) in [(0x0800, true), (0x86dd, false)] {
            let other = program.label();
            program.plain(LOAD_HALF, LINK_PROTOCOL);
            program.unless(IF_EQUAL, link, true, other);
            if ipv4 {
                program.ipv4();
            } else {
                program.ipv6();
            }
            for policy in policies
                .iter()
                .filter(|policy| policy.peer.address().is_ipv4() == ipv4)
                // What arrives in clear has no level.
                .filter(|policy| policy.level.is_none_or(|level| level == 0))
            {
                program.policy(policy, addresses, ipv4);
            }
            program.plain(RETURN, PASS);
            program.mark(other);
        }
        program.plain(RETURN, PASS);
        program
    }

    fn label(&mut self) -> Label {
        self.labels += 1;
        Label(self.labels)
    }

    fn plain(&mut self, code: u16, k: u32) {
        self.instructions.push(Instruction::Plain(code, k));
    }

    fn unless(&mut self, code: u16, k: u32, outcome: bool, to: Label) {
        self.instructions.push(Instruction::Unless(code, k, outcome, to));
    }

    fn mark(&mut self, label: Label) {
        self.instructions.push(Instruction::Mark(label));
    }

    /// Passes if what is loaded is one of `values`.
    fn pass_if(&mut self, values: &[u32]) {
        for &value in values {
            let differs = self.label();
            self.unless(IF_EQUAL, value, true, differs);
            self.plain(RETURN, PASS);
            self.mark(differs);
        }
    }

    /// Passes what goes to the ports of IKE; the index register says where the ports are.
    fn pass_ike(&mut self, protocol_at: u32) {
        let other = self.label();
        self.plain(LOAD_BYTE, NETWORK + protocol_at);
        self.unless(IF_EQUAL, protocol::UDP.into(), true, other);
        self.plain(LOAD_HALF_INDEXED, NETWORK + 2);
        self.pass_if(&[PORT_IKE.into(), PORT_IKE_NATT.into()]);
        self.mark(other);
    }

    fn ipv4(&mut self) {
        self.plain(LOAD_BYTE, NETWORK + 9);
        self.pass_if(&[protocol::ESP.into(), protocol::AH.into()]);
        let first = self.label();
        self.plain(LOAD_HALF, NETWORK + 6);
        self.plain(AND, 0x1fff);
        self.unless(IF_GREATER, 0, true, first);
        self.plain(RETURN, PASS);
        self.mark(first);
        self.plain(LOAD_HEADER_LEN, NETWORK);
        self.pass_ike(9);
    }

    fn ipv6(&mut self) {
        const FRAGMENT: u32 = 44;
        const NEIGHBOURS: std::ops::RangeInclusive<u32> = 133..=137;
        self.plain(LOAD_BYTE, NETWORK + 6);
        // What is behind a fragment header is told by the reassembled packet alone: IKE and ESP must pass.
        self.pass_if(&[protocol::ESP.into(), protocol::AH.into(), FRAGMENT]);
        let other = self.label();
        self.unless(IF_EQUAL, protocol::ICMPV6.into(), true, other);
        self.plain(LOAD_BYTE, NETWORK + 40);
        self.pass_if(&NEIGHBOURS.collect::<Vec<_>>());
        self.mark(other);
        self.plain(LOAD_INDEX, 40);
        self.pass_ike(6);
    }

    /// Decides if the packet is from the policy's peers to one of our addresses, and of its protocol and ports.
    fn policy(&mut self, policy: &PolicyConfig, addresses: &[IpAddr], ipv4: bool) {
        let next = self.label();
        let (source, destination, protocol_at) = if ipv4 { (12, 16, 9) } else { (8, 24, 6) };
        self.prefix(&policy.peer, source, next);
        let ours = self.label();
        for address in addresses.iter().filter(|address| address.is_ipv4() == ipv4) {
            let another = self.label();
            self.prefix(&Prefix::host(*address), destination, another);
            self.jump(ours);
            self.mark(another);
        }
        self.jump(next);
        self.mark(ours);
        if policy.protocol.0 != 0 {
            self.plain(LOAD_BYTE, NETWORK + protocol_at);
            self.unless(IF_EQUAL, policy.protocol.0.into(), true, next);
        }
        for (range, at) in [(policy.ports, 0), (policy.local_ports, 2)] {
            if (range.first, range.last) != (0, u16::MAX) {
                self.plain(LOAD_HALF_INDEXED, NETWORK + at);
                self.unless(IF_AT_LEAST, range.first.into(), true, next);
                self.unless(IF_GREATER, range.last.into(), false, next);
            }
        }
        self.plain(
            RETURN,
            if policy.action == Action::Bypass {
                PASS
            } else {
                DROP
            },
        );
        self.mark(next);
    }

    fn jump(&mut self, to: Label) {
        // Equal and not equal: never goes on.
        self.unless(IF_AT_LEAST, 0, false, to);
    }

    /// Jumps to `other` unless the address at `at` is in `prefix`.
    fn prefix(&mut self, prefix: &Prefix, at: u32, other: Label) {
        let octets = match prefix.address() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let mut bits = u32::from(prefix.bits());
        for (word, offset) in octets.chunks_exact(4).zip((at..).step_by(4)) {
            let mask = u32::MAX.checked_shl(32 - bits.min(32)).unwrap_or(0);
            if mask == 0 {
                return;
            }
            let value = word.iter().fold(0, |value, byte| value << 8 | u32::from(*byte));
            self.plain(LOAD_WORD, NETWORK + offset);
            self.plain(AND, mask);
            self.unless(IF_EQUAL, value & mask, true, other);
            bits = bits.saturating_sub(32);
        }
    }

    /// Code, jump if true, jump if false, operand. Conditional jumps reach 255 instructions, others far, so each
    /// condition is a pair.
    fn assemble(&self) -> Vec<(u16, u8, u8, u32)> {
        let mut at = 0u32;
        let mut places = vec![0u32; self.labels + 1];
        for instruction in &self.instructions {
            match instruction {
                Instruction::Plain(..) => at += 1,
                Instruction::Unless(..) => at += 2,
                Instruction::Mark(Label(label)) => places[*label] = at,
            }
        }
        let mut out = Vec::new();
        for instruction in &self.instructions {
            match *instruction {
                Instruction::Plain(code, k) => out.push((code, 0, 0, k)),
                Instruction::Unless(code, k, outcome, Label(label)) => {
                    out.push((code, u8::from(outcome), u8::from(!outcome), k));
                    let next = out.len() as u32 + 1;
                    out.push((JUMP, 0, 0, places[label] - next));
                }
                Instruction::Mark(_) => {}
            }
        }
        out
    }

    /// As `tc` reads it.
    fn text(&self) -> String {
        let code = self.assemble();
        let mut text = code.len().to_string();
        for (code, if_true, if_false, k) in code {
            let _ = write!(text, ",{code} {if_true} {if_false} {k}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the program says of an IP packet.
    fn run(program: &[(u16, u8, u8, u32)], packet: &[u8]) -> u32 {
        let load = |at: usize, len: usize| {
            let bytes = packet.get(at..at + len);
            bytes.map(|bytes| {
                bytes
                    .iter()
                    .fold(0u32, |value, byte| value << 8 | u32::from(*byte))
            })
        };
        let (mut pc, mut a, mut x) = (0usize, 0u32, 0u32);
        loop {
            let (code, if_true, if_false, k) = program[pc];
            let at = k.wrapping_sub(NETWORK) as usize;
            pc += 1;
            let loaded = match code {
                LOAD_HALF if k == LINK_PROTOCOL => Some(if packet[0] >> 4 == 4 { 0x0800 } else { 0x86dd }),
                LOAD_WORD => load(at, 4),
                LOAD_HALF => load(at, 2),
                LOAD_BYTE => load(at, 1),
                LOAD_HALF_INDEXED => load(at + x as usize, 2),
                _ => Some(a),
            };
            // A load beyond the end ends the program with 0, which lets the packet pass.
            let Some(loaded) = loaded else { return 0 };
            a = loaded;
            let outcome = match code {
                LOAD_HEADER_LEN => {
                    x = 4 * (load(at, 1).unwrap() & 0xf);
                    continue;
                }
                LOAD_INDEX => {
                    x = k;
                    continue;
                }
                AND => {
                    a &= k;
                    continue;
                }
                JUMP => {
                    pc += k as usize;
                    continue;
                }
                RETURN => return k,
                IF_EQUAL => a == k,
                IF_GREATER => a > k,
                IF_AT_LEAST => a >= k,
                _ => continue,
            };
            pc += usize::from(if outcome { if_true } else { if_false });
        }
    }

    fn packet(from: &str, to: &str, number: u8, source_port: u16, destination_port: u16) -> Vec<u8> {
        let mut packet = match (from.parse().unwrap(), to.parse().unwrap()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let mut packet = vec![0x45, 0, 0, 28, 0, 0, 0, 0, 64, number, 0, 0];
                packet.extend(from.octets());
                packet.extend(to.octets());
                packet
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                let mut packet = vec![0x60, 0, 0, 0, 0, 8, number, 64];
                packet.extend(from.octets());
                packet.extend(to.octets());
                packet
            }
            _ => unreachable!(),
        };
        packet.extend(source_port.to_be_bytes());
        packet.extend(destination_port.to_be_bytes());
        packet.extend([0; 4]);
        packet
    }

    fn policies(text: &str) -> Vec<PolicyConfig> {
        #[derive(serde::Deserialize)]
        struct File {
            policy: Vec<PolicyConfig>,
        }
        toml::from_str::<File>(text).unwrap().policy
    }

    #[test]
    fn what_a_policy_protects_does_not_get_in_clear() {
        let policies = policies(
            "[[policy]]\npeer = \"10.9.0.5\"\nprotocol = \"tcp\"\nports = \"80-90\"\nlocal_ports = 1024\naction = \"bypass\"\n\
             [[policy]]\npeer = \"10.9.0.0/16\"\naction = \"protect\"\n\
             [[policy]]\npeer = \"2001:db8:9::/47\"\nprotocol = \"udp\"\naction = \"discard\"\n",
        );
        let addresses = ["10.1.0.2", "2001:db8:1::2"].map(|address| address.parse().unwrap());
        let program = Program::of(&policies, &addresses).assemble();
        for (from, to, number, source, destination, expected) in [
            ("10.9.0.5", "10.1.0.2", 1, 0x0800, 0, DROP),
            ("10.9.255.255", "10.1.0.2", 6, 80, 1024, DROP),
            ("10.8.255.255", "10.1.0.2", 6, 80, 1024, PASS),
            ("10.9.0.5", "10.1.0.3", 6, 80, 1024, PASS),
            // Protected packets, and the messages that lead to them.
            ("10.9.0.5", "10.1.0.2", 50, 1, 2, PASS),
            ("10.9.0.5", "10.1.0.2", 51, 1, 2, PASS),
            ("10.9.0.5", "10.1.0.2", 17, 9, 500, PASS),
            ("10.9.0.5", "10.1.0.2", 17, 9, 4500, PASS),
            ("10.9.0.5", "10.1.0.2", 17, 500, 501, DROP),
            // The first entry bypasses.
            ("10.9.0.5", "10.1.0.2", 6, 80, 1024, PASS),
            ("10.9.0.5", "10.1.0.2", 6, 90, 1024, PASS),
            ("10.9.0.5", "10.1.0.2", 6, 91, 1024, DROP),
            ("10.9.0.5", "10.1.0.2", 6, 79, 1024, DROP),
            ("10.9.0.5", "10.1.0.2", 6, 80, 1025, DROP),
            ("10.9.0.5", "10.1.0.2", 17, 80, 1024, DROP),
            ("2001:db8:9::1", "2001:db8:1::2", 17, 1, 2, DROP),
            ("2001:db8:8::1", "2001:db8:1::2", 17, 1, 2, DROP),
            ("2001:db8:a::1", "2001:db8:1::2", 17, 1, 2, PASS),
            ("2001:db8:9::1", "2001:db8:1::2", 6, 1, 2, PASS),
            ("2001:db8:9::1", "2001:db8:1::2", 17, 1, 500, PASS),
            ("2001:db8:9::1", "2001:db8:1::2", 50, 1, 2, PASS),
        ] {
            let packet = packet(from, to, number, source, destination);
            assert_eq!(
                run(&program, &packet),
                expected,
                "{from} {to} {number} {source} {destination}"
            );
        }
        let mut later = packet("10.9.0.5", "10.1.0.2", 17, 1, 2);
        later[7] = 1;
        assert_eq!(run(&program, &later), PASS, "a later fragment");
        // The longest option list.
        let mut options = packet("10.9.0.5", "10.1.0.2", 17, 0, 0);
        options[0] = 0x4f;
        options.truncate(20);
        options.extend([1; 40]);
        options.extend([
            0,
            9,
            4500u16.to_be_bytes()[0],
            4500u16.to_be_bytes()[1],
            0,
            0,
            0,
            0,
        ]);
        assert_eq!(run(&program, &options), PASS, "ports are behind the options");
    }
}
