//! towpath-fabric
