//! `cargo xtask test` and `cargo xtask ci`: everything that can be shown on one machine.

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::sh::{Cmd, is_root, which};
use crate::ui::Step;
use crate::{check, ebpf, setup};

/// Options of `cargo xtask test`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Args {
    /// Only tests whose name contains this.
    pub filter: Option<String>,
    /// Leave out everything that needs root (namespaces, XDP, strongSwan).
    #[arg(long)]
    pub no_root: bool,
    /// The tests that take minutes each, which are left out otherwise (their names begin with `long_`).
    #[arg(long, conflicts_with = "no_root")]
    pub long: bool,
}

/// Runs all tests. An error when one fails.
pub fn run(root: &Path, args: &Args) -> Result<()> {
    if !args.no_root {
        if !is_root() {
            bail!(
                "the tests use network namespaces, XDP and strongSwan: run as root, or with --no-root for the others"
            );
        }
        let missing = setup::missing(root);
        if !missing.is_empty() {
            println!("test: missing {}; running setup first", missing.join(", "));
            setup::run(root)?;
        }
        let step = Step::new("build the XDP program");
        match ebpf::build(root) {
            Ok(path) => step.done(path.strip_prefix(root).unwrap_or(&path).display().to_string()),
            Err(error) => {
                step.failed("");
                return Err(error);
            }
        }
    }
    build(root)?;
    tests(root, args)
}

fn build(root: &Path) -> Result<()> {
    let step = Step::new("build the workspace and its tests");
    let built = Cmd::line("cargo build --workspace --all-targets --locked --quiet")
        .dir(root)
        .show();
    match built {
        Ok(()) => step.done(""),
        Err(error) => {
            step.failed("");
            return Err(error);
        }
    }
    Ok(())
}

fn tests(root: &Path, args: &Args) -> Result<()> {
    let filter: Vec<&str> = args.filter.as_deref().into_iter().collect();
    let nextest = which("cargo-nextest").is_some();
    let mut cmd = Cmd::new("cargo");
    if nextest {
        cmd = cmd.args([
            "nextest",
            "run",
            "--workspace",
            "--locked",
            "--no-fail-fast",
            "--no-tests",
            "warn",
            "--profile",
            if args.long { "long" } else { "default" },
        ]);
        cmd = cmd
            .args(["--run-ignored", if args.no_root { "default" } else { "all" }])
            .args(&filter);
    } else {
        if args.long {
            bail!("the long tests need cargo-nextest: run `cargo xtask setup`");
        }
        cmd = cmd
            .args(["test", "--workspace", "--locked", "--no-fail-fast"])
            .args(&filter)
            .args(["--", "--skip", "long_"]);
        if !args.no_root {
            cmd = cmd.arg("--include-ignored");
        }
    }
    // Cargo's own variables of the run that started us would make it rebuild everything.
    let mut ok = without_cargo_variables(cmd).dir(root).status()? == 0;
    if nextest && !args.long {
        let doc = Cmd::line("cargo test --workspace --doc --locked --quiet").args(&filter);
        ok &= without_cargo_variables(doc).dir(root).status()? == 0;
    }
    if ok { Ok(()) } else { bail!("test: failed") }
}

fn without_cargo_variables(mut cmd: Cmd) -> Cmd {
    for (key, _) in std::env::vars_os() {
        if key.to_string_lossy().starts_with("CARGO_PKG_") || key == "CARGO_MANIFEST_DIR" {
            cmd = cmd.env_remove(key);
        }
    }
    cmd
}

/// `check` and `test`, with a summary. An error when either fails.
pub fn ci(root: &Path) -> Result<()> {
    let started = Instant::now();
    let mut failed = Vec::new();
    if !setup::missing(root).is_empty() {
        setup::run(root)?;
    }
    failed.extend(
        check::report(root)
            .into_iter()
            .map(|name| format!("check {name}")),
    );
    if let Err(error) = run(root, &Args::default()) {
        eprintln!("{error:#}");
        failed.push("test".to_owned());
    }
    let minutes = started.elapsed().as_secs_f32() / 60.0;
    if failed.is_empty() {
        println!("ci: everything passed in {minutes:.1} min");
        return Ok(());
    }
    bail!("ci: failed after {minutes:.1} min: {}", failed.join(", "))
}
