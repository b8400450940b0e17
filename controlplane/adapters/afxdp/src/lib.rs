//! towpath-afxdp
