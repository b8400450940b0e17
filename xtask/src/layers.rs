//! The dependency rules of the workspace, checked.
//!
//! 1. `common` depends on nothing of ours; `dataplane-ebpf` only on `common`.
//! 2. `base` depends on `common`; every other engine on `base` and `common`. Sibling engines never
//!    import each other, except that `terminal-core` may use `keyx` and `ipsec`.
//! 3. Adapters depend on `base` and `common`; never on other adapters or engines.
//! 4. Roles depend on engines and adapters, never on each other; nothing of the terminal reaches `ike`
//!    or public-key code, however indirectly.
//! 5. `unsafe` only in `dataplane-ebpf`, `adapters/afxdp`, `adapters/bpf`, one file each of `adapters/crypto`
//!    and `adapters/kernel`, and the `Pod` lines of `common`; `#![forbid(unsafe_code)]` elsewhere.
//! 6. Engines are `no_std` (that they compile without an operating system is shown by `check`).
//!
//! Dev-dependencies are exempt: a test may use what it likes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::sh::Cmd;

/// Crates that do public-key cryptography, directly or as their building block.
const PUBLIC_KEY: &[&str] = &[
    "aws-lc-fips-sys",
    "aws-lc-rs",
    "aws-lc-sys",
    "boring",
    "boring-sys",
    "crypto-bigint",
    "crypto-primes",
    "curve25519-dalek",
    "dsa",
    "ecdsa",
    "ed25519",
    "ed25519-dalek",
    "ed448-goldilocks",
    "elliptic-curve",
    "k256",
    "kem",
    "libcrux-ml-kem",
    "mbedtls",
    "ml-dsa",
    "ml-kem",
    "native-tls",
    "num-bigint",
    "num-bigint-dig",
    "openssl",
    "openssl-sys",
    "p224",
    "p256",
    "p384",
    "p521",
    "pkcs1",
    "pkcs8",
    "pqcrypto",
    "pqcrypto-mlkem",
    "primeorder",
    "ring",
    "rsa",
    "rustls",
    "rustls-webpki",
    "signature",
    "slh-dsa",
    "sm2",
    "spki",
    "x25519-dalek",
    "x448",
    "x509-cert",
];

/// Exceptions to "engines depend on `base` and `common` alone".
const ENGINE_EXCEPTIONS: &[(&str, &[&str])] =
    &[("towpath-terminal-core", &["towpath-keyx", "towpath-ipsec"])];

/// Crates of the terminal, whose whole dependency closure rule 4 judges.
const TERMINAL: &[&str] = &["towpath-terminal", "towpath-terminal-core"];

/// Folders in which `unsafe` may be written.
const UNSAFE_ALLOWED: &[&str] = &[
    "dataplane-ebpf",
    "controlplane/adapters/afxdp",
    "controlplane/adapters/bpf",
];

/// Single files in which it may be written; their crates deny it elsewhere.
const UNSAFE_FILES: &[&str] = &[
    "controlplane/adapters/crypto/src/esp/direct.rs",
    "controlplane/adapters/kernel/src/udp_encap.rs",
];

/// Where a crate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// `common`
    Common,
    /// `dataplane-ebpf`
    Dataplane,
    /// `controlplane/engines/base`
    Base,
    /// any other folder in `controlplane/engines`
    Engine,
    /// `controlplane/adapters`
    Adapter,
    /// `controlplane/roles`
    Role,
    /// The binary, `tests` and `xtask`: they may use anything.
    Top,
}

impl Layer {
    /// The layer of a crate by its folder, relative to the repository.
    pub fn of(folder: &str) -> Self {
        match folder {
            "common" => Self::Common,
            "dataplane-ebpf" => Self::Dataplane,
            "controlplane/engines/base" => Self::Base,
            _ if folder.starts_with("controlplane/engines/") => Self::Engine,
            _ if folder.starts_with("controlplane/adapters/") => Self::Adapter,
            _ if folder.starts_with("controlplane/roles/") => Self::Role,
            _ => Self::Top,
        }
    }
}

/// One crate of ours: its folder and what it depends on directly (dev-dependencies left out).
#[derive(Clone, Debug)]
pub struct Member {
    /// Folder relative to the repository, with `/`.
    pub folder: String,
    /// Names of direct normal and build dependencies.
    pub deps: BTreeSet<String>,
}

/// What the rules are judged on.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    /// Our crates by name.
    pub members: BTreeMap<String, Member>,
    /// For the terminal's crates: every crate they link, at any depth.
    pub closures: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    /// The violations of rules 1 to 4, one sentence each.
    pub fn violations(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (name, member) in &self.members {
            for dep in &member.deps {
                let Some(target) = self.members.get(dep) else {
                    continue;
                };
                if let Some(rule) = forbidden(name, Layer::of(&member.folder), dep, Layer::of(&target.folder))
                {
                    found.push(format!("{name} must not depend on {dep}: {rule}"));
                }
            }
        }
        for (name, closure) in &self.closures {
            for reached in closure {
                if reached == "towpath-ike" {
                    found.push(format!(
                        "{name} reaches towpath-ike: nothing of the terminal may (rule 4)"
                    ));
                } else if PUBLIC_KEY.contains(&reached.as_str()) {
                    found.push(format!(
                        "{name} links {reached}: no public-key code in the terminal (rule 4)"
                    ));
                }
            }
        }
        found
    }
}

/// The rule that forbids `from` to depend on `to`, if one does.
fn forbidden(from: &str, from_layer: Layer, to: &str, to_layer: Layer) -> Option<&'static str> {
    let excepted = ENGINE_EXCEPTIONS
        .iter()
        .any(|(name, may)| *name == from && may.contains(&to));
    match (from_layer, to_layer) {
        (Layer::Top, Layer::Dataplane) => Some("the XDP program is loaded, not linked"),
        (Layer::Top, _) => None,
        (Layer::Common, _) => Some("common depends on nothing of ours (rule 1)"),
        (Layer::Dataplane, Layer::Common) => None,
        (Layer::Dataplane, _) => Some("dataplane-ebpf depends only on common (rule 1)"),
        (Layer::Base, Layer::Common) => None,
        (Layer::Base, _) => Some("base depends only on common (rule 2)"),
        (Layer::Engine, Layer::Base | Layer::Common) => None,
        (Layer::Engine, Layer::Engine) if excepted => None,
        (Layer::Engine, Layer::Engine) => Some("sibling engines never import each other (rule 2)"),
        (Layer::Engine, _) => Some("engines depend only on base and common (rule 2)"),
        (Layer::Adapter, Layer::Base | Layer::Common) => None,
        (Layer::Adapter, Layer::Adapter) => Some("adapters never depend on adapters (rule 3)"),
        (Layer::Adapter, _) => Some("adapters depend only on base and common (rule 3)"),
        (Layer::Role, Layer::Role) => Some("roles never depend on each other (rule 4)"),
        (Layer::Role, Layer::Top | Layer::Dataplane) => Some("roles depend on engines and adapters (rule 4)"),
        (Layer::Role, _) => None,
    }
}

/// Checks all rules on the workspace at `root`. Returns the violations, empty when all is well.
pub fn check(root: &Path) -> Result<Vec<String>> {
    let graph = load(root)?;
    let mut found = graph.violations();
    for (name, member) in &graph.members {
        found.extend(source_violations(root, name, &member.folder)?);
    }
    Ok(found)
}

/// Prints the verdict; an error when a rule is broken.
pub fn run(root: &Path) -> Result<()> {
    let found = check(root)?;
    if found.is_empty() {
        println!("layers: all dependency rules hold");
        return Ok(());
    }
    for line in &found {
        eprintln!("layers: {line}");
    }
    bail!("{} broken dependency rule(s)", found.len())
}

fn load(root: &Path) -> Result<Graph> {
    let mut graph = Graph::default();
    let mut manifests = vec![root.join("Cargo.toml")];
    manifests.push(root.join("dataplane-ebpf/Cargo.toml"));
    for manifest in manifests.iter().filter(|m| m.exists()) {
        let metadata = cargo_metadata::MetadataCommand::new()
            .manifest_path(manifest)
            .no_deps()
            .exec()
            .with_context(|| format!("cargo metadata for {}", manifest.display()))?;
        for package in metadata.packages {
            let folder = package
                .manifest_path
                .parent()
                .map(|p| p.as_std_path().to_owned())
                .unwrap_or_default();
            let folder = folder
                .strip_prefix(root)
                .unwrap_or(&folder)
                .to_string_lossy()
                .into_owned();
            let deps = package
                .dependencies
                .iter()
                .filter(|d| d.kind != cargo_metadata::DependencyKind::Development)
                .map(|d| d.name.clone())
                .collect();
            graph
                .members
                .insert(package.name.to_string(), Member { folder, deps });
        }
    }
    for name in TERMINAL.iter().filter(|n| graph.members.contains_key(**n)) {
        graph.closures.insert((*name).to_owned(), closure(root, name)?);
    }
    Ok(graph)
}

/// Every crate that `package` links on any target, by cargo's own resolution of its features alone.
fn closure(root: &Path, package: &str) -> Result<BTreeSet<String>> {
    let tree = Cmd::new("cargo")
        .args([
            "tree",
            "--locked",
            "-p",
            package,
            "-e",
            "normal,build",
            "--target",
            "all",
            "--prefix",
            "none",
        ])
        .args(["--format", "{p}"])
        .dir(root)
        .read()?;
    Ok(tree
        .lines()
        .filter_map(|l| l.split_whitespace().next())
        .map(str::to_owned)
        .collect())
}

/// Rules 5 and 6, on the source text.
fn source_violations(root: &Path, name: &str, folder: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let may_be_unsafe = UNSAFE_ALLOWED.contains(&folder);
    let crate_roots: Vec<PathBuf> = ["src/lib.rs", "src/main.rs"]
        .iter()
        .map(|f| root.join(folder).join(f))
        .filter(|p| p.exists())
        .collect();
    for file in &crate_roots {
        let text = std::fs::read_to_string(file)?;
        let shown = file.strip_prefix(root).unwrap_or(file).display();
        let denies = UNSAFE_FILES.iter().any(|file| file.starts_with(folder))
            && text.lines().any(|l| l.starts_with("#![deny(unsafe_code)]"));
        if !may_be_unsafe
            && Layer::of(folder) != Layer::Common
            && !denies
            && !has_line(&text, "#![forbid(unsafe_code)]")
        {
            found.push(format!("{shown} lacks #![forbid(unsafe_code)] (rule 5)"));
        }
        let bare = matches!(
            Layer::of(folder),
            Layer::Common | Layer::Base | Layer::Engine | Layer::Dataplane
        );
        let no_std = text.lines().any(|l| {
            let l = l.trim();
            l == "#![no_std]" || l.starts_with("#![cfg_attr(not(test), no_std)]")
        });
        if bare && !no_std {
            found.push(format!("{shown} lacks #![no_std] (rule 6)"));
        }
    }
    if !may_be_unsafe {
        for file in rust_files(&root.join(folder).join("src"))? {
            if UNSAFE_FILES.iter().any(|allowed| file == root.join(allowed)) {
                continue;
            }
            let text = std::fs::read_to_string(&file)?;
            for (number, line) in unsafe_lines(&text) {
                let pod = Layer::of(folder) == Layer::Common
                    && line.contains("unsafe impl")
                    && line.contains("Pod");
                if !pod {
                    let shown = file.strip_prefix(root).unwrap_or(&file).display();
                    found.push(format!(
                        "{shown}:{number} writes `unsafe`, which {name} may not (rule 5)"
                    ));
                }
            }
        }
    }
    Ok(found)
}

fn has_line(text: &str, wanted: &str) -> bool {
    text.lines().any(|l| l.trim() == wanted)
}

/// Lines on which the keyword opens a block, a function, an impl or a trait.
fn unsafe_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    const OPENERS: [&str; 6] = [
        "unsafe {",
        "unsafe fn",
        "unsafe impl",
        "unsafe trait",
        "unsafe extern",
        "#[unsafe(",
    ];
    text.lines().enumerate().filter_map(|(i, line)| {
        let code = line.trim_start();
        let quoted = code.starts_with("//") || code.starts_with('"') || code.starts_with('[');
        (!quoted
            && OPENERS
                .iter()
                .any(|o| code.starts_with(o) || code.contains(&format!(" {o}"))))
        .then_some((i + 1, line))
    })
}

fn rust_files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let Ok(entries) = std::fs::read_dir(dir) else {
        return Ok(files);
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(crates: &[(&str, &str, &[&str])]) -> Graph {
        let members = crates
            .iter()
            .map(|(name, folder, deps)| {
                let deps = deps.iter().map(|d| (*d).to_owned()).collect();
                (
                    (*name).to_owned(),
                    Member {
                        folder: (*folder).to_owned(),
                        deps,
                    },
                )
            })
            .collect();
        Graph {
            members,
            closures: BTreeMap::new(),
        }
    }

    const GOOD: &[(&str, &str, &[&str])] = &[
        ("towpath-common", "common", &["zerocopy"]),
        (
            "towpath-dataplane",
            "dataplane-ebpf",
            &["towpath-common", "aya-ebpf"],
        ),
        ("towpath-base", "controlplane/engines/base", &["towpath-common"]),
        (
            "towpath-ike",
            "controlplane/engines/ike",
            &["towpath-base", "towpath-common"],
        ),
        ("towpath-keyx", "controlplane/engines/keyx", &["towpath-base"]),
        ("towpath-ipsec", "controlplane/engines/ipsec", &["towpath-base"]),
        (
            "towpath-terminal-core",
            "controlplane/engines/terminal-core",
            &["towpath-keyx", "towpath-ipsec"],
        ),
        (
            "towpath-bpf",
            "controlplane/adapters/bpf",
            &["towpath-common", "aya"],
        ),
        ("towpath-store", "controlplane/adapters/store", &["towpath-base"]),
        (
            "towpath-gateway",
            "controlplane/roles/gateway",
            &["towpath-ipsec", "towpath-bpf"],
        ),
        (
            "towpath-keyserver",
            "controlplane/roles/keyserver",
            &["towpath-ike"],
        ),
        (
            "towpath-terminal",
            "controlplane/roles/terminal",
            &["towpath-terminal-core"],
        ),
        (
            "towpath",
            "controlplane/towpath",
            &["towpath-gateway", "towpath-keyserver", "towpath-terminal"],
        ),
    ];

    fn with(name: &str, extra: &str) -> Vec<String> {
        let mut graph = graph(GOOD);
        graph
            .members
            .get_mut(name)
            .expect("a crate of the good graph")
            .deps
            .insert(extra.to_owned());
        graph.violations()
    }

    #[test]
    fn the_intended_shape_breaks_no_rule() {
        assert_eq!(graph(GOOD).violations(), Vec::<String>::new());
    }

    #[test]
    fn each_rule_can_fail() {
        for (from, to, rule) in [
            ("towpath-common", "towpath-base", "rule 1"),
            ("towpath-dataplane", "towpath-base", "rule 1"),
            ("towpath-base", "towpath-keyx", "rule 2"),
            ("towpath-ike", "towpath-keyx", "rule 2"),
            ("towpath-keyx", "towpath-ipsec", "rule 2"),
            ("towpath-terminal-core", "towpath-ike", "rule 2"),
            ("towpath-ipsec", "towpath-bpf", "rule 2"),
            ("towpath-store", "towpath-bpf", "rule 3"),
            ("towpath-store", "towpath-ipsec", "rule 3"),
            ("towpath-gateway", "towpath-keyserver", "rule 4"),
            ("towpath-terminal", "towpath-gateway", "rule 4"),
        ] {
            let found = with(from, to);
            assert_eq!(found.len(), 1, "{from} -> {to}: {found:?}");
            assert!(
                found[0].contains(rule) && found[0].contains(from) && found[0].contains(to),
                "{found:?}"
            );
        }
    }

    #[test]
    fn the_terminal_may_not_reach_ike_or_public_key_code_at_any_depth() {
        let mut graph = graph(GOOD);
        let closure = ["towpath-terminal", "towpath-keyx", "aes-gcm", "subtle"];
        graph.closures.insert(
            "towpath-terminal".into(),
            closure.iter().map(|s| (*s).to_owned()).collect(),
        );
        assert!(graph.violations().is_empty());
        for bad in [
            "towpath-ike",
            "x25519-dalek",
            "aws-lc-rs",
            "p256",
            "rsa",
            "ml-kem",
            "crypto-bigint",
        ] {
            let mut graph = graph.clone();
            graph
                .closures
                .get_mut("towpath-terminal")
                .expect("inserted above")
                .insert(bad.into());
            let found = graph.violations();
            assert!(found.len() == 1 && found[0].contains(bad), "{found:?}");
        }
    }

    #[test]
    fn written_unsafe_is_found_and_prose_about_it_is_not() {
        let text =
            "// unsafe { in prose }\nlet x = unsafe { y };\nunsafe impl Pod for A {}\nlet unsafely = 1;\n";
        let lines: Vec<usize> = unsafe_lines(text).map(|(n, _)| n).collect();
        assert_eq!(lines, [2, 3]);
    }

    #[test]
    fn this_repository_keeps_its_rules() {
        let found = check(&crate::root()).expect("cargo metadata runs");
        assert!(found.is_empty(), "{found:#?}");
    }
}
