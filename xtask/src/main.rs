//! `cargo xtask`: the project's commands. `cargo xtask help` lists them.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::{bench, check, ebpf, fuzz, lab, layers, linkem, proof, pump, root, setup, sh, suite, ui};

/// Builds, runs, tests and measures Towpath.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    max_term_width = 100,
    subcommand_required = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what the other commands need (Debian packages, bpf-linker); idempotent
    Setup,
    /// Build the XDP program
    BuildEbpf,
    /// Run the main job in the lab, live; or on real network interfaces
    Run(proof::Args),
    /// The lab by itself: terminals A and B, gateway, strongSwan peer
    Lab(lab::cli::Args),
    /// Join two interfaces by an emulated link: rate, delay, loss, bursts, reordering, outages
    Linkem(linkem::Args),
    /// A NAT before one host, for the lab
    #[command(hide = true)]
    Nat(lab::nat::Args),
    /// Run every test: unit, property, XDP fixtures, namespaces with real peers (needs root)
    Test(suite::Args),
    /// What to run before committing: fmt, layers, clippy, docs, unit tests, bare-metal builds
    Check,
    /// Check the dependency rules between the crates
    Layers,
    /// Measure; prints a table and writes records
    Bench(bench::Args),
    /// Fuzz everything that reads bytes from outside (libFuzzer, ten minutes for each target)
    Fuzz(fuzz::Args),
    /// check and test, with a summary
    Ci,
    /// Bulk transfers for the lab
    #[command(hide = true, subcommand)]
    Pump(pump::Command),
}

fn main() -> ExitCode {
    // clap ends the process with status 2 and a message on a wrong command line.
    let cli = Cli::parse();
    match run(&cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(if error.is::<sh::Usage>() { 2 } else { 1 })
        }
    }
}

fn run(command: &Command) -> Result<()> {
    let root = root();
    match command {
        Command::Setup => setup::run(&root),
        Command::BuildEbpf => {
            let path = ui::step("build the XDP program", || ebpf::build(&root))?;
            println!("{}", path.display());
            Ok(())
        }
        Command::Run(args) => proof::run(&root, args),
        Command::Lab(args) => lab::cli::run(&root, args),
        Command::Linkem(args) => linkem::run(args),
        Command::Nat(args) => lab::nat::run(args),
        Command::Test(args) => suite::run(&root, args),
        Command::Check => check::run(&root),
        Command::Layers => layers::run(&root),
        Command::Bench(args) => bench::run(&root, args),
        Command::Fuzz(args) => fuzz::run(&root, args),
        Command::Ci => suite::ci(&root),
        Command::Pump(command) => pump::run(command),
    }
}
