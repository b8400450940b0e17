//! Installs what the other commands need, on a fresh Debian, and says what it did.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::ebpf::Compiler;
use crate::sh::{Cmd, is_root, which};
use crate::ui::step;

/// The version of bpf-linker that goes with LLVM 22.
const BPF_LINKER: &str = "0.13.0";

/// Packages for building the XDP program with bpf-linker.
const BUILD: &[&str] = &[
    "gcc",
    "g++",
    "libc6-dev",
    "llvm-22-dev",
    "libpolly-22-dev",
    "zlib1g-dev",
    "libzstd-dev",
];

/// The distribution's compiler and its sources, where rustup has no nightly with `rust-src`.
const DISTRIBUTION_RUST: &[&str] = &["rustc-web", "rust-web-src"];

/// Packages of the lab: namespaces, a real kernel as a process, strongSwan, tools to look at packets.
const LAB: &[&str] = &[
    "iproute2",
    "util-linux",
    "procps",
    "ethtool",
    "iputils-ping",
    "tcpdump",
    "tcpreplay",
    "tshark",
    "kmod",
    "busybox-static",
    "user-mode-linux",
    "strongswan-swanctl",
    "charon-systemd",
    "libcharon-extra-plugins",
    "libstrongswan-extra-plugins",
    "libstrongswan-standard-plugins",
    // Programs that are run through the relay; dropbear-bin starts no server on the machine itself.
    "curl",
    "dropbear-bin",
    "iperf3",
    "openssh-client",
];

/// Packages of the benchmarks.
const BENCH: &[&str] = &["valgrind", "binutils-arm-none-eabi", "openssl"];

/// Where bpf-linker is: the repository's own tools first, then PATH.
pub fn bpf_linker(root: &Path) -> Option<PathBuf> {
    let own = root.join(".tools/bin/bpf-linker");
    if own.is_file() {
        Some(own)
    } else {
        which("bpf-linker")
    }
}

fn debian_packages() -> Vec<&'static str> {
    let mut wanted = [BUILD, LAB, BENCH].concat();
    if !matches!(Compiler::find(), Ok(Compiler::Nightly)) {
        wanted.extend(DISTRIBUTION_RUST);
    }
    wanted
}

fn installed(package: &str) -> bool {
    Cmd::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status}", package])
        .output()
        .is_ok_and(|out| out.ok() && out.stdout.trim() == "installed")
}

/// What is missing on this machine, as short names. Empty: everything is there.
pub fn missing(root: &Path) -> Vec<String> {
    let mut missing: Vec<String> = debian_packages()
        .into_iter()
        .filter(|p| !installed(p))
        .map(|p| format!("package {p}"))
        .collect();
    if bpf_linker(root).is_none() {
        missing.push(format!("bpf-linker {BPF_LINKER}"));
    }
    missing
}

/// Installs what is missing. Running it again does nothing and says so.
pub fn run(root: &Path) -> Result<()> {
    packages()?;
    linker(root)?;
    let compiler = match Compiler::find()? {
        Compiler::Nightly => "rustup's nightly with rust-src",
        Compiler::Distribution(_) => "the distribution's rustc and sources",
    };
    println!("setup: the XDP program and bare-metal builds use {compiler}");
    for (tool, why) in [("cargo-clippy", "check"), ("rustfmt", "check")] {
        if which(tool).is_none() {
            println!(
                "setup: {tool} is not there; `cargo xtask {why}` needs it (rustup component add clippy rustfmt)"
            );
        }
    }
    if which("cargo-nextest").is_none() {
        println!("setup: cargo-nextest is not there; `cargo xtask test` uses cargo test instead");
    }
    println!("setup: done");
    Ok(())
}

fn packages() -> Result<()> {
    if which("apt-get").is_none() {
        bail!(
            "no apt-get here: install by hand what corresponds to {}",
            debian_packages().join(" ")
        );
    }
    let wanted: Vec<&str> = debian_packages().into_iter().filter(|p| !installed(p)).collect();
    if wanted.is_empty() {
        println!("setup: all packages are there");
        return Ok(());
    }
    if !is_root() {
        bail!(
            "these packages are missing, and installing them needs root:\n  apt-get install {}",
            wanted.join(" ")
        );
    }
    let brings_daemon = wanted.contains(&"charon-systemd");
    let apt = || Cmd::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive");
    step("apt-get update", || apt().args(["update", "-q"]).run())?;
    step(&format!("apt-get install {}", wanted.join(" ")), || {
        apt()
            .args(["install", "-q", "-y", "--no-install-recommends"])
            .args(&wanted)
            .run()
    })?;
    if brings_daemon && Path::new("/run/systemd/system").is_dir() {
        // The package starts a daemon for the machine itself; the lab runs its own.
        let _ = Cmd::line("systemctl disable --now strongswan.service").run();
        println!(
            "setup: the machine's own strongswan.service, which the package had started, is disabled again"
        );
    }
    println!("setup: installed {}", wanted.join(" "));
    Ok(())
}

fn linker(root: &Path) -> Result<()> {
    if let Some(path) = bpf_linker(root) {
        println!(
            "setup: bpf-linker is there ({})",
            path.strip_prefix(root).unwrap_or(&path).display()
        );
        return Ok(());
    }
    step(
        &format!("building bpf-linker {BPF_LINKER} (about a minute)"),
        || {
            Cmd::new("cargo")
                .args([
                    "install",
                    "bpf-linker",
                    "--version",
                    BPF_LINKER,
                    "--locked",
                    "--no-default-features",
                ])
                .args(["--features", "llvm-22", "--root"])
                .arg(root.join(".tools"))
                .env("LLVM_SYS_221_PREFIX", "/usr/lib/llvm-22")
                .env("LLVM_PREFIX", "/usr/lib/llvm-22")
                .dir("/")
                .run()
                .context("bpf-linker did not build")
        },
    )?;
    println!("setup: installed bpf-linker {BPF_LINKER} into .tools");
    Ok(())
}
