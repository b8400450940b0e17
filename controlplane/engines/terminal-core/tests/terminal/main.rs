//! The terminal core against a network in virtual time.
#![allow(missing_docs)]

mod common;
mod hostile;
mod levels;
mod packets;
mod paths;
mod registration;
mod sas;
