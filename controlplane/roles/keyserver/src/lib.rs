//! towpath-keyserver
