//! Who a node is, and how it is checked.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::Part;

/// Protocol in the TLS handshake (ALPN, RFC 7301): another version of the messages gets another name.
const PROTOCOL: &[u8] = b"towpath/3";

/// Why a node's files cannot be used, or a link was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// A file that cannot be read, or does not hold what it should.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// Certificates that do not fit together, or a failed handshake.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The network failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The other end is not who it should be.
    #[error("{0}")]
    Refused(String),
}

/// Whether `name` can be a node's: a DNS label, 1 to 63 of `a-z`, `0-9` and inner `-`.
pub fn valid_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&name.len())
        && name.chars().all(plain)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// The name of a node in its certificate.
pub(crate) fn node_dns(name: &str) -> String {
    format!("{name}.node.towpath.internal")
}

/// What a certificate has for a part its node may play.
pub(crate) fn part_dns(part: Part) -> String {
    format!("{}.role.towpath.internal", part.name())
}

/// A node's own name, key and certificate, and the authority it trusts.
#[derive(Clone)]
pub struct Identity {
    name: String,
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.name)
    }
}

impl Identity {
    /// Reads PEM files. The certificate must be `name`'s.
    ///
    /// # Errors
    /// [`ChannelError`]: which file, and what is wrong with it.
    pub fn load(
        name: &str,
        certificate: &Path,
        private_key: &Path,
        authority: &Path,
    ) -> Result<Self, ChannelError> {
        let chain = certificates(certificate)?;
        let key = PrivateKeyDer::from_pem_file(private_key).map_err(|error| bad(private_key, &error))?;
        let mut roots = RootCertStore::empty();
        for root in certificates(authority)? {
            roots.add(root).map_err(|error| bad(authority, &error))?;
        }
        let own = chain
            .first()
            .is_some_and(|certificate| certificate_names(certificate, &node_dns(name)));
        if !own {
            let reason = format!("is not the certificate of node `{name}`");
            return Err(ChannelError::File {
                path: certificate.into(),
                reason,
            });
        }
        let roots = Arc::new(roots);
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|error| bad(authority, &error))?;
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain.clone(), key.clone_key())?;
        client.alpn_protocols = vec![PROTOCOL.to_vec()];
        // Names of nodes are nobody else's business.
        client.enable_sni = false;
        client.resumption = rustls::client::Resumption::disabled();
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)?;
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        server.send_tls13_tickets = 0;
        Ok(Self {
            name: name.into(),
            client: Arc::new(client),
            server: Arc::new(server),
        })
    }

    /// The node's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The name to demand of the node called `name`.
pub(crate) fn server_name(name: &str) -> Result<ServerName<'static>, ChannelError> {
    ServerName::try_from(node_dns(name))
        .map_err(|_| ChannelError::Refused(format!("`{name}` cannot be a node's name")))
}

/// Whether the other end's certificate, verified already, is of `name` and lets it be `part`.
pub(crate) fn check_peer(
    certificates: Option<&[CertificateDer<'_>]>,
    name: &str,
    part: Part,
) -> Result<(), ChannelError> {
    let refuse = |what: String| Err(ChannelError::Refused(what));
    let Some(certificate) = certificates.and_then(<[_]>::first) else {
        return refuse("the other end has no certificate".into());
    };
    if !valid_name(name) || !certificate_names(certificate, &node_dns(name)) {
        return refuse(format!(
            "the other end's certificate is not `{}`'s",
            name.escape_debug()
        ));
    }
    if !certificate_names(certificate, &part_dns(part)) {
        return refuse(format!(
            "`{name}` may not be a {} by its certificate",
            part.name()
        ));
    }
    Ok(())
}

fn certificate_names(certificate: &CertificateDer<'_>, dns: &str) -> bool {
    let (Ok(certificate), Ok(name)) = (
        webpki::EndEntityCert::try_from(certificate),
        ServerName::try_from(dns),
    ) else {
        return false;
    };
    certificate.verify_is_valid_for_subject_name(&name).is_ok()
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ChannelError> {
    let found: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .map_err(|error| bad(path, &error))?;
    if found.is_empty() {
        return Err(bad(path, &"holds no certificate, expected PEM"));
    }
    Ok(found)
}

fn bad(path: &Path, reason: &dyn std::fmt::Display) -> ChannelError {
    ChannelError::File {
        path: path.into(),
        reason: reason.to_string(),
    }
}
