//! What the admin socket is told about IKE SAs, and asked to do with them.

use towpath_base::crypto::{Integrity, SkCipher, SkKeys};
use towpath_base::{Instant, Spi};
use towpath_ike::{IkeSaId, IkeSaInfo, IkeSaKeys, Role};
use towpath_telemetry::admin::{AdminError, ErrorKind, IkeChild, IkeInfo, IkeRequest, Reply};

use super::roles::Roles;

type Answer = Result<Reply, AdminError>;

impl Roles {
    /// The IKE SAs, oldest name first.
    pub(super) fn ike_sas(&self, now: Instant) -> Vec<IkeInfo> {
        let Some(keyserver) = &self.keyserver else {
            return Vec::new();
        };
        keyserver.ike_sas(now).map(|info| self.ike(info)).collect()
    }

    fn ike(&self, info: IkeSaInfo) -> IkeInfo {
        let local = info.local.ip();
        let subscriber = self
            .keyserver
            .as_ref()
            .map(|keyserver| keyserver.subscriber_at(local));
        let lane = self.keyserver.as_ref().map(|keyserver| keyserver.lane(info.id));
        let level = lane.unwrap_or_default().level;
        let child = |(spi_in, spi_out): (Spi, Spi)| IkeChild {
            spi_in: spi_in.to_string(),
            spi_out: spi_out.to_string(),
        };
        IkeInfo {
            subscriber: subscriber.unwrap_or_default(),
            local: info.local.ip(),
            remote: info.remote.ip(),
            local_id: info.local_id.map(|id| id.to_string()),
            remote_id: info.remote_id.map(|id| id.to_string()),
            spi_i: info.spi_i.to_string(),
            spi_r: info.spi_r.to_string(),
            initiator: info.role == Role::Initiator,
            state: info.state.to_string().to_lowercase(),
            proposal: info.suite.map(|suite| suite.to_string()),
            age_seconds: info.age_seconds.unwrap_or(0),
            local_port: info.local.port(),
            remote_port: info.remote.port(),
            children: info.children.into_iter().map(child).collect(),
            rekey_in_seconds: info.rekey_in_seconds,
            level,
        }
    }

    /// Answers one request about IKE SAs. `give_keys`: whether keys may be given out.
    pub(super) fn answer_ike(&mut self, now: Instant, request: IkeRequest, give_keys: bool) -> Answer {
        match request {
            IkeRequest::Show { ike } => {
                let info = self.find_ike(now, ike)?;
                Ok(Reply::IkeList(vec![self.ike(info)]))
            }
            IkeRequest::Initiate { subscriber, peer } => {
                let addresses = self.keyserver()?.addresses_of(&subscriber);
                let local = addresses.iter().find(|local| local.is_ipv4() == peer.is_ipv4());
                let Some(local) = local.copied() else {
                    let name = subscriber.escape_debug();
                    let message = format!(
                        "subscriber `{name}` is not registered with an address of the family of {peer}"
                    );
                    return Err(AdminError::new(ErrorKind::NotFound, message));
                };
                let started = self.keyserver_mut()?.ike_initiate(now, local, peer);
                started.map_err(|error| AdminError::new(ErrorKind::Conflict, error.to_string()))?;
                Ok(Reply::IkeStarted)
            }
            IkeRequest::Rekey { ike, child } => {
                let info = self.find_ike(now, ike)?;
                let child = child.map(|spi| find_child(&info, spi)).transpose()?;
                started(ike, self.keyserver_mut()?.ike_rekey(now, info.id, child))
            }
            IkeRequest::Reauthenticate { ike } => {
                let info = self.find_ike(now, ike)?;
                started(ike, self.keyserver_mut()?.ike_reauthenticate(now, info.id))
            }
            IkeRequest::Terminate { ike, child } => {
                let info = self.find_ike(now, ike)?;
                let child = child.map(|spi| find_child(&info, spi)).transpose()?;
                started(ike, self.keyserver_mut()?.ike_terminate(now, info.id, child))
            }
            IkeRequest::Keys { ike } => self.ike_keys(now, ike, give_keys),
        }
    }

    fn find_ike(&self, now: Instant, spi: u64) -> Result<IkeSaInfo, AdminError> {
        let mut all = self.keyserver()?.ike_sas(now);
        let found = all.find(|info| info.spi_i.0 == spi || info.spi_r.0 == spi);
        found.ok_or_else(|| {
            let message = format!("no IKE SA has SPI {spi:016x}; `towpath ike list` shows those there are");
            AdminError::new(ErrorKind::NotFound, message)
        })
    }

    fn ike_keys(&self, now: Instant, spi: Option<u64>, give_keys: bool) -> Answer {
        if !give_keys {
            let message = "keys are not given out: the configuration does not set debug.key_log";
            return Err(AdminError::invalid(message));
        }
        let ids: Vec<IkeSaId> = match spi {
            Some(spi) => vec![self.find_ike(now, spi)?.id],
            None => self.keyserver()?.ike_sas(now).map(|info| info.id).collect(),
        };
        tracing::warn!(sas = ids.len(), "keys of IKE SAs given out to the command line");
        let keyserver = self.keyserver()?;
        let keys = ids.into_iter().filter_map(|id| keyserver.danger_ike_keys(id));
        Ok(Reply::IkeKeys(keys.map(|keys| wireshark(&keys)).collect()))
    }
}

fn find_child(info: &IkeSaInfo, spi: u32) -> Result<Spi, AdminError> {
    let wanted = Spi(spi);
    let mut children = info.children.iter();
    let found = children.find(|(spi_in, spi_out)| *spi_in == wanted || *spi_out == wanted);
    found.map(|(spi_in, _)| *spi_in).ok_or_else(|| {
        let message = format!("IKE SA {} has no CHILD SA with SPI {wanted}", info.id);
        AdminError::new(ErrorKind::NotFound, message)
    })
}

fn started(spi: u64, done: Result<(), towpath_ike::UnknownSa>) -> Answer {
    done.map(|()| Reply::IkeStarted).map_err(|_| {
        let message = format!("IKE SA {spi:016x} is not established, or that SA of it is ending already");
        AdminError::new(ErrorKind::Conflict, message)
    })
}

/// One line of Wireshark's `ikev2_decryption_table`: SPIs, SK_ei, SK_er, cipher, SK_ai, SK_ar, integrity.
fn wireshark(keys: &IkeSaKeys) -> String {
    let hex = |key: &[u8]| key.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let encryption = |keys: &SkKeys| hex(keys.encryption.expose());
    let authentication = |keys: &SkKeys| hex(keys.authentication.expose());
    let cipher = match keys.initiator.cipher {
        SkCipher::Aes128Gcm16 => "AES-GCM-128 with 16 octet ICV [RFC5282]",
        SkCipher::Aes256Gcm16 => "AES-GCM-256 with 16 octet ICV [RFC5282]",
        SkCipher::Aes128Cbc => "AES-CBC-128 [RFC3602]",
        SkCipher::Aes256Cbc => "AES-CBC-256 [RFC3602]",
        SkCipher::Aes128Ctr => "AES-CTR-128 [RFC5930]",
        SkCipher::Aes256Ctr => "AES-CTR-256 [RFC5930]",
        SkCipher::ChaCha20Poly1305 => "ChaCha20-Poly1305 [RFC7634]",
    };
    let integrity = match keys.initiator.integrity {
        None => "NONE [RFC4306]",
        Some(Integrity::HmacSha256) => "HMAC_SHA2_256_128 [RFC4868]",
        Some(Integrity::HmacSha384) => "HMAC_SHA2_384_192 [RFC4868]",
        Some(Integrity::HmacSha512) => "HMAC_SHA2_512_256 [RFC4868]",
    };
    format!(
        "{},{},{},{},\"{cipher}\",{},{},\"{integrity}\"",
        keys.spi_i,
        keys.spi_r,
        encryption(&keys.initiator),
        encryption(&keys.responder),
        authentication(&keys.initiator),
        authentication(&keys.responder),
    )
}
