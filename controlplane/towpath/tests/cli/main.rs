//! The command line as its users meet it: outputs, messages, exit statuses, and what is left untouched.

#[path = "../bench/mod.rs"]
mod bench;
mod manual;
mod subscribers;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use bench::Bench;
use serde_json::{Value, json};

/// Options that make `subscriber add` complete.
const ALICE: &[&str] = &[
    "subscriber",
    "add",
    "alice",
    "--address",
    "10.77.1.2",
    "--address",
    "fd77:1::2",
    "--nai",
    "alice@towpath.example",
    "--peer",
    "10.77.9.2",
    "--remote-id",
    "peer.towpath.example",
    "--psk-file",
    "psk",
    "--terminal-config",
    "alice.toml",
];

fn ready() -> Bench {
    let bench = Bench::new();
    bench.ok(&["init"]);
    bench.write("psk", "correct horse battery staple\n");
    bench
}

#[test]
fn help_and_version_go_to_standard_output() {
    let bench = Bench::new();
    let help = bench.run(&["--help"], "");
    assert_eq!(help.status, 0);
    for word in [
        "Examples:",
        "subscriber",
        "Exit status:",
        "--config",
        "TOWPATH_ADMIN",
    ] {
        assert!(help.out.contains(word), "{word} is missing in\n{}", help.out);
    }
    assert!(bench.ok(&["--version"]).starts_with("towpath 0."));
    let add = bench.ok(&["subscriber", "add", "--help"]);
    for option in [
        "--operator",
        "--address",
        "--peer",
        "--psk-file",
        "--psk-stdin",
        "--local-id",
        "--remote-id",
        "--mode",
        "--class",
        "--esp",
        "--ike",
        "--nai",
        "--telephone",
        "--aaa-entry",
        "--ksub-file",
        "--terminal-config",
    ] {
        assert!(add.contains(option), "{option} is missing in\n{add}");
    }
}

#[test]
fn completions_and_manual_are_made_from_the_commands() {
    let bench = Bench::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(
            bench.ok(&["completions", shell]).contains("subscriber"),
            "{shell}"
        );
    }
    assert!(bench.ok(&["man"]).starts_with(".ie"));
    bench.ok(&["man", "pages"]);
    assert!(bench.path("pages/towpath-subscriber-add.1").exists());
}

#[test]
fn init_prepares_once_and_then_leaves_alone() {
    let bench = Bench::new();
    fs::remove_file(bench.config()).unwrap();
    let path = bench.config();
    let config = path.to_str().unwrap();
    // The written configuration names system paths; it is not used further here.
    let wrong = bench.run(&["init", "--port", "lte0=acces"], "");
    assert_eq!(wrong.status, 2);
    assert!(wrong.err.contains("expected INTERFACE=access"), "{}", wrong.err);
    let twice = bench.run(&["init", "--port", "a=core", "--port", "a=access"], "");
    assert_eq!(twice.status, 2);
    assert!(twice.err.contains("`a` is named twice"), "{}", twice.err);
    assert!(!path.exists(), "{config} was written");

    let bench = Bench::new();
    let first = bench.ok(&["init"]);
    assert!(
        first.contains("store.key: key drawn") && first.contains("towpath.redb: created"),
        "{first}"
    );
    for file in ["store.key", "towpath.redb"] {
        assert_eq!(
            fs::metadata(bench.path(file)).unwrap().mode() & 0o777,
            0o600,
            "{file}"
        );
    }
    let key = bench.read("store.key");
    let again = bench.ok(&["init"]);
    assert_eq!(again.matches("there already").count(), 3, "{again}");
    assert_eq!(bench.read("store.key"), key);
    fs::remove_file(bench.path("store.key")).unwrap();
    bench.refuses(&["init"], "a new key would not open the store");
    assert!(!bench.path("store.key").exists());
}

#[test]
fn the_example_is_valid_and_mistakes_are_shown_where_they_are() {
    let bench = Bench::new();
    let example = bench.ok(&["config", "example"]);
    bench.write("example.toml", &example);
    let path = bench.path("example.toml");
    let check = |text: &str| {
        bench.write("example.toml", text);
        bench.run(&["config", "check", "--config", path.to_str().unwrap()], "")
    };
    assert_eq!(check(&example).status, 0);
    for (from, to, message) in [
        (
            "mode = \"auto\"",
            "mode = \"fast\"",
            "key `gateway.mode`: unknown variant `fast`, expected one of",
        ),
        (
            "workers = 0",
            "wrokers = 0",
            "key `gateway.wrokers`: unknown field `wrokers`",
        ),
        ("workers = 0", "workers = -1", "key `gateway.workers`: "),
        (
            "lifetime_seconds = 3600",
            "lifetime_seconds = 1",
            "key `registry.lifetime_seconds`: is 1, expected 30 to",
        ),
        ("[log]", "[log", "example.toml:"),
    ] {
        let result = check(&example.replacen(from, to, 1));
        assert_eq!(result.status, 2, "{to}");
        assert!(result.err.contains(message), "{to}: {}", result.err);
        assert!(result.err.contains("example.toml:"), "{to}: {}", result.err);
        assert!(result.out.is_empty());
    }
    let missing = bench.run(&["run", "--config", "/nowhere/towpath.toml"], "");
    assert_eq!(missing.status, 2);
    assert!(
        missing.err.contains("/nowhere/towpath.toml: cannot be read"),
        "{}",
        missing.err
    );
}

#[test]
fn conditions_are_changed_without_a_daemon() {
    let bench = ready();
    bench.ok(ALICE);
    let condition = [
        "alice",
        "--list",
        "to-terminal",
        "--port",
        "5500",
        "--peer",
        "10.77.9.2",
    ];
    let changed = bench.json(&[&["profile", "add"][..], &condition].concat());
    let added = json!({ "address": "terminal", "peer": "10.77.9.2", "port": 5500 });
    assert!(
        changed["to_terminal"].as_array().unwrap().contains(&added),
        "{changed}"
    );
    bench.refuses(
        &[&["profile", "add"][..], &condition].concat(),
        "the condition is already in list to-terminal",
    );
    let table = bench.ok(&["profile", "list"]);
    assert!(
        table.contains("5500") && table.contains("from-terminal"),
        "{table}"
    );
    bench.ok(&[&["profile", "remove"][..], &condition].concat());
    bench.refuses(
        &[&["profile", "remove"][..], &condition].concat(),
        "no such condition in list to-terminal",
    );
    bench.refuses(
        &["profile", "add", "alice", "--list", "to-terminal", "--port", "0"],
        "invalid value '0' for '--port",
    );
    bench.refuses(&["profile", "show", "nobody"], "no subscriber `nobody`");
}

#[test]
fn a_wrong_key_or_a_readable_one_is_refused() {
    let bench = ready();
    fs::set_permissions(bench.path("store.key"), fs::Permissions::from_mode(0o644)).unwrap();
    bench.refuses(&["subscriber", "list"], "has mode 0644, expected 0600");
    fs::set_permissions(bench.path("store.key"), fs::Permissions::from_mode(0o600)).unwrap();
    bench.write("store.key", &"00".repeat(32));
    bench.refuses(&["subscriber", "list"], "is not the one store");
    fs::remove_file(bench.path("store.key")).unwrap();
    bench.refuses(
        &["subscriber", "list"],
        "does not exist; `towpath init` makes one",
    );
}

#[test]
fn what_needs_a_daemon_says_so() {
    let bench = ready();
    for command in [
        &["status"][..],
        &["sa", "list"],
        &["ike", "list"],
        &["ike", "show", "1"],
        &["ike", "log"],
        &["events"],
        &["stats"],
    ] {
        let result = bench.run(command, "");
        assert_eq!(result.status, 1, "{command:?}: {}", result.err);
        assert!(
            result.err.contains("no daemon serves"),
            "{command:?}: {}",
            result.err
        );
    }
    bench.refuses(&["sa", "show", "xyz"], "expected up to eight hex digits");
    for spi in ["0", "xyz", "11223344556677889"] {
        bench.refuses(&["ike", "terminate", spi], "expected up to sixteen hex digits");
    }
    bench.refuses(&["ike", "initiate", "alice", "peer"], "invalid value 'peer'");
    bench.refuses(&["stats", "--interval", "0"], "invalid value '0'");
    bench.refuses(&["frobnicate"], "unrecognized subcommand 'frobnicate'");
    let result = bench.run(&["subscriber", "list", "--admin", "/nowhere/admin.sock"], "");
    assert_eq!(
        result.status, 1,
        "an explicit socket means a daemon: {}",
        result.err
    );
}

#[test]
fn a_running_daemon_does_the_work() {
    let bench = ready();
    let daemon = bench.daemon();
    bench.ok(ALICE);
    assert_eq!(bench.json(&["subscriber", "list"]).as_array().unwrap().len(), 1);
    let mut again = ALICE.to_vec();
    *again.last_mut().unwrap() = "other.toml";
    bench.refuses(&again, "exists already");

    let status = bench.json(&["status"]);
    assert_eq!(status["version"], "test");
    assert!(
        bench
            .ok(&["status"])
            .contains("acc0 (access): XDP native, 1 queue, copy")
    );

    let sas = bench.json(&["sa", "list"]);
    assert_eq!(
        (&sas[0]["spi_in"], &sas[0]["class"]),
        (&json!("c0ffee01"), &json!("full"))
    );
    assert_eq!(sas[0]["to_peer"], json!({ "packets": 3, "bytes": 300 }));
    assert!(bench.ok(&["sa", "list"]).contains("c0ffee01"));
    assert!(
        bench
            .ok(&["sa", "show", "0xc0ffee01"])
            .contains("terminal's side")
    );
    bench.refuses(&["sa", "show", "1"], "no SA with SPI 00000001");

    let started = bench.json(&["ike", "rekey", "1122334455667788", "--child", "c0ffee01"]);
    assert_eq!(started, json!({ "started": true }));
    let said = bench.ok(&["ike", "initiate", "alice", "10.77.9.2"]);
    assert!(said.starts_with("exchange started"), "{said}");

    let stats = bench.ok(&["stats"]);
    assert!(
        stats.contains("esp_replayed") && !stats.contains("too_big"),
        "{stats}"
    );
    assert!(bench.ok(&["stats", "--all"]).contains("too_big"));

    let events = bench.ok(&["events", "--count", "2", "--json"]);
    let kinds: Vec<Value> = events
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["kind"].clone())
        .collect();
    assert_eq!(kinds, ["tick", "tick"]);
    drop(daemon);
    // The daemon's store was its own: the file knows nothing of alice.
    assert_eq!(bench.json(&["subscriber", "list"]), json!([]));
}
