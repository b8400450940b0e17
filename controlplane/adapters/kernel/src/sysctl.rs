//! Network settings under `/proc/sys/net`.

use std::fs;
use std::io;
use std::path::PathBuf;

fn path(family: &str, interface: &str, key: &str) -> PathBuf {
    // In paths dots are themselves; only sysctl(8) names need them escaped.
    ["/proc/sys/net", family, "conf", interface, key].iter().collect()
}

/// Sets `net.FAMILY.conf.INTERFACE.KEY`; does nothing where the kernel lacks it.
pub fn set_if_present(family: &str, interface: &str, key: &str, value: u32) -> io::Result<()> {
    match fs::write(path(family, interface, key), value.to_string()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Reads `net.FAMILY.conf.INTERFACE.KEY`.
pub fn get(family: &str, interface: &str, key: &str) -> io::Result<u32> {
    let text = fs::read_to_string(path(family, interface, key))?;
    text.trim()
        .parse()
        .map_err(|_| io::Error::other(format!("{key} of {interface} is {text:?}, not a number")))
}

/// Reads `net.core.KEY`.
pub fn core(key: &str) -> io::Result<u32> {
    let text = fs::read_to_string(PathBuf::from("/proc/sys/net/core").join(key))?;
    text.trim().parse().map_err(io::Error::other)
}

/// Sets `net.core.KEY`.
pub fn set_core(key: &str, value: u32) -> io::Result<()> {
    fs::write(PathBuf::from("/proc/sys/net/core").join(key), value.to_string())
}

/// How IPv4 sources are validated on `interface`: 0 not at all, 1 strictly, 2 loosely. The larger of the
/// interface's own setting and that of all interfaces counts (`ip-sysctl`, `rp_filter`).
///
/// A host that routes its peers into a tunnel receives their ESP on another interface than it would answer on,
/// so strict validation there drops it.
pub fn source_validation(interface: &str) -> io::Result<u32> {
    Ok(get("ipv4", "all", "rp_filter")?.max(get("ipv4", interface, "rp_filter")?))
}
