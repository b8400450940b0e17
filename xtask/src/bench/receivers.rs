//! Threads of their own for what interfaces receive.

use anyhow::Result;

use crate::sh::Cmd;

/// Frames an interface receives are worked on by a thread of their own, whose processor time can be told: otherwise
/// they cost whoever happens to send. The far ends of the gateway's links need it, too, or the gateway pays for what
/// the hosts receive.
pub(crate) fn own_receiver(namespace: &str, device: &str) -> Result<()> {
    let script = format!("echo 1 >/sys/class/net/{device}/threaded");
    Cmd::new("ip")
        .args(["netns", "exec", namespace, "sh", "-c", &script])
        .run()
}

/// Process ids of the receiving threads of interfaces.
pub(crate) fn receivers(devices: &[&str]) -> impl Iterator<Item = String> {
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.parse::<u32>().is_ok())
        .filter(|pid| {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            devices
                .iter()
                .any(|device| comm.trim().starts_with(&format!("napi/{device}-")))
        })
}

/// Keeps the receiving threads of interfaces on one processor.
pub(crate) fn pin_receivers(devices: &[&str], processor: u32) -> Result<()> {
    receivers(devices).try_for_each(|pid| {
        Cmd::new("taskset")
            .args(["-cp", &processor.to_string(), &pid])
            .output()
            .map(drop)
    })
}
