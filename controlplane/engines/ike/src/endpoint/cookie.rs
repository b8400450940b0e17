//! Cookies: proof of return routability without state (RFC 7296 §2.6).

use alloc::vec::Vec;
use core::net::IpAddr;
use core::time::Duration;

use subtle::ConstantTimeEq;
use towpath_base::Instant;
use towpath_base::crypto::{KeyGenerator, Prf, Rng};
use towpath_base::ids::IkeSpi;

/// A secret makes cookies this long, and is honoured as long again.
const SECRET_LIFETIME: Duration = Duration::from_secs(60);

struct Secret {
    version: u8,
    key: [u8; 32],
    since: Instant,
}

/// Makes and checks cookies: `version | HMAC-SHA2-256(secret, Ni | IPi | SPIi)`.
#[derive(Default)]
pub(super) struct CookieJar {
    current: Option<Secret>,
    previous: Option<Secret>,
}

fn cookie<K: KeyGenerator>(keygen: &K, secret: &Secret, ni: &[u8], source: IpAddr, spi_i: IkeSpi) -> Vec<u8> {
    let spi = spi_i.0.to_be_bytes();
    let mac = match source {
        IpAddr::V4(ip) => keygen.prf(Prf::HmacSha256, &secret.key, &[ni, &ip.octets(), &spi]),
        IpAddr::V6(ip) => keygen.prf(Prf::HmacSha256, &secret.key, &[ni, &ip.octets(), &spi]),
    };
    [&[secret.version], mac.expose()].concat()
}

impl CookieJar {
    fn rotate<R: Rng>(&mut self, rng: &mut R, now: Instant) {
        let fresh = |secret: &Secret| now.saturating_since(secret.since) < SECRET_LIFETIME;
        if self.current.as_ref().is_some_and(fresh) {
            return;
        }
        let mut key = [0; 32];
        rng.fill(&mut key);
        let version = self
            .current
            .as_ref()
            .map_or(0, |secret| secret.version.wrapping_add(1));
        self.previous = self.current.replace(Secret {
            version,
            key,
            since: now,
        });
    }

    /// The cookie this initiator has to return.
    pub(super) fn make<K: KeyGenerator, R: Rng>(
        &mut self,
        keygen: &K,
        rng: &mut R,
        now: Instant,
        ni: &[u8],
        source: IpAddr,
        spi_i: IkeSpi,
    ) -> Vec<u8> {
        self.rotate(rng, now);
        self.current
            .as_ref()
            .map(|secret| cookie(keygen, secret, ni, source, spi_i))
            .unwrap_or_default()
    }

    /// Whether `returned` is a cookie of ours for this initiator.
    pub(super) fn check<K: KeyGenerator>(
        &self,
        keygen: &K,
        now: Instant,
        returned: &[u8],
        ni: &[u8],
        source: IpAddr,
        spi_i: IkeSpi,
    ) -> bool {
        self.current
            .iter()
            .chain(&self.previous)
            .filter(|secret| now.saturating_since(secret.since) < SECRET_LIFETIME * 2)
            .any(|secret| cookie(keygen, secret, ni, source, spi_i).ct_eq(returned).into())
    }
}
