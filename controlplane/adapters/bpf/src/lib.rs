//! towpath-bpf
