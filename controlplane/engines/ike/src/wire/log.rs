//! One line per message, in the words of strongSwan's log.

use alloc::string::String;
use core::fmt::Write;

use super::{Header, Payload};

/// `IKE_SA_INIT request 0 [ SA KE No N(NATD_S_IP) N(NATD_D_IP) ]`. Nothing of the peer's choosing is printed
/// but numbers.
pub fn summary(header: &Header, payloads: &[Payload<'_>]) -> String {
    let mut line = String::new();
    let direction = if header.response { "response" } else { "request" };
    // Writing into a String cannot fail.
    let _ = write!(line, "{} {direction} {} [", header.exchange, header.message_id);
    for payload in payloads {
        let _ = match payload {
            Payload::Sa(_) => write!(line, " SA"),
            Payload::Ke { .. } => write!(line, " KE"),
            Payload::IdI(_) => write!(line, " IDi"),
            Payload::IdR(_) => write!(line, " IDr"),
            Payload::Cert { .. } => write!(line, " CERT"),
            Payload::CertReq { .. } => write!(line, " CERTREQ"),
            Payload::Auth { .. } => write!(line, " AUTH"),
            Payload::Nonce(_) => write!(line, " No"),
            Payload::Notify(notify) => write!(line, " N({})", notify.kind),
            Payload::Delete(_) => write!(line, " D"),
            Payload::Vendor(_) => write!(line, " V"),
            Payload::TsI(_) => write!(line, " TSi"),
            Payload::TsR(_) => write!(line, " TSr"),
            Payload::Cp(_) => write!(line, " CP"),
            Payload::Eap(_) => write!(line, " EAP"),
            Payload::Unknown { kind, .. } => write!(line, " ({kind})"),
        };
    }
    line.push_str(" ]");
    line
}
