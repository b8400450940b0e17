//! IKE exchanges as scripts, in virtual time: two endpoints (or one that speaks for both ends) and the network
//! between them.

mod attacks;
mod authentication;
mod charon;
mod collisions;
mod floods;
mod followup;
mod hybrid;
mod lifecycle;
mod losses;
mod mobility;
mod negotiation;
mod pki;
mod rekeys;
mod scripts;
mod storms;
mod world;
