//! `towpath node`: the authority of a network whose roles run on several machines, and its nodes' certificates.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use towpath_channel::{Authority, Part};

use crate::cli::Common;
use crate::failure::{Failure, Outcome};
use crate::output;

/// `towpath node`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make the network's authority, once: authority.pem, which every node gets, and authority.key
    ///
    /// Whoever has authority.key can be any node of the network. It is needed for `towpath node certificate` alone:
    /// keep it off the machines that run roles.
    Authority {
        /// Where the files go
        #[arg(long, value_name = "DIRECTORY", default_value = ".")]
        directory: PathBuf,
    },
    /// Make a node's NAME.pem and NAME.key
    Certificate {
        /// The node's name, as other nodes' configurations have it
        #[arg(value_name = "NAME")]
        name: String,
        /// What it may be
        #[arg(long = "role", value_name = "ROLE", required = true, value_delimiter = ',')]
        roles: Vec<NodeRole>,
        /// Where the authority's files are, and the node's go
        #[arg(long, value_name = "DIRECTORY", default_value = ".")]
        directory: PathBuf,
    },
}

/// What a node may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum NodeRole {
    /// Classifies, relays, protects packets
    Gateway,
    /// Speaks IKEv2 for the terminals
    Keyserver,
    /// Authenticates terminals, owns profiles
    Registry,
}

impl From<NodeRole> for Part {
    fn from(role: NodeRole) -> Self {
        match role {
            NodeRole::Gateway => Self::Gateway,
            NodeRole::Keyserver => Self::Keyserver,
            NodeRole::Registry => Self::Registry,
        }
    }
}

/// Makes what is asked for; existing files are not touched.
pub(crate) fn run(common: &Common, command: &Command) -> Outcome {
    let written = match command {
        Command::Authority { directory } => authority(directory)?,
        Command::Certificate {
            name,
            roles,
            directory,
        } => certificate(name, roles, directory)?,
    };
    if common.json {
        return output::json(&written);
    }
    let lines: String = written
        .iter()
        .map(|path| format!("{}: written\n", path.display()))
        .collect();
    output::print(&lines)
}

fn authority(directory: &Path) -> Outcome<Vec<PathBuf>> {
    let authority = Authority::create().map_err(Failure::runtime)?;
    let files = ["authority.key", "authority.pem"].map(|file| directory.join(file));
    let [key, certificate] = &files;
    write(key, &authority.private_key(), 0o600)?;
    write(certificate, authority.certificate(), 0o644)?;
    Ok(files.to_vec())
}

fn certificate(name: &str, roles: &[NodeRole], directory: &Path) -> Outcome<Vec<PathBuf>> {
    let read = |file: &str| {
        let path = directory.join(file);
        std::fs::read_to_string(&path)
            .map(zeroize::Zeroizing::new)
            .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
    };
    let own = read("authority.pem")?;
    let authority = Authority::load(own.to_string(), &read("authority.key")?).map_err(Failure::usage)?;
    let parts: Vec<Part> = roles.iter().map(|role| Part::from(*role)).collect();
    let issued = authority.issue(name, &parts).map_err(Failure::usage)?;
    let files = [format!("{name}.key"), format!("{name}.pem")].map(|file| directory.join(file));
    let [key, certificate] = &files;
    write(key, &issued.private_key, 0o600)?;
    write(certificate, &issued.certificate, 0o644)?;
    Ok(files.to_vec())
}

fn write(path: &Path, text: &str, mode: u32) -> Outcome {
    let fail = |error: std::io::Error| Failure::usage(format!("{}: {error}", path.display()));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(fail)?;
    file.write_all(text.as_bytes()).map_err(fail)
}
