//! What a configuration must satisfy beyond its types.

use std::collections::HashSet;
use std::ops::RangeInclusive;

use towpath_telemetry::logging;

use super::{Config, ConfigError, Document, Remote, Role};

/// The whole range of a key, for messages and documentation.
struct Limits {
    /// Dotted key.
    key: &'static str,
    /// Values allowed.
    range: RangeInclusive<u64>,
    /// The value.
    of: fn(&Config) -> u64,
}

macro_rules! limits {
    ($($section:ident . $key:ident : $range:expr;)+) => {
        /// Numbers and their bounds.
        const LIMITS: &[Limits] = &[$(Limits {
            key: concat!(stringify!($section), ".", stringify!($key)),
            range: $range,
            of: |config| config.$section.$key.into(),
        },)+];
    };
}

limits! {
    // One worker serves all queues in this version.
    gateway.workers: 0..=1;
    gateway.reserved_spi: 1..=u64::MAX;
    gateway.frames: 64..=1 << 20;
    gateway.max_sas: 1..=1_000_000;
    gateway.requests_per_second: 1..=100_000;
    gateway.requests_burst: 1..=100_000;
    relay.max_flows: 0..=10_000_000;
    relay.max_flows_per_pair: 0..=10_000_000;
    relay.max_half_open: 1..=1_000_000;
    relay.max_half_open_per_pair: 1..=1_000_000;
    relay.memory_mib: 1..=1_048_576;
    relay.idle_timeout_seconds: 10..=604_800;
    keyserver.max_ike_sas: 1..=10_000_000;
    keyserver.max_half_open: 1..=10_000_000;
    keyserver.operator_share_percent: 1..=100;
    keyserver.operator_exchanges_per_second: 0..=1_000_000;
    keyserver.credential_seconds: 0..=86_400;
    keyserver.cookie_threshold: 0..=10_000_000;
    keyserver.retransmit_initial_ms: 10..=60_000;
    keyserver.retransmit_tries: 1..=20;
    keyserver.dpd_seconds: 0..=86_400;
    keyserver.reauth_seconds: 0..=31_536_000;
    channel.heartbeat_ms: 50..=60_000;
    channel.dead_after_ms: 100..=600_000;
    keyserver.transfer_initial_ms: 10..=60_000;
    keyserver.transfer_tries: 1..=20;
    registry.lifetime_seconds: 30..=86_400;
    registry.keepalive_seconds: 0..=3600;
    registry.registrations_per_minute: 1..=6000;
    registry.registrations_burst: 1..=1000;
}

/// Checks `config`, read from `document`. The first thing found is reported.
pub(crate) fn check(config: &Config, document: &Document) -> Result<(), ConfigError> {
    for limit in LIMITS {
        let value = (limit.of)(config);
        if !limit.range.contains(&value) {
            let (low, high) = (limit.range.start(), limit.range.end());
            return Err(document.invalid(limit.key, format!("is {value}, expected {low} to {high}")));
        }
    }
    roles(config, document)?;
    gateway(config, document)?;
    super::relay::check(&config.relay, document)?;
    keyserver(config, document)?;
    channel(config, document)?;
    if let Err(error) = logging::check_filter(&config.log.filter) {
        return Err(document.invalid(
            "log.filter",
            format!("{error}, expected a level or a list like `warn,towpath_keyserver=debug`"),
        ));
    }
    for (key, path) in [
        ("store.path", &config.store.path),
        ("store.kek_file", &config.store.kek_file),
        ("admin.socket", &config.admin.socket),
    ] {
        if path.file_name().is_none() {
            return Err(document.invalid(key, format!("`{}` names no file", path.display())));
        }
    }
    if config.store.path == config.store.kek_file {
        return Err(document.invalid(
            "store.kek_file",
            "is the database itself, expected a file of its own",
        ));
    }
    // sockaddr_un holds 108 bytes with the final zero; the socket is first bound under a longer name.
    let length = config.admin.socket.as_os_str().len();
    if length > 96 {
        return Err(document.invalid("admin.socket", format!("is {length} bytes, expected at most 96")));
    }
    Ok(())
}

fn roles(config: &Config, document: &Document) -> Result<(), ConfigError> {
    let mut seen = HashSet::new();
    for (index, role) in config.roles.iter().enumerate() {
        if !seen.insert(role) {
            return Err(document.invalid(
                &format!("roles[{index}]"),
                format!("`{}` is named twice", role.name()),
            ));
        }
    }
    if seen.is_empty() {
        return Err(document.invalid(
            "roles",
            "is empty, expected at least one of gateway, keyserver, registry",
        ));
    }
    Ok(())
}

/// What runs elsewhere has to be reached, and proves who it is.
fn channel(config: &Config, document: &Document) -> Result<(), ConfigError> {
    let channel = &config.channel;
    if !towpath_channel::valid_name(&channel.name) {
        let message = format!(
            "`{}`: expected 1 to 63 of a-z, 0-9 and inner `-`",
            channel.name.escape_debug()
        );
        return Err(document.invalid("channel.name", message));
    }
    let here = |node: &Remote| node.name == channel.name;
    let mut elsewhere = !channel.listen.is_empty();
    let mut names = HashSet::new();
    for (index, node) in config.gateway.keyserver.iter().enumerate() {
        let key = format!("gateway.keyserver[{index}]");
        remote(node, here(node) && config.runs(Role::Keyserver), &key, document)?;
        if !names.insert(&node.name) {
            return Err(document.invalid(&format!("{key}.name"), "is named twice"));
        }
        elsewhere |= !here(node);
    }
    if config.runs(Role::Gateway) && names.is_empty() && !config.runs(Role::Keyserver) {
        let message = "is missing: the gateway needs at least one `[[gateway.keyserver]]`, or the keyserver in its process";
        return Err(document.invalid("gateway.keyserver", message));
    }
    match (&channel.registry, config.runs(Role::Registry)) {
        (Some(_), true) => {
            return Err(document.invalid(
                "channel.registry",
                "is set, but the registry runs in this process",
            ));
        }
        (Some(node), false) => {
            remote(node, false, "channel.registry", document)?;
            elsewhere = true;
        }
        (None, false) => {
            return Err(document.invalid(
                "channel.registry",
                "is missing: the registry does not run in this process",
            ));
        }
        (None, true) => {}
    }
    for (key, file) in [
        ("channel.certificate", &channel.certificate),
        ("channel.private_key", &channel.private_key),
        ("channel.authority", &channel.authority),
    ] {
        if elsewhere && file.is_none() {
            let message = "is missing: roles on several machines prove who they are; `towpath node` makes it";
            return Err(document.invalid(key, message));
        }
    }
    if channel.dead_after_ms < channel.heartbeat_ms.saturating_mul(2) {
        let message = format!(
            "is {}, expected at least twice channel.heartbeat_ms ({})",
            channel.dead_after_ms, channel.heartbeat_ms
        );
        return Err(document.invalid("channel.dead_after_ms", message));
    }
    Ok(())
}

fn remote(node: &Remote, here: bool, key: &str, document: &Document) -> Result<(), ConfigError> {
    if !towpath_channel::valid_name(&node.name) {
        let message = format!(
            "`{}`: expected 1 to 63 of a-z, 0-9 and inner `-`",
            node.name.escape_debug()
        );
        return Err(document.invalid(&format!("{key}.name"), message));
    }
    let port = node.address.as_ref().and_then(|address| address.rsplit_once(':'));
    let reachable =
        port.is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
    match &node.address {
        None if here => Ok(()),
        None => Err(document.invalid(
            &format!("{key}.address"),
            "is missing: only the keyserver of this process has none",
        )),
        Some(_) if here => Err(document.invalid(
            &format!("{key}.address"),
            "is set, but this is the keyserver of this process",
        )),
        Some(_) if reachable => Ok(()),
        Some(address) => {
            let message = format!(
                "`{}`: expected HOST:PORT or [ADDRESS]:PORT",
                address.escape_debug()
            );
            Err(document.invalid(&format!("{key}.address"), message))
        }
    }
}

fn gateway(config: &Config, document: &Document) -> Result<(), ConfigError> {
    if !config.runs(Role::Gateway) {
        return Ok(());
    }
    let gateway = &config.gateway;
    if gateway.port.is_empty() {
        return Err(document.invalid(
            "gateway.port",
            "is missing, expected at least one `[[gateway.port]]`",
        ));
    }
    if ![2048, 4096].contains(&gateway.frame_size) {
        return Err(document.invalid(
            "gateway.frame_size",
            format!("is {}, expected 2048 or 4096", gateway.frame_size),
        ));
    }
    if !gateway.frames.is_power_of_two() {
        return Err(document.invalid(
            "gateway.frames",
            format!("is {}, expected a power of two", gateway.frames),
        ));
    }
    if !gateway.pin_dir.is_absolute() {
        let path = gateway.pin_dir.display();
        return Err(document.invalid("gateway.pin_dir", format!("`{path}`: expected an absolute path")));
    }
    let mut names = HashSet::new();
    for (index, port) in gateway.port.iter().enumerate() {
        let key = format!("gateway.port[{index}].name");
        // IFNAMSIZ is 16 with the final zero.
        let possible = (1..=15).contains(&port.name.len())
            && !port
                .name
                .contains(|c: char| c == '/' || c.is_whitespace() || c.is_control());
        if !possible {
            let name = port.name.escape_debug();
            return Err(document.invalid(
                &key,
                format!("`{name}`: expected an interface name of 1 to 15 characters"),
            ));
        }
        if !names.insert(&port.name) {
            return Err(document.invalid(&key, format!("`{}` is named twice", port.name)));
        }
    }
    Ok(())
}

fn keyserver(config: &Config, document: &Document) -> Result<(), ConfigError> {
    let keyserver = &config.keyserver;
    if keyserver.ike_proposals.is_empty() {
        return Err(document.invalid(
            "keyserver.ike_proposals",
            "is empty, expected at least one proposal",
        ));
    }
    for (index, text) in keyserver.ike_proposals.iter().enumerate() {
        if let Err(expected) = crate::subscriber::check_ike_proposal(text) {
            return Err(document.invalid(&format!("keyserver.ike_proposals[{index}]"), expected));
        }
    }
    if keyserver.esp_suites.is_empty() {
        return Err(document.invalid("keyserver.esp_suites", "is empty, expected at least one suite"));
    }
    if keyserver.max_half_open > keyserver.max_ike_sas {
        return Err(document.invalid(
            "keyserver.max_half_open",
            format!(
                "is {}, expected at most keyserver.max_ike_sas ({})",
                keyserver.max_half_open, keyserver.max_ike_sas
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let document = Document::from_text("t", text);
        let config = document.read().unwrap();
        let error = check(&config, &document).unwrap_err().to_string();
        error.lines().next().unwrap_or_default().to_owned()
    }

    const PORT: &str = "[[gateway.port]]\nname = \"a\"\nrole = \"access\"\n";

    #[test]
    fn each_rule_names_key_value_and_expectation() {
        let port = |text: &str| refused(&format!("{text}\n{PORT}"));
        for (shown, expected) in [
            (
                refused(""),
                "t: key `gateway.port`: is missing, expected at least one",
            ),
            (
                port("[gateway]\nworkers = 1000"),
                "t:2:11: key `gateway.workers`: is 1000, expected 0 to 1",
            ),
            (
                port("[gateway]\nframes = 1000"),
                "t:2:10: key `gateway.frames`: is 1000, expected a power of two",
            ),
            (
                port("roles = [\"gateway\"]"),
                "key `gateway.keyserver`: is missing: the gateway needs",
            ),
            (
                refused("roles = [\"keyserver\"]"),
                "key `channel.registry`: is missing",
            ),
            (
                port("[channel]\nlisten = [\"[::1]:4510\"]"),
                "key `channel.certificate`: is missing",
            ),
            (
                port("[[gateway.keyserver]]\nname = \"ks1\"\naddress = \"nowhere\""),
                "key `gateway.keyserver[0].address`: `nowhere`: expected HOST:PORT",
            ),
            (
                port("roles = [\"gateway\", \"gateway\"]"),
                "t:1:21: key `roles[1]`: `gateway` is named twice",
            ),
            (
                refused(&format!("{PORT}{PORT}")),
                "t:5:8: key `gateway.port[1].name`: `a` is named twice",
            ),
            (
                port("[keyserver]\nmax_ike_sas = 5\nmax_half_open = 6"),
                "t:3:17: key `keyserver.max_half_open`: is 6, expected at most keyserver.max_ike_sas (5)",
            ),
            (
                port("[[relay.rule]]\npeer_port = \"9-8\"\naction = \"split\""),
                "t:2:13: key `relay.rule[0].peer_port`: `9-8`: expected a port or a range",
            ),
            (
                port("[[relay.rule]]\nclass = \"inspect\"\naction = \"split\""),
                "t:3:10: key `relay.rule[0].action`: is `split`, expected `snoop` or `pass`",
            ),
            (
                port("[keyserver]\nike_proposals = [\"rot13\"]"),
                "t:2:18: key `keyserver.ike_proposals[0]`: ",
            ),
        ] {
            assert!(shown.contains(expected), "{shown}\n{expected}");
        }
    }
}
