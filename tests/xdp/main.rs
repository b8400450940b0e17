//! The XDP program as it is loaded: fixtures through `BPF_PROG_TEST_RUN`, agreement with the classifier in user
//! space, and real traffic between network namespaces.
//!
//! Everything but the fixture parser needs root and the built object.
#![forbid(unsafe_code)]

mod agreement;
mod fixture;
mod fixtures;
mod lifecycle;
mod model;
mod topology;
mod traffic;
