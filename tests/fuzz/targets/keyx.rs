//! The sealed protocol: datagrams of strangers, and of somebody who has the keys and writes nonsense.
#![no_main]

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit};
use libfuzzer_sys::fuzz_target;
use towpath_base::SubscriberHandle;
use towpath_base::key::SecretKey;
use towpath_keyx::registration::open_registration;
use towpath_keyx::{NetworkSession, ReservedSpi, SessionKeys, TerminalSession, frame, message};

const HANDLE: SubscriberHandle = SubscriberHandle(7);
/// First byte behind version, type, reserved and handle: the counter.
const COUNTER_AT: usize = 12;
const HEADER_LEN: usize = 20;

/// Seals `body` as the far end would: the layout of `controlplane/docs/keyx-wire.md`.
fn sealed(key: &[u8; 32], purpose: u32, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut datagram = vec![1, kind, 0, 0];
    datagram.extend(HANDLE.0.to_be_bytes());
    datagram.extend(1u64.to_be_bytes());
    let mut nonce = purpose.to_be_bytes().to_vec();
    nonce.extend(&datagram[COUNTER_AT..HEADER_LEN]);
    let nonce: [u8; 12] = nonce.try_into().unwrap();
    let mut text = body.to_vec();
    let aead = Aes256Gcm::new(key.into());
    let tag = aead
        .encrypt_inout_detached(&nonce.into(), &datagram, text.as_mut_slice().into())
        .unwrap();
    datagram.extend(text);
    datagram.extend(tag);
    datagram
}

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (way, kind, bytes) = input;
    let keys = SessionKeys {
        t2n: SecretKey::new([1; 32]),
        n2t: SecretKey::new([2; 32]),
    };
    match way % 4 {
        0 => {
            if let Some(datagram) = frame::unwrap(ReservedSpi(100), bytes) {
                let _ = message::peek(datagram);
            }
            let _ = open_registration(&SecretKey::new([3; 32]), [10, 0, 0, 1].into(), bytes);
        }
        1 => {
            let _ = NetworkSession::new(HANDLE, &keys).open(bytes);
            let _ = TerminalSession::new(HANDLE, &keys).open(bytes);
        }
        2 => {
            let datagram = sealed(keys.t2n.expose(), 3, kind, bytes);
            let mut session = NetworkSession::new(HANDLE, &keys);
            let first = session.open(&datagram);
            assert!(session.open(&datagram).is_err(), "never twice");
            if let Ok(message) = first {
                let again = TerminalSession::new(HANDLE, &keys).seal(&message).unwrap();
                let mut session = NetworkSession::new(HANDLE, &keys);
                assert_eq!(
                    session.open(again.as_bytes()),
                    Ok(message),
                    "what was read is written the same"
                );
            }
        }
        _ => {
            let datagram = sealed(keys.n2t.expose(), 4, kind, bytes);
            let mut session = TerminalSession::new(HANDLE, &keys);
            let first = session.open(&datagram);
            assert!(session.open(&datagram).is_err(), "never twice");
            if let Ok(message) = first {
                let again = NetworkSession::new(HANDLE, &keys).seal(&message).unwrap();
                let mut session = TerminalSession::new(HANDLE, &keys);
                assert_eq!(
                    session.open(again.as_bytes()),
                    Ok(message),
                    "what was read is written the same"
                );
            }
        }
    }
});
