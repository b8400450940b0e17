//! Builds the XDP object.
//!
//! `core` has to be compiled for the BPF target, so the compiler must bring its library's sources: a rustup
//! nightly with `rust-src`, or the distribution's `rustc-web` with `rust-web-src` (a stable compiler that is
//! told to accept unstable options).

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Target of the program: little-endian BPF.
const TARGET: &str = "bpfel-unknown-none";
/// The distribution's compiler.
const DISTRIBUTION_RUSTC: &str = "/usr/bin/rustc";

/// A compiler that can build `core` for the BPF target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compiler {
    /// The rustup toolchain `nightly`.
    Nightly,
    /// The distribution's compiler at this path.
    Distribution(PathBuf),
}

impl Compiler {
    /// Finds one, preferring rustup's nightly; the error says what to install.
    pub fn find() -> Result<Self> {
        if has_sources(Command::new("rustup").args(["run", "nightly", "rustc"])) {
            return Ok(Self::Nightly);
        }
        if has_sources(&mut Command::new(DISTRIBUTION_RUSTC)) {
            return Ok(Self::Distribution(DISTRIBUTION_RUSTC.into()));
        }
        bail!(
            "no compiler for the XDP program: neither a rustup nightly with rust-src nor the distribution's \
             rustc-web with rust-web-src is installed (`cargo xtask setup` installs one)"
        )
    }
}

/// True if the compiler runs and the sources of its `core` are installed.
fn has_sources(rustc: &mut Command) -> bool {
    let Ok(output) = rustc.args(["--print", "sysroot"]).output() else {
        return false;
    };
    let sysroot = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success()
        && Path::new(&sysroot)
            .join("lib/rustlib/src/rust/library/core")
            .is_dir()
}

/// `PATH` with the project's own tools in front.
fn path_with_tools(root: &Path) -> Result<OsString> {
    let mut paths = vec![root.join(".tools/bin")];
    if let Some(path) = env::var_os("PATH") {
        paths.extend(env::split_paths(&path));
    }
    Ok(env::join_paths(paths)?)
}

/// Where the build puts the object.
pub fn object_path(root: &Path) -> PathBuf {
    root.join("dataplane-ebpf/target")
        .join(TARGET)
        .join("release/towpath-dataplane")
}

/// Where the build puts the load generator of the benchmarks.
pub fn load_object_path(root: &Path) -> PathBuf {
    object_path(root).with_file_name("towpath-load")
}

/// Builds `dataplane-ebpf` and returns the path of the object.
pub fn build(root: &Path) -> Result<PathBuf> {
    let path = path_with_tools(root)?;
    if !env::split_paths(&path).any(|folder| folder.join("bpf-linker").is_file()) {
        bail!("bpf-linker is neither on PATH nor in .tools/bin (`cargo xtask setup` builds it)");
    }
    let compiler = Compiler::find()?;
    let mut cargo = match &compiler {
        Compiler::Nightly => {
            let mut command = Command::new("rustup");
            command.args(["run", "nightly", "cargo"]);
            command
        }
        Compiler::Distribution(rustc) => {
            let mut command = Command::new("cargo");
            command.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
            command
        }
    };
    // Settings of the cargo that runs this one are meant for the host's target.
    for name in [
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET",
        "RUSTC_WRAPPER",
    ] {
        cargo.env_remove(name);
    }
    let flags = format!(
        "-C linker=bpf-linker --cfg bpf_target_arch=\"{}\" -C debuginfo=2 -C link-arg=--btf",
        env::consts::ARCH
    );
    let status = cargo
        .current_dir(root.join("dataplane-ebpf"))
        .env("PATH", &path)
        .env("RUSTFLAGS", flags)
        .args([
            "build",
            "--release",
            "--locked",
            "-Zbuild-std=core",
            "--target",
            TARGET,
        ])
        .status()
        .with_context(|| format!("cannot start cargo for {compiler:?}"))?;
    if !status.success() {
        bail!("the XDP program does not build (compiler: {compiler:?}, {status})");
    }
    let object = object_path(root);
    if !object.is_file() {
        bail!("the build left no object at {}", object.display());
    }
    Ok(object)
}
