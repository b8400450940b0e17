//! The command line as its users meet it: outputs, messages, exit statuses, and what is left untouched.

mod bench;

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
fn a_subscriber_is_added_shown_listed_and_removed() {
    let bench = ready();
    let added = bench.ok(ALICE);
    assert!(
        added.contains("added subscriber `alice` of operator `default`, handle 1"),
        "{added}"
    );
    let terminal = bench.read("alice.toml");
    assert_eq!(
        fs::metadata(bench.path("alice.toml")).unwrap().mode() & 0o777,
        0o600
    );
    for part in [
        "handle = 1",
        "ksub = \"",
        "addresses = [\"10.77.1.2\", \"fd77:1::2\"]",
        "peer = \"10.77.9.2\"",
    ] {
        assert!(terminal.contains(part), "{part} is missing in\n{terminal}");
    }
    bench.ok(&["terminal", "check", "--config", "alice.toml"]);

    let shown = bench.json(&["subscriber", "show", "alice"]);
    assert_eq!(shown["handle"], 1);
    assert_eq!(shown["addresses"], json!(["10.77.1.2", "fd77:1::2"]));
    let peer = &shown["peers"][0];
    assert_eq!(peer["local_id"], "alice@towpath.example");
    assert_eq!(peer["esp_suites"], json!(["aes256gcm16", "aes256-sha256"]));
    assert_eq!(
        (&peer["mode"], &peer["class"]),
        (&json!("transport"), &json!("full"))
    );
    let text = bench.ok(&["subscriber", "show", "alice"]);
    let list = bench.ok(&["subscriber", "list"]);
    let ksub = terminal
        .split("ksub = \"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    for output in [&added, &text, &list, &shown.to_string()] {
        assert!(
            !output.contains(ksub) && !output.contains("horse"),
            "a secret in\n{output}"
        );
    }
    assert!(list.contains("alice") && list.contains("10.77.9.2"), "{list}");

    bench.refuses(
        &[ALICE, &["--terminal-config", "other.toml"]].concat(),
        "cannot be used multiple times",
    );
    let mut again = ALICE.to_vec();
    *again.last_mut().unwrap() = "other.toml";
    bench.refuses(&again, "subscriber `alice` of operator `default` exists already");
    assert!(
        !bench.path("other.toml").exists(),
        "a file for a subscriber that was not added"
    );

    assert!(
        bench
            .ok(&["subscriber", "remove", "alice"])
            .contains("removed subscriber `alice`")
    );
    bench.refuses(&["subscriber", "show", "alice"], "no subscriber `alice`");
    assert_eq!(bench.json(&["subscriber", "list"]), json!([]));
}

#[test]
fn wrong_subscribers_are_refused_by_field_value_and_expectation() {
    let bench = ready();
    let base = ["subscriber", "add", "bob", "--ksub-file", "ksub"];
    bench.write("ksub", &"5a".repeat(32));
    bench.write("short", "5a5a\n");
    bench.write("empty", "\n");
    for (options, message) in [
        (
            &["--address", "10.0.0.0/33"][..],
            "invalid value '10.0.0.0/33' for '--address <PREFIX>'",
        ),
        (
            &["--address", "224.0.0.1"],
            "address: `224.0.0.1`, expected unicast",
        ),
        (&[], "--address <PREFIX>"),
        (
            &["--address", "10.0.0.1", "--peer", "10.0.0.2"],
            "--psk-file <FILE>",
        ),
        (&["--address", "10.0.0.1", "--psk-file", "psk"], "--peer <PREFIX>"),
        (
            &[
                "--address",
                "10.0.0.1",
                "--peer",
                "10.0.0.2",
                "--psk-file",
                "nowhere",
            ],
            "nowhere: cannot be read",
        ),
        (
            &[
                "--address",
                "10.0.0.1",
                "--peer",
                "10.0.0.2",
                "--psk-file",
                "empty",
            ],
            "empty: is empty, expected a pre-shared key",
        ),
        (
            &[
                "--address",
                "10.0.0.1",
                "--peer",
                "10.0.0.2",
                "--psk-file",
                "psk",
                "--esp",
                "des",
            ],
            "expected one of aes128gcm16, aes256gcm16",
        ),
        (
            &[
                "--address",
                "10.0.0.1",
                "--peer",
                "10.0.0.2",
                "--psk-file",
                "psk",
                "--ike",
                "rot13",
            ],
            "invalid value 'rot13' for '--ike",
        ),
        (
            &[
                "--address",
                "10.0.0.1",
                "--peer",
                "10.0.0.2",
                "--psk-file",
                "psk",
                "--class",
                "inspect",
            ],
            "expected one of full, none",
        ),
        (
            &[
                "--address",
                "10.0.0.1",
                "--peer",
                "10.0.0.2",
                "--psk-file",
                "psk",
                "--soft-seconds",
                "9000",
            ],
            "soft limit 9000 s, expected less than the hard limit 3600 s",
        ),
        (
            &["--address", "10.0.0.1", "--telephone", "call me"],
            "telephone: `call me`, expected up to 15 digits",
        ),
        (
            &["--address", "10.0.0.1", "--operator", "no where"],
            "operator `no where`: expected 1 to 64",
        ),
    ] {
        bench.refuses(&[&base[..], options].concat(), message);
    }
    bench.refuses(
        &["subscriber", "add", "bob", "--address", "10.0.0.1"],
        "the subscriber key would be drawn and lost",
    );
    bench.refuses(
        &[
            "subscriber",
            "add",
            "bob",
            "--address",
            "10.0.0.1",
            "--ksub-file",
            "short",
        ],
        "short: expected 64 hex digits",
    );
    assert_eq!(bench.json(&["subscriber", "list"]), json!([]));
}

#[test]
fn a_psk_can_come_from_a_pipe() {
    let bench = ready();
    let mut args: Vec<&str> = ALICE.to_vec();
    let place = args.iter().position(|arg| *arg == "--psk-file").unwrap();
    args.splice(place..place + 2, ["--psk-stdin"]);
    assert_eq!(bench.run(&args, "from a pipe\n").status, 0);
    bench.ok(&["subscriber", "export", "--with-secrets", "--output", "all.toml"]);
    assert!(bench.read("all.toml").contains("psk = \"from a pipe\""));
}

#[test]
fn operators_do_not_see_each_other() {
    let bench = ready();
    for operator in ["north", "south"] {
        let file = format!("{operator}.toml");
        let mut args = ALICE.to_vec();
        *args.last_mut().unwrap() = &file;
        args.extend(["--operator", operator]);
        bench.ok(&args);
    }
    let listed = bench.json(&["subscriber", "list", "--operator", "south"]);
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(listed[0]["operator"], "south");
    bench.refuses(
        &["subscriber", "show", "alice"],
        "name one of north, south with --operator",
    );
    bench.refuses(
        &["subscriber", "show", "alice", "--operator", "east"],
        "of operator `east`",
    );
    bench.ok(&["subscriber", "remove", "alice", "--operator", "north"]);
    assert_eq!(bench.json(&["subscriber", "show", "alice"])["operator"], "south");
}

#[test]
fn exports_are_imported_as_the_same_and_hold_secrets_only_when_asked() {
    let bench = ready();
    bench.ok(ALICE);
    let plain = bench.ok(&["subscriber", "export"]);
    assert!(
        plain.contains("[[subscriber]]") && !plain.contains("ksub") && !plain.contains("psk"),
        "{plain}"
    );
    bench.refuses(&["subscriber", "export", "--with-secrets"], "--output <FILE>");
    for (file, format) in [("all.toml", "toml"), ("all.json", "json")] {
        bench.ok(&[
            "subscriber",
            "export",
            "--with-secrets",
            "--format",
            format,
            "--output",
            file,
        ]);
        assert_eq!(fs::metadata(bench.path(file)).unwrap().mode() & 0o777, 0o600);
        bench.refuses(&["subscriber", "export", "--output", file], "never overwritten");
        let before = bench.json(&["subscriber", "show", "alice"]);
        bench.refuses(&["subscriber", "import", file], "exists already");
        bench.ok(&["subscriber", "import", "--replace", file]);
        assert_eq!(
            bench.json(&["subscriber", "show", "alice"]),
            before,
            "the handle is kept"
        );
        bench.ok(&["subscriber", "remove", "alice"]);
        assert_eq!(
            bench.json(&["subscriber", "import", file]),
            json!({ "added": 1, "replaced": 0 })
        );
        let mut after = bench.json(&["subscriber", "show", "alice"]);
        after["handle"] = before["handle"].clone();
        assert_eq!(after, before);
    }
}

#[test]
fn one_subscriber_may_be_a_json_object_alone() {
    let bench = ready();
    let record = json!({
        "name": "ta",
        "operator": "lab",
        "identification": { "nai": "terminal-a@towpath.example" },
        "addresses": ["10.77.1.2/32", "fd77:1::2/128"],
        "ksub": "5a".repeat(32),
        "peers": [{
            "peer": "10.77.9.2/32",
            "local_id": "terminal-a@towpath.example",
            "remote_id": "peer.towpath.example",
            "ike_proposals": ["aes256gcm16-prfsha256-x25519", "aes128-sha256-modp2048"],
            "esp_suites": ["aes256gcm16", "aes256-sha256"],
            "mode": "tunnel",
            "class": "none",
            "psk": "secret",
        }],
    });
    bench.write("ta.json", &record.to_string());
    bench.ok(&["subscriber", "import", "ta.json"]);
    let shown = bench.json(&["subscriber", "show", "ta"]);
    assert!(shown["handle"].is_u64(), "{shown}");
    assert_eq!(shown["peers"][0]["class"], "none");
}

#[test]
fn a_wrong_import_names_line_and_key_and_changes_nothing() {
    let bench = ready();
    let good = format!(
        "[[subscriber]]\nname = \"a\"\naddresses = [\"10.0.0.1\"]\nksub = \"{}\"\n\n\
         [[subscriber.peers]]\npeer = \"10.0.0.2\"\npsk = \"p\"\n\n",
        "5a".repeat(32)
    );
    let second = good.replace("\"a\"", "\"b\"").replace("10.0.0.1", "10.0.0.9");
    for (from, to, message) in [
        (
            "10.0.0.9",
            "10.0.0.999",
            "file.toml:12:14: key `subscriber[1].addresses[0]`: `10.0.0.999`: expected an IP",
        ),
        (
            "psk = \"p\"",
            "",
            "key `subscriber[1].peers[0].psk`: is missing, expected `psk`, `psk_hex` or `psk_file`",
        ),
        (
            "psk = \"p\"",
            "psk_hex = \"0g\"",
            "key `subscriber[1].peers[0].psk_hex`: expected hex digits",
        ),
        ("ksub", "ksbu", "key `subscriber[1].ksbu`: unknown field `ksbu`"),
        (
            "psk = \"p\"",
            "psk = \"p\"\nclass = \"inspect\"",
            "peers[0].class: `inspect` is not implemented",
        ),
        (
            "\"b\"",
            "\"a\"",
            "subscriber `a` of operator `default` is in the import twice",
        ),
        (
            "peer = \"10.0.0.2\"",
            "peer = \"10.0.0.2\"\nmode = \"fast\"",
            "unknown variant `fast`",
        ),
    ] {
        bench.write("file.toml", &(good.clone() + &second.replace(from, to)));
        bench.refuses(&["subscriber", "import", "file.toml"], message);
    }
    bench.write("file.json", "{\"subscriber\": [\n{\"name\": 7}]}");
    bench.refuses(&["subscriber", "import", "file.json"], "file.json:2:");
    bench.write("file.toml", "# nothing\n");
    bench.refuses(
        &["subscriber", "import", "file.toml"],
        "no subscribers, expected `[[subscriber]]`",
    );
    assert_eq!(bench.json(&["subscriber", "list"]), json!([]));
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

/// `sa add` for alice with these options behind.
fn add_sa<'a>(name: &'a str, spi: [&'a str; 2], suite: &'a str, rest: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec![
        "sa",
        "add",
        name,
        "--subscriber",
        "alice",
        "--terminal",
        "10.77.1.2",
    ];
    args.extend([
        "--peer",
        "10.77.9.2",
        "--spi-in",
        spi[0],
        "--spi-out",
        spi[1],
        "--suite",
        suite,
    ]);
    args.extend(rest);
    args
}

#[test]
fn manual_sas_come_from_a_file_from_standard_input_or_from_hex_and_keys_are_in_no_message() {
    let bench = ready();
    let _daemon = bench.daemon();
    bench.ok(ALICE);
    let key = |fill: &str| fill.repeat(20);
    let [a, b, c, d, e, f] = ["a1", "b2", "c3", "d4", "e5", "f6"].map(key);
    bench.write(
        "keys",
        &format!(
            "# both segments\npeer_in = \"{a}\"\npeer_out = {b}\nsegment_in = \"0x{c}\"\nsegment_out={d}\n"
        ),
    );
    let suite = "aes128gcm16";
    let said = bench.ok(&add_sa("seg", ["1000", "1001"], suite, &["--keys", "keys"]));
    assert!(
        said.contains("`seg` added") && said.contains("class full"),
        "{said}"
    );
    let shared = bench.run(
        &add_sa("shared", ["2000", "2001"], suite, &["--keys", "-"]),
        &format!("in = {e}\nout = {f}\n"),
    );
    assert_eq!(shared.status, 0, "{}", shared.err);
    bench.ok(&add_sa("pass", ["3000", "3001"], suite, &[]));

    let listed = bench.json(&["sa", "list", "--manual"]);
    let classes: Vec<_> = listed.as_array().unwrap().iter().map(|sa| &sa["class"]).collect();
    assert_eq!(classes, ["full", "full", "none"]);
    assert_eq!(
        (&listed[1]["shared"], &listed[1]["keys"]),
        (&json!(true), &Value::Null)
    );
    let short = format!("in={}", &a[2..]);
    let (used_in, used_out) = (format!("in={a}"), format!("out={}", key("77")));
    let (both_in, both_out) = (format!("in={}", key("88")), format!("out={}", key("88")));
    let fresh = ["4000", "4001"];
    for (args, message) in [
        (
            add_sa("x", fresh, suite, &["--key", &short, "--key", &used_out]),
            "key in: is 19 bytes, expected 20",
        ),
        (
            add_sa("x", fresh, suite, &["--key", &used_in, "--key", &used_out]),
            "keys: SA `seg` uses one of them",
        ),
        (
            add_sa("x", fresh, suite, &["--key", &both_in, "--key", &both_out]),
            "two senders have the same cipher key",
        ),
        (
            add_sa("x", fresh, suite, &["--key", &used_out]),
            "keys: out with no class, expected in and out",
        ),
        (
            add_sa("x", fresh, suite, &["--key", "in=xyz"]),
            "key in: expected an even number of hex digits",
        ),
        (
            add_sa("x", fresh, suite, &["--key", "colour=00"]),
            "`colour` is no key's name",
        ),
        (add_sa("x", fresh, "rot13", &[]), "expected one of aes128gcm16"),
        (
            add_sa("x", ["ff", "4001"], suite, &[]),
            "spi_in: is 000000ff, expected 00000100 or more",
        ),
        (
            add_sa("x", fresh, suite, &["--replay-window", "63"]),
            "replay_window: is 63, expected 64 to 4096",
        ),
        (add_sa("seg", fresh, suite, &[]), "name: an SA `seg` exists"),
        (
            add_sa("x", ["1000", "4001"], suite, &[]),
            "spi: an SA with this SPI and destination exists",
        ),
        (
            add_sa(
                "x",
                fresh,
                suite,
                &["--class", "inspect", "--key", &both_in, "--key", &used_out],
            ),
            "class: is inspect, but the one key of aes128gcm16 is the integrity key too",
        ),
    ] {
        let refused = bench.run(&args, "");
        assert_eq!(refused.status, 2, "{args:?}: {}", refused.err);
        assert!(refused.err.contains(message), "{message}\n{}", refused.err);
        for secret in [&a, &b, &e] {
            assert!(!refused.err.contains(secret.as_str()), "{}", refused.err);
        }
    }
    assert_eq!(
        bench.json(&["sa", "list", "--manual"]).as_array().unwrap().len(),
        3
    );
    bench.ok(&["sa", "remove", "pass"]);
    bench.refuses(&["sa", "remove", "pass"], "no manual SA `pass`");
    bench.refuses(&["sa", "export-wireshark"], "permissions.show_keys");
    bench.refuses(
        &["capture", "--sa", "1000", "-w", "file"],
        "permissions.show_keys",
    );
    bench.refuses(
        &[
            "capture",
            "--sa",
            "1000",
            "--decrypted",
            "--side",
            "core",
            "-w",
            "f",
        ],
        "cannot be used with",
    );
}

#[test]
fn policies_are_added_listed_in_order_and_removed() {
    let bench = ready();
    let _daemon = bench.daemon();
    let discard = [
        "policy",
        "add",
        "discard",
        "--order",
        "5",
        "--to",
        "10.0.0.0/8",
        "--destination-port",
        "80-443",
    ];
    let added = bench.json(&discard);
    assert_eq!(
        (&added[0]["id"], &added[0]["action"]),
        (&json!(1), &json!("discard"))
    );
    assert_eq!(added[0]["selector"]["destination_ports"], json!("80-443"));
    bench.ok(&[
        "policy",
        "add",
        "protect",
        "--order",
        "1",
        "--class",
        "none",
        "--from",
        "2001:db8::1-2001:db8::9",
    ]);
    let listed = bench.ok(&["policy", "list"]);
    let (first, second) = (listed.find("protect").unwrap(), listed.find("discard").unwrap());
    assert!(
        first < second && listed.contains("from 2001:db8::1-2001:db8::9"),
        "{listed}"
    );
    assert!(
        bench
            .ok(&["policy", "show", "1"])
            .contains("destination port 80-443")
    );
    for (args, message) in [
        (
            &["policy", "add", "discard", "--from", "10.0.0.9-10.0.0.1"][..],
            "of one family in order",
        ),
        (
            &["policy", "add", "bypass", "--class", "full"],
            "--sa and --class belong to protect",
        ),
        (
            &["policy", "add", "protect", "--sa", "9"],
            "sa: there is no manual SA 9",
        ),
        (
            &["policy", "add", "bypass", "--from", "10.0.0.1", "--to", "::1"],
            "two address families",
        ),
        (
            &["policy", "add", "bypass", "--flow-label", "1048576"],
            "a flow label has 20 bits",
        ),
        (&["policy", "remove", "77"], "there is no policy 77"),
    ] {
        bench.refuses(args, message);
    }
    bench.ok(&["policy", "remove", "1"]);
    assert_eq!(bench.json(&["policy", "list"]).as_array().unwrap().len(), 1);
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
