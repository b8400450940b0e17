//! The engine from outside: one connection rule by rule, and the split relay between two hosts.

mod common;
mod endpoint;
mod split;
