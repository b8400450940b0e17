//! The bytes of XFRM messages (`linux/xfrm.h`): host byte order, except addresses, ports and SPIs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use towpath_base::sa::{EspCipher, EspIntegrity, EspSuite, Mode};
use zeroize::Zeroizing;

use super::{Action, Direction, PolicyRule, Selector, State, StateId, Template};

pub(super) const NEW_STATE: u16 = 0x10;
pub(super) const DELETE_STATE: u16 = 0x11;
pub(super) const GET_STATE: u16 = 0x12;
pub(super) const DELETE_POLICY: u16 = 0x14;
pub(super) const GET_POLICY: u16 = 0x15;
pub(super) const ACQUIRE: u16 = 0x17;
pub(super) const EXPIRE: u16 = 0x18;
pub(super) const UPDATE_POLICY: u16 = 0x19;

const ATTR_CRYPT: u16 = 2;
const ATTR_ENCAP: u16 = 4;
pub(super) const ATTR_TEMPLATES: u16 = 5;
const ATTR_AEAD: u16 = 18;
const ATTR_AUTH: u16 = 20;
pub(super) const ATTR_MARK: u16 = 21;
const ATTR_TFC_PAD: u16 = 22;
const ATTR_REPLAY_ESN: u16 = 23;

pub(super) const FAMILY_V4: u16 = 2;
pub(super) const FAMILY_V6: u16 = 10;
const PROTO_ESP: u8 = 50;

/// RFC 4303 §2.2.1 sequence numbers.
const STATE_ESN: u8 = 128;
/// UDP_ENCAP_ESPINUDP (`linux/udp.h`).
pub(super) const ESP_IN_UDP: u16 = 2;
/// No limit (`XFRM_INF`).
const UNLIMITED: u64 = u64::MAX;

/// Length of `struct xfrm_selector`.
pub(super) const SELECTOR_LEN: usize = 56;
/// Length of `struct xfrm_usersa_info`.
pub(super) const STATE_LEN: usize = 224;
/// Length of `struct xfrm_userpolicy_info`.
pub(super) const POLICY_LEN: usize = 168;

/// A message under construction; holds keys, hence wiped.
pub(super) struct Message(Zeroizing<Vec<u8>>);

impl Message {
    pub(super) fn new() -> Self {
        // Room for the largest, so that growing leaves no keys behind.
        Self(Zeroizing::new(Vec::with_capacity(2048)))
    }

    pub(super) fn into_bytes(self) -> Zeroizing<Vec<u8>> {
        self.0
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn zeros(&mut self, count: usize) {
        let len = self.0.len() + count;
        self.0.resize(len, 0);
    }

    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u16(&mut self, value: u16) {
        self.bytes(&value.to_ne_bytes());
    }

    fn be16(&mut self, value: u16) {
        self.bytes(&value.to_be_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.bytes(&value.to_ne_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.bytes(&value.to_ne_bytes());
    }

    /// `xfrm_address_t`: 16 bytes, an IPv4 address in the first four.
    fn address(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => {
                self.bytes(&address.octets());
                self.zeros(12);
            }
            IpAddr::V6(address) => self.bytes(&address.octets()),
        }
    }

    /// `struct xfrm_selector`.
    fn selector(&mut self, selector: &Selector) {
        self.address(selector.destination.address());
        self.address(selector.source.address());
        for (port, mask) in [selector.destination_port, selector.source_port] {
            self.be16(port);
            self.be16(mask);
        }
        self.u16(family(selector.destination.address()));
        self.u8(selector.destination.bits());
        self.u8(selector.source.bits());
        self.u8(selector.protocol);
        // Padding, interface, user.
        self.zeros(3 + 4 + 4);
    }

    /// `struct xfrm_lifetime_cfg`, in which 0 would be no time at all.
    fn limits(&mut self, soft_bytes: u64, hard_bytes: u64, hard_seconds: u64) {
        for limit in [soft_bytes, hard_bytes] {
            self.u64(if limit == 0 { UNLIMITED } else { limit });
        }
        self.u64(UNLIMITED);
        self.u64(UNLIMITED);
        // The soft one is the terminal core's affair; the hard one is for the case that nobody is left to delete.
        self.u64(0);
        self.u64(hard_seconds);
        self.u64(0);
        self.u64(0);
    }

    /// `struct nlattr` and what `body` writes, padded.
    fn attribute(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.u16(0);
        self.u16(kind);
        body(self);
        let len = self.0.len() - start;
        self.zeros(len.next_multiple_of(4) - len);
        if let (Some(field), Ok(len)) = (self.0.get_mut(start..start + 2), u16::try_from(len)) {
            field.copy_from_slice(&len.to_ne_bytes());
        }
    }

    /// Name of an algorithm, 64 bytes.
    fn name(&mut self, name: &str) {
        self.bytes(name.as_bytes());
        self.zeros(64usize.saturating_sub(name.len()));
    }

    /// `struct xfrm_usersa_id`.
    pub(super) fn state_id(&mut self, id: &StateId) {
        self.address(id.destination);
        self.bytes(&id.spi.0.to_be_bytes());
        self.u16(family(id.destination));
        self.u8(PROTO_ESP);
        self.u8(0);
    }

    /// `struct xfrm_usersa_info` and its attributes. `None` if the keys do not fit the suite.
    pub(super) fn state(&mut self, state: &State<'_>) -> Option<()> {
        let parts = state.keys.parts(state.suite)?;
        match &state.selector {
            Some(selector) => self.selector(selector),
            None => self.zeros(SELECTOR_LEN),
        }
        self.address(state.destination);
        self.bytes(&state.spi.0.to_be_bytes());
        self.u8(PROTO_ESP);
        self.zeros(3);
        self.address(state.source);
        let lifetime = state.lifetime;
        let seconds = u64::from(lifetime.hard_seconds);
        self.limits(lifetime.soft_bytes, lifetime.hard_bytes, seconds);
        // Use so far, statistics, sequence number of the acquisition.
        self.zeros(32 + 12 + 4);
        self.u32(state.reqid);
        self.u16(family(state.destination));
        self.u8(mode(state.mode));
        // The window is in an attribute.
        self.u8(0);
        self.u8(if state.esn { STATE_ESN } else { 0 });
        self.zeros(7);

        let key = Zeroizing::new([parts.cipher, parts.salt].concat());
        let bits = |bytes: usize| u32::try_from(8 * bytes).unwrap_or(0);
        let (kind, name) = cipher(state.suite);
        self.attribute(kind, |m| {
            m.name(name);
            m.u32(bits(key.len()));
            if kind == ATTR_AEAD {
                m.u32(bits(state.suite.icv_len()));
            }
            m.bytes(&key);
        });
        if let Some(integrity) = state.suite.integrity() {
            self.attribute(ATTR_AUTH, |m| {
                m.name(hmac(integrity));
                m.u32(bits(parts.integrity.len()));
                m.u32(bits(integrity.icv_len()));
                m.bytes(parts.integrity);
            });
        }
        if let Some((source_port, destination_port)) = state.encap {
            self.attribute(ATTR_ENCAP, |m| {
                m.u16(ESP_IN_UDP);
                m.be16(source_port);
                m.be16(destination_port);
                m.zeros(2 + 16);
            });
        }
        if state.tfc_pad > 0 {
            self.attribute(ATTR_TFC_PAD, |m| m.u32(state.tfc_pad));
        }
        let words = state.replay_window.div_ceil(32);
        self.attribute(ATTR_REPLAY_ESN, |m| {
            m.u32(words);
            m.zeros(4 * 4);
            // The kernel makes room for the window's bits itself.
            m.u32(state.replay_window);
        });
        Some(())
    }

    /// `struct xfrm_userpolicy_id`.
    pub(super) fn policy_id(&mut self, rule: &PolicyRule) {
        self.selector(&rule.selector);
        self.u32(0);
        self.u8(direction(rule.direction));
        self.zeros(3);
        self.mark(rule);
    }

    /// `struct xfrm_userpolicy_info` and its attributes.
    pub(super) fn policy(&mut self, rule: &PolicyRule) {
        self.selector(&rule.selector);
        self.limits(0, 0, 0);
        self.zeros(32);
        self.u32(rule.priority);
        self.u32(0);
        self.u8(direction(rule.direction));
        self.u8(u8::from(rule.action == Action::Block));
        self.zeros(2 + 4);
        if let Action::Protect(template) = &rule.action {
            self.attribute(ATTR_TEMPLATES, |m| m.template(template, &rule.selector));
        }
        self.mark(rule);
    }

    fn mark(&mut self, rule: &PolicyRule) {
        if let Some((value, mask)) = rule.mark {
            self.attribute(ATTR_MARK, |m| {
                m.u32(value);
                m.u32(mask);
            });
        }
    }

    /// `struct xfrm_user_tmpl`. Without outer addresses those of the packet count.
    fn template(&mut self, template: &Template, selector: &Selector) {
        let family = family(selector.destination.address());
        let unspecified = if family == FAMILY_V4 {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        } else {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        };
        let (source, destination) = template.outer.unwrap_or((unspecified, unspecified));
        self.address(destination);
        self.zeros(4);
        self.u8(PROTO_ESP);
        self.zeros(3);
        self.u16(self::family(destination));
        self.zeros(2);
        self.address(source);
        self.u32(template.reqid);
        self.u8(mode(template.mode));
        self.zeros(3);
        for _algorithms in 0..3 {
            self.u32(u32::MAX);
        }
    }
}

pub(super) const fn family(address: IpAddr) -> u16 {
    if address.is_ipv4() { FAMILY_V4 } else { FAMILY_V6 }
}

const fn mode(mode: Mode) -> u8 {
    match mode {
        Mode::Transport => 0,
        // The kernel's states have one mode; a terminal is never given a wildcard (`towpath_keyx` refuses it).
        Mode::Tunnel | Mode::Wildcard => 1,
    }
}

const fn direction(direction: Direction) -> u8 {
    match direction {
        Direction::In => 0,
        Direction::Out => 1,
    }
}

/// Attribute and the kernel's name.
const fn cipher(suite: EspSuite) -> (u16, &'static str) {
    match suite.cipher() {
        EspCipher::AesGcm16 => (ATTR_AEAD, "rfc4106(gcm(aes))"),
        EspCipher::AesCcm16 => (ATTR_AEAD, "rfc4309(ccm(aes))"),
        EspCipher::ChaCha20Poly1305 => (ATTR_AEAD, "rfc7539esp(chacha20,poly1305)"),
        EspCipher::AesCbc => (ATTR_CRYPT, "cbc(aes)"),
        EspCipher::AesCtr => (ATTR_CRYPT, "rfc3686(ctr(aes))"),
        EspCipher::Null => (ATTR_CRYPT, "ecb(cipher_null)"),
    }
}

const fn hmac(integrity: EspIntegrity) -> &'static str {
    match integrity {
        EspIntegrity::HmacSha256 => "hmac(sha256)",
        EspIntegrity::HmacSha384 => "hmac(sha384)",
        EspIntegrity::HmacSha512 => "hmac(sha512)",
    }
}

/// Reads fields of what the kernel sent; `None` beyond its end.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'a>(pub(super) &'a [u8]);

impl<'a> View<'a> {
    fn array<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at + N)?.try_into().ok()
    }

    pub(super) fn u8(self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    pub(super) fn u16(self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_ne_bytes)
    }

    pub(super) fn be16(self, at: usize) -> Option<u16> {
        self.array(at).map(u16::from_be_bytes)
    }

    pub(super) fn u32(self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_ne_bytes)
    }

    pub(super) fn be32(self, at: usize) -> Option<u32> {
        self.array(at).map(u32::from_be_bytes)
    }

    pub(super) fn u64(self, at: usize) -> Option<u64> {
        self.array(at).map(u64::from_ne_bytes)
    }

    pub(super) fn address(self, at: usize, family: u16) -> Option<IpAddr> {
        match family {
            FAMILY_V4 => Some(IpAddr::V4(self.array::<4>(at)?.into())),
            FAMILY_V6 => Some(IpAddr::V6(self.array::<16>(at)?.into())),
            _ => None,
        }
    }

    /// The attribute `kind` among those that start at `at`.
    pub(super) fn attribute(self, mut at: usize, kind: u16) -> Option<View<'a>> {
        loop {
            let len = usize::from(self.u16(at)?);
            let found = self.u16(at + 2)?;
            let body = self.0.get(at + 4..at.checked_add(len)?)?;
            if found == kind {
                return Some(View(body));
            }
            at += len.max(4).next_multiple_of(4);
        }
    }
}
