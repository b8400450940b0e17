//! What a contributor runs before committing.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::ebpf::Compiler;
use crate::layers;
use crate::sh::{Cmd, which};
use crate::ui::Step;

/// The machine without an operating system that engines are built for.
const BARE_METAL: &str = "thumbv7em-none-eabi";

/// Engines that must do with `core` alone, without an allocator.
const CORE_ALONE: &[&str] = &["towpath-terminal-core"];

/// One check: its name and what runs it.
struct Item {
    name: &'static str,
    work: fn(&Path) -> Result<()>,
}

/// Runs every check, also after one has failed, and ends with a list of what did.
pub fn run(root: &Path) -> Result<()> {
    let failed = report(root);
    if failed.is_empty() {
        Ok(())
    } else {
        bail!("check: {} failed", failed.join(", "))
    }
}

/// Runs every check and returns the names of those that failed.
pub fn report(root: &Path) -> Vec<String> {
    let mut failed = Vec::new();
    for item in items() {
        let step = Step::new(format!("check {}", item.name));
        match (item.work)(root) {
            Ok(()) => step.done(""),
            Err(error) => {
                step.failed("");
                eprintln!("{error:#}");
                failed.push(item.name.to_owned());
            }
        }
    }
    failed
}

fn items() -> Vec<Item> {
    let item = |name, work: fn(&Path) -> Result<()>| Item { name, work };
    vec![
        item("fmt", fmt),
        item("layers", |root| {
            let found = layers::check(root)?;
            if found.is_empty() {
                Ok(())
            } else {
                bail!("{}", found.join("\n"))
            }
        }),
        item("clippy", |root| {
            needs("cargo-clippy", "clippy")?;
            cargo(root, "clippy --workspace --all-targets --locked -- -D warnings").run()
        }),
        item("docs", |root| {
            cargo(root, "doc --workspace --no-deps --locked")
                .env("RUSTDOCFLAGS", "-D warnings")
                .run()
        }),
        item("unit tests", |root| {
            cargo(root, "test --workspace --lib --bins --locked --quiet").run()
        }),
        item("fuzz corpora", |root| {
            cargo(
                root,
                "test --package towpath-tests --test corpus --locked --quiet",
            )
            .run()
        }),
        item("bare metal", bare_metal),
        // A workspace of its own, so nothing else compiles it or sees that its lock file is old.
        item("fuzz targets", |root| {
            cargo(
                root,
                "clippy --manifest-path tests/fuzz/Cargo.toml --locked -- -D warnings",
            )
            .env("CARGO_TARGET_DIR", root.join("target/fuzz/check"))
            .run()
        }),
    ]
}

fn cargo(root: &Path, line: &str) -> Cmd {
    Cmd::new("cargo").args(line.split_whitespace()).dir(root)
}

fn needs(program: &str, component: &str) -> Result<()> {
    if which(program).is_none() {
        bail!("{program} is not installed: rustup component add {component}");
    }
    Ok(())
}

fn fmt(root: &Path) -> Result<()> {
    needs("rustfmt", "rustfmt")?;
    cargo(root, "fmt --all -- --check").run()?;
    for workspace in ["dataplane-ebpf", "tests/fuzz"] {
        Cmd::new("cargo")
            .args(["fmt", "--manifest-path"])
            .arg(root.join(workspace).join("Cargo.toml"))
            .args(["--", "--check"])
            .dir(root)
            .run()?;
    }
    Ok(())
}

/// Builds every engine for a machine without an operating system.
fn bare_metal(root: &Path) -> Result<()> {
    let compiler = Compiler::find()?;
    let mut engines = engine_names(root)?;
    engines.retain(|e| !CORE_ALONE.contains(&e.as_str()));
    let build = |std: &str, packages: &[String]| {
        let mut cmd =
            source_cargo(&compiler).args(["build", "--release", "--locked", "--target", BARE_METAL]);
        cmd = cmd.arg(format!("-Zbuild-std={std}"));
        for package in packages {
            cmd = cmd.args(["-p", package]);
        }
        cmd.env("CARGO_TARGET_DIR", root.join("target/bare-metal"))
            .dir(root)
            .run()
    };
    build("core,alloc", &engines)?;
    for package in CORE_ALONE {
        build("core", &[(*package).to_owned()])?;
    }
    Ok(())
}

/// The packages under `controlplane/engines`.
fn engine_names(root: &Path) -> Result<Vec<String>> {
    let metadata = cargo_metadata::MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .no_deps()
        .exec()
        .context("cargo metadata")?;
    Ok(metadata
        .packages
        .iter()
        .filter(|p| p.manifest_path.as_str().contains("/controlplane/engines/"))
        .map(|p| p.name.to_string())
        .collect())
}

/// A `cargo` that uses `compiler` and accepts `-Z` options.
pub(crate) fn source_cargo(compiler: &Compiler) -> Cmd {
    match compiler {
        Compiler::Nightly => Cmd::line("rustup run nightly cargo").env_remove("RUSTC"),
        Compiler::Distribution(rustc) => Cmd::new("cargo").env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1"),
    }
    .env_remove("RUSTFLAGS")
    .env_remove("CARGO_ENCODED_RUSTFLAGS")
}
