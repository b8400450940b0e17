//! towpath-telemetry
