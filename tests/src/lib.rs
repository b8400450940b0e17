//! towpath-tests
#![forbid(unsafe_code)]
