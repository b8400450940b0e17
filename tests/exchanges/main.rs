//! IKE exchanges as scripts, in virtual time: two endpoints (or one that speaks for both ends) and the network
//! between them.

mod attacks;
mod charon;
mod collisions;
mod lifecycle;
mod negotiation;
mod rekeys;
mod scripts;
mod storms;
mod world;
