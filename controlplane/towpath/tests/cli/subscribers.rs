//! Subscribers: added, shown, imported, exported, and refused.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::json;

use crate::{ALICE, ready};

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
