//! Tests with real peers in network namespaces. All need root; `cargo xtask test` runs them.
#![forbid(unsafe_code)]

mod lab;
