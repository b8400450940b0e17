//! Certificates in the lab: who is given which, and in what form.

use std::fs;
use std::path::Path;

use rcgen::SanType;
use serde_json::{Value, json};
use towpath_crypto::x509::pem;
use towpath_tests::pki::{Ca, Kind, below, leaf, root};

/// A certificate with its key, and what stands between it and the root, from below.
pub(crate) struct Proof {
    own: Vec<u8>,
    key: Vec<u8>,
    between: Vec<Vec<u8>>,
}

/// An authority, and who stands below it.
pub(crate) struct Credential {
    root: Vec<u8>,
    terminal: Proof,
    peer: Proof,
}

fn certificate(der: &[u8]) -> String {
    pem::encode("CERTIFICATE", der).to_string()
}

/// A name of this kind that a certificate is for.
pub(crate) fn name(identity: &str) -> SanType {
    let text = || identity.try_into().expect("ASCII");
    match identity.parse() {
        Ok(address) => SanType::IpAddress(address),
        Err(_) if identity.contains('@') => SanType::Rfc822Name(text()),
        Err(_) => SanType::DnsName(text()),
    }
}

impl Credential {
    /// Keys of these kinds for terminal and peer, `depth` authorities between root and them, and these names.
    pub(crate) fn new(kinds: [Kind; 2], depth: usize, terminal: Vec<SanType>, peer: Vec<SanType>) -> Self {
        let kind = kinds[0];
        let mut chain: Vec<Ca> = vec![root(kind)];
        for number in 0..depth {
            let above = chain.last().expect("the root at least");
            chain.push(below(above, &format!("authority {number}"), kind));
        }
        let last = chain.last().expect("the root at least");
        let between: Vec<Vec<u8>> = chain[1..].iter().rev().map(|ca| ca.der().to_vec()).collect();
        let proof = |common_name: &str, names, kind| {
            let (own, key) = leaf(last, common_name, names, kind);
            let between = between.clone();
            Proof { own, key, between }
        };
        Self {
            root: chain[0].der().to_vec(),
            terminal: proof("terminal", terminal, kinds[0]),
            peer: proof("peer", peer, kinds[1]),
        }
    }

    /// A subscriber's `credential`: certificate and key where it is to prove itself by them, authorities where it is to
    /// believe others.
    pub(crate) fn of_subscriber(&self, proves: bool, believes: bool) -> Value {
        let mut given = json!({});
        if proves {
            let own = std::iter::once(&self.terminal.own).chain(&self.terminal.between);
            given["certificate"] = own.map(|der| certificate(der)).collect::<String>().into();
            given["key"] = pem::encode("PRIVATE KEY", &self.terminal.key).as_str().into();
        }
        if believes {
            given["authorities"] = certificate(&self.root).into();
        }
        given
    }

    /// Puts the peer's part into its charon's folder: certificate and key of this name, and the authorities.
    pub(crate) fn give_peer(&self, dir: &Path, name: &str) {
        let write = |file: String, text: &str| {
            let file = dir.join(file);
            fs::create_dir_all(file.parent().expect("a folder")).expect("a folder");
            fs::write(file, text).expect("the file is written");
        };
        write(format!("x509/{name}.pem"), &certificate(&self.peer.own));
        write(
            format!("private/{name}.pem"),
            &pem::encode("PRIVATE KEY", &self.peer.key),
        );
        write(format!("x509ca/{name}.pem"), &certificate(&self.root));
        for (number, der) in self.peer.between.iter().enumerate() {
            write(format!("x509ca/{name}-{number}.pem"), &certificate(der));
        }
    }
}

/// Takes the peer's certificates and keys away.
pub(crate) fn clear_peer(dir: &Path) {
    for folder in ["x509", "x509ca", "private"] {
        let _ = fs::remove_dir_all(dir.join(folder));
    }
}
