//! `cargo xtask bench terminal`: what the terminal costs.
//!
//! * `terminal.instructions_vs_ike`: instructions one SA set-up takes the terminal, by IKE of its own ÷ by proxy.
//!   Callgrind counts the terminal's side alone, in the two programs of `tests/cost`.
//! * `terminal.text_bytes`, `terminal.ram_bytes`: the core linked for a microcontroller (`tests/firmware`).
//!
//! Instructions and sizes do not vary from run to run: one round each.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Args, Better, Record};
use crate::check::source_cargo;
use crate::ebpf::Compiler;
use crate::sh::{Cmd, which};
use crate::ui;

/// SAs each program of `tests/cost` sets up: `towpath_cost::ROUNDS`.
const ROUNDS: f64 = 20.0;

/// What IKE is measured with, cryptography and proposal. The first makes the figure: the proposal the configuration
/// recommends, on the libraries the terminal core is built with.
const ARMS: &[[&str; 2]] = &[
    ["portable", "aes256gcm16-prfsha256-x25519"],
    ["aws-lc", "aes256gcm16-prfsha256-x25519"],
    ["aws-lc", "aes256-sha256-ecp256"],
    ["aws-lc", "aes128-sha256-modp2048"],
];

/// The microcontroller: a Cortex-M4 or M7 without floating point.
const TARGET: &str = "thumbv7em-none-eabi";

/// Measures and returns the records.
pub(super) fn run(root: &Path, _args: &Args) -> Result<Vec<Record>> {
    let mut records = vec![instructions(root)?];
    records.extend(footprint(root)?);
    Ok(records)
}

// -- instructions -------------------------------------------------------------------------------------------

fn instructions(root: &Path) -> Result<Record> {
    if which("valgrind").is_none() {
        bail!("valgrind is not installed (`cargo xtask setup` installs it)");
    }
    let programs = ui::step("building the terminal with IKE and the one without", || {
        build_programs(root)
    })?;
    let program = |name| programs.join(name);
    let by_proxy = ui::step("counting instructions of one SA set-up by proxy", || {
        collected(&program("by_proxy"), &[])
    })?;
    let mut by_ike = Vec::new();
    for arm in ARMS {
        let title = format!(
            "counting instructions of one SA set-up by IKE, {}",
            arm.join(", ")
        );
        by_ike.push((arm, ui::step(&title, || collected(&program("by_ike"), arm))?));
    }
    let ([_, default], first) = *by_ike.first().context("there is an arm to measure")?;
    let mut record = Record::new(
        "terminal.instructions_vs_ike",
        "ratio",
        Better::Higher,
        &[first / by_proxy],
    )
    .goal(100.0)
    .arm("by proxy", format!("{by_proxy:.0} instructions"))
    .condition("esp", "aes256gcm16")
    .condition("proposal", *default)
    .condition(
        "cryptography",
        "portable Rust with AES instructions on both sides; aws-lc arms: the keyserver's assembly",
    )
    .condition("registration", "once per terminal, not counted");
    for ([provider, proposal], count) in by_ike {
        record = record.arm(
            &format!("IKE {proposal}, {provider}"),
            format!("{count:.0} instructions, {:.0} times", count / by_proxy),
        );
    }
    Ok(record)
}

/// Builds `tests/cost`; returns the folder of the programs.
fn build_programs(root: &Path) -> Result<PathBuf> {
    let folder = root.join("target/cost");
    Cmd::line("cargo build --release --locked --package towpath-cost --no-default-features")
        .env("CARGO_TARGET_DIR", &folder)
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .dir(root)
        .run()?;
    Ok(folder.join("release"))
}

/// Instructions of one set-up on the terminal's side.
fn collected(program: &Path, arguments: &[&str]) -> Result<f64> {
    let output = Cmd::new("valgrind")
        .args([
            "--tool=callgrind",
            "--callgrind-out-file=/dev/null",
            "--toggle-collect=*on_the_terminal*",
        ])
        .arg(program)
        .args(arguments)
        .output()?;
    if !output.ok() {
        bail!("{} under callgrind failed:\n{}", program.display(), output.all());
    }
    let total = output
        .all()
        .lines()
        .find_map(|line| line.split_once("Collected :")?.1.trim().parse::<f64>().ok());
    Ok(total.context("callgrind says how much it collected")? / ROUNDS)
}

// -- footprint ----------------------------------------------------------------------------------------------

fn footprint(root: &Path) -> Result<Vec<Record>> {
    for tool in ["arm-none-eabi-ld", "arm-none-eabi-size"] {
        if which(tool).is_none() {
            bail!("{tool} is not installed (`cargo xtask setup` installs binutils-arm-none-eabi)");
        }
    }
    let image = ui::step("linking the terminal core for a microcontroller", || link(root))?;
    let sizes = sections(&image)?;
    let of = |names: &[&str]| -> f64 {
        sizes
            .iter()
            .filter(|(name, _)| names.contains(&name.as_str()))
            .map(|(_, size)| size)
            .sum()
    };
    let describe = |record: Record| {
        record
            .condition("target", TARGET)
            .condition(
                "optimisation",
                "opt-level s, fat LTO, sections collected, compact AES and SHA-2",
            )
            .condition(
                "capacity",
                "4 policies, 2 SA pairs, 2 KiB of held packets, one 2 KiB packet buffer",
            )
    };
    let text = Record::new("terminal.text_bytes", "bytes", Better::Lower, &[of(&[".text"])])
        .arm(
            "text",
            format!(
                "core, sealed protocol, ESP, all four suites: {} bytes",
                of(&[".text"])
            ),
        )
        .arm("rodata", format!("{} bytes", of(&[".rodata", ".ARM.exidx"])));
    let ram = Record::new(
        "terminal.ram_bytes",
        "bytes",
        Better::Lower,
        &[of(&[".data", ".bss"])],
    )
    .arm(
        "static",
        format!("core and packet buffer: {} bytes", of(&[".data", ".bss"])),
    )
    .condition("stack", "not included");
    Ok(vec![describe(text), describe(ram)])
}

/// Links `tests/firmware`; returns the image.
fn link(root: &Path) -> Result<PathBuf> {
    let folder = root.join("target/firmware");
    let flags = "-C linker=arm-none-eabi-ld -C linker-flavor=ld -C link-arg=-emain -C link-arg=--gc-sections \
                 --cfg aes_backend_soft=\"compact\" --cfg sha2_backend_soft=\"compact\"";
    source_cargo(&Compiler::find()?)
        .args([
            "build",
            "--release",
            "--locked",
            "-Zbuild-std=core",
            "--target",
            TARGET,
        ])
        .args(["--package", "towpath-firmware"])
        .env("CARGO_TARGET_DIR", &folder)
        .env("RUSTFLAGS", flags)
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "s")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "false")
        .dir(root)
        .run()?;
    Ok(folder.join(TARGET).join("release/towpath-firmware"))
}

/// Name and size of every section.
fn sections(image: &Path) -> Result<Vec<(String, f64)>> {
    let listing = Cmd::new("arm-none-eabi-size").arg("-A").arg(image).read()?;
    Ok(parse_sections(&listing))
}

fn parse_sections(listing: &str) -> Vec<(String, f64)> {
    let section = |line: &str| {
        let mut words = line.split_whitespace();
        let name = words.next().filter(|name| name.starts_with('.'))?;
        Some((name.to_owned(), words.next()?.parse().ok()?))
    };
    listing.lines().filter_map(section).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_read_from_the_listing() {
        let listing =
            "image  :\nsection   size    addr\n.text   84178  131816\n.bss    13824  281530\nTotal   98647\n";
        assert_eq!(
            parse_sections(listing),
            [(".text".to_owned(), 84178.0), (".bss".to_owned(), 13824.0)]
        );
    }
}
