//! SAs keyed by hand, and policies.

use serde_json::{Value, json};

use crate::{ALICE, ready};

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
