//! Fixtures: one packet, the state it meets, and what is expected of it, one file each.
//!
//! ```text
//! # A sentence that says what this is about.
//! port: access | core | bare
//! profile: address=PREFIX handle=N to=PORT[n],... from=PORT[n],... flags=esp,ah,tcp,pairs
//! pair: terminal=ADDRESS peer=ADDRESS handle=N to=... from=... flags=...
//! gateway: address=ADDRESS port=N handle=N
//! in:
//!   HEX  ; comment
//!   HEX*COUNT
//! expect: divert KIND handle=N from=terminal|network l3=N fib=STATUS
//!       | forward | pass REASON | drop REASON
//! out:                                  (forward only: the packet as it leaves)
//!   HEX
//! ```
//!
//! A port followed by `n` has the framing of RFC 3948; 0 is an empty slot, `-` an empty list.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::{fs, iter};

use towpath_base::selector::Prefix;
use towpath_bpf::CompiledProfile;
use towpath_common::abi::{CONSULT_PAIRS, DIVERT_AH, DIVERT_ESP, DIVERT_TCP, ProfileEntry};

#[derive(Debug, Clone)]
pub(crate) struct Fixture {
    pub(crate) name: String,
    pub(crate) port: String,
    pub(crate) profiles: Vec<CompiledProfile>,
    pub(crate) packet: Vec<u8>,
    pub(crate) expect: String,
    pub(crate) out: Option<Vec<u8>>,
}

/// Every fixture, by name.
pub(crate) fn all() -> Vec<Fixture> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("xdp/fixtures");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .expect("fixtures")
        .map(|entry| entry.expect("fixture").path())
        .collect();
    paths.sort();
    paths.iter().map(|path| read(path)).collect()
}

fn read(path: &Path) -> Fixture {
    let name = path.file_stem().expect("a file").to_string_lossy().into_owned();
    let text = fs::read_to_string(path).expect("a readable fixture");
    parse(&name, &text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn parse(name: &str, text: &str) -> Result<Fixture, String> {
    let mut fixture = Fixture {
        name: name.into(),
        port: String::new(),
        profiles: Vec::new(),
        packet: Vec::new(),
        expect: String::new(),
        out: None,
    };
    let mut outgoing = false;
    for (number, line) in text.lines().enumerate() {
        let at = |error: String| format!("line {}: {error}", number + 1);
        if line.starts_with('#') || line.trim().is_empty() {
            continue;
        }
        if line.starts_with(' ') {
            let bytes = hex(line).map_err(at)?;
            let packet = if outgoing {
                fixture.out.get_or_insert_default()
            } else {
                &mut fixture.packet
            };
            packet.extend(bytes);
            continue;
        }
        let (key, value) = line.split_once(':').ok_or_else(|| at("expected `key:`".into()))?;
        let value = value.trim();
        match key {
            "port" => fixture.port = value.into(),
            "expect" => fixture.expect = value.into(),
            "in" => outgoing = false,
            "out" => outgoing = true,
            "profile" | "pair" | "gateway" => fixture.condition(key, value).map_err(at)?,
            _ => return Err(at(format!("unknown key {key}"))),
        }
    }
    if fixture.port.is_empty() || fixture.packet.is_empty() || fixture.expect.is_empty() {
        return Err("port, in and expect are required".into());
    }
    Ok(fixture)
}

impl Fixture {
    fn condition(&mut self, kind: &str, text: &str) -> Result<(), String> {
        let fields: HashMap<&str, &str> = text
            .split_whitespace()
            .filter_map(|field| field.split_once('='))
            .collect();
        let field = |name: &str| {
            fields
                .get(name)
                .copied()
                .ok_or_else(|| format!("{name} is missing"))
        };
        let handle = field("handle")?.parse().map_err(|_| "handle is not a number")?;
        let address = |name: &str| -> Result<IpAddr, String> {
            field(name)?
                .parse()
                .map_err(|_| format!("{name} is not an address"))
        };
        let profile = self.profile(handle);
        match kind {
            "gateway" => {
                let port = field("port")?.parse().map_err(|_| "port is not a number")?;
                profile.gateway.push((address("address")?, port));
            }
            "pair" => {
                let entry = entry(handle, field("to")?, field("from")?, field("flags")?)?;
                profile
                    .pairs
                    .push((address("terminal")?, address("peer")?, entry));
            }
            _ => {
                let entry = entry(handle, field("to")?, field("from")?, field("flags")?)?;
                profile.entries.push((prefix(field("address")?)?, entry));
            }
        }
        Ok(())
    }

    fn profile(&mut self, handle: u64) -> &mut CompiledProfile {
        let index = match self.profiles.iter().position(|profile| profile.handle == handle) {
            Some(index) => index,
            None => {
                self.profiles.push(CompiledProfile {
                    handle,
                    ..CompiledProfile::default()
                });
                self.profiles.len() - 1
            }
        };
        &mut self.profiles[index]
    }
}

fn prefix(text: &str) -> Result<Prefix, String> {
    if let Ok(address) = text.parse() {
        return Ok(Prefix::host(address));
    }
    text.parse().map_err(|_| format!("{text} is not a prefix"))
}

fn entry(handle: u64, to: &str, from: &str, flags: &str) -> Result<ProfileEntry, String> {
    let (to_terminal, natt_to) = ports(to)?;
    let (from_terminal, natt_from) = ports(from)?;
    let flags = flags.split(',').try_fold(0, |flags, name| match name {
        "esp" => Ok(flags | DIVERT_ESP),
        "ah" => Ok(flags | DIVERT_AH),
        "pairs" => Ok(flags | CONSULT_PAIRS),
        "tcp" => Ok(flags | DIVERT_TCP),
        "-" => Ok(flags),
        _ => Err(format!("unknown flag {name}")),
    })?;
    Ok(ProfileEntry {
        handle,
        flags,
        natt_to,
        natt_from,
        prefix_bits: 0,
        to_terminal,
        from_terminal,
    })
}

fn ports(text: &str) -> Result<([u16; 4], u8), String> {
    let (mut ports, mut natt) = ([0; 4], 0);
    for (slot, item) in text.split(',').filter(|item| *item != "-").enumerate() {
        let digits = item.trim_end_matches('n');
        natt |= u8::from(digits != item) << slot;
        *ports.get_mut(slot).ok_or("more than four ports")? =
            digits.parse().map_err(|_| format!("{item} is not a port"))?;
    }
    Ok((ports, natt))
}

fn hex(line: &str) -> Result<Vec<u8>, String> {
    let text = line.split(';').next().unwrap_or("").trim();
    let (digits, count) = match text.split_once('*') {
        Some((digits, count)) => (digits, count.parse().map_err(|_| "count is not a number")?),
        None => (text, 1),
    };
    if digits.len() % 2 != 0 {
        return Err("half a byte".into());
    }
    let bytes: Result<Vec<u8>, _> = (0..digits.len() / 2)
        .map(|at| u8::from_str_radix(&digits[at * 2..at * 2 + 2], 16))
        .collect();
    let bytes = bytes.map_err(|_| format!("{digits} is not hexadecimal"))?;
    Ok(iter::repeat_n(bytes, count).flatten().collect())
}

#[test]
fn every_fixture_reads_and_the_expectations_cover_every_drop_the_program_can_cause() {
    let fixtures = all();
    for reason in [
        "truncated",
        "bad_ip_header",
        "too_many_extensions",
        "ttl_expired",
        "no_user_space",
    ] {
        let expected = format!("drop {reason}");
        assert!(
            fixtures.iter().any(|fixture| fixture.expect == expected),
            "no fixture for {expected}"
        );
    }
    for kind in towpath_common::counter::DivertKind::ALL {
        let expected = format!("divert {} ", kind.name());
        assert!(
            fixtures
                .iter()
                .any(|fixture| fixture.expect.starts_with(&expected)),
            "no {expected}"
        );
    }
}

#[test]
fn a_fixture_that_makes_no_sense_is_refused_with_its_line() {
    assert_eq!(
        parse("x", "port: access\nin:\n  0g\n").unwrap_err(),
        "line 3: 0g is not hexadecimal"
    );
    assert_eq!(
        parse("x", "colour: blue\n").unwrap_err(),
        "line 1: unknown key colour"
    );
    assert!(parse("x", "port: access\n").unwrap_err().contains("required"));
}
