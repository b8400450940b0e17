//! Certificates, signatures and names of a peer: of any kind, and genuine ones with some bytes changed.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use towpath_base::crypto::{PeerProof, PeerVerifier, SignatureScheme};
use towpath_base::profile::IkeId;
use towpath_crypto::x509::{TrustVerifier, pem};

const AUTHORITY: &[u8] = include_bytes!("../seeds/ca.der");
const PEER: &[u8] = include_bytes!("../seeds/leaf.der");
const SIGNATURE: &[u8] = include_bytes!("../seeds/leaf.sig");
const MESSAGE: &[u8] = b"signed by the peer";

#[derive(Debug, Arbitrary)]
struct Input {
    scheme: u8,
    patches: Vec<(bool, u16, u8)>,
    /// Put in the place of the genuine ones.
    chain: Option<Vec<Vec<u8>>>,
    signature: Option<Vec<u8>>,
    /// Certificates beside the peer's.
    extra: Vec<Vec<u8>>,
    text: Vec<u8>,
}

fuzz_target!(|input: Input| {
    let _ = (
        pem::certificates(&input.text),
        pem::revocation_lists(&input.text),
        pem::private_key(&input.text),
    );
    let _ = TrustVerifier::new(std::slice::from_ref(&input.text), &[]);
    let _ = TrustVerifier::new(&[AUTHORITY.to_vec()], std::slice::from_ref(&input.text));
    let (mut own, mut signature) = (PEER.to_vec(), SIGNATURE.to_vec());
    for (certificate, at, value) in &input.patches {
        let bytes = if *certificate { &mut own } else { &mut signature };
        let at = usize::from(*at) % bytes.len();
        bytes[at] ^= value;
    }
    let genuine = own == PEER && signature == SIGNATURE && input.chain.is_none() && input.signature.is_none();
    let chain = input.chain.unwrap_or_else(|| vec![own]);
    let certificates: Vec<&[u8]> = chain.iter().chain(&input.extra).map(Vec::as_slice).collect();
    let scheme = SignatureScheme::ALL[usize::from(input.scheme) % SignatureScheme::ALL.len()];
    let verifier = TrustVerifier::new(&[AUTHORITY.to_vec()], &[]).expect("the authority is well-formed");
    let proof = PeerProof {
        certificates: &certificates,
        id: &IkeId::Fqdn("peer.test".into()),
        scheme,
        message: MESSAGE,
        signature: input.signature.as_deref().unwrap_or(&signature),
    };
    if verifier.verify(&proof).is_ok() {
        assert!(genuine, "only the peer's own proof is believed");
    }
});
