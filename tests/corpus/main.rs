//! The fuzz targets as ordinary tests: every input of the committed corpus, within seconds and without
//! instrumentation.
//!
//! The targets are the same files that libFuzzer runs (`cargo xtask fuzz`); what they use of its crate and of
//! theirs is given here, so that they need no second copy of everything compiled.
#![allow(unreachable_pub)]

extern crate self as libfuzzer_sys;
extern crate self as towpath_fuzz;

use std::fs;
use std::path::{Path, PathBuf};

#[path = "../fuzz/src/ike.rs"]
pub mod ike;
#[path = "../fuzz/src/ipsec.rs"]
pub mod ipsec;
#[path = "../fuzz/src/tcp.rs"]
pub mod tcp;

/// One module and one test for every target.
macro_rules! targets {
    ($($name:ident $file:literal;)+) => {
        $(
            // What makes a program of it has no meaning inside one.
            #[allow(unused_attributes)]
            #[path = $file]
            mod $name;
        )+

        mod corpus {
            $(
                #[test]
                fn $name() {
                    super::replay(stringify!($name), super::$name::run);
                }
            )+
        }

        const TARGETS: &[&str] = &[$(stringify!($name)),+];
    };
}
targets! {
    ah "../fuzz/targets/ah.rs";
    certificate "../fuzz/targets/certificate.rs";
    classify "../fuzz/targets/classify.rs";
    esp "../fuzz/targets/esp.rs";
    fabric "../fuzz/targets/fabric.rs";
    ike_endpoint "../fuzz/targets/ike_endpoint.rs";
    ike_message "../fuzz/targets/ike_message.rs";
    keyx "../fuzz/targets/keyx.rs";
    pcapng "../fuzz/targets/pcapng.rs";
    policy "../fuzz/targets/policy.rs";
    reassembly "../fuzz/targets/reassembly.rs";
    tcp_segment "../fuzz/targets/tcp_segment.rs";
    tcp_snapshot "../fuzz/targets/tcp_snapshot.rs";
    wrapped "../fuzz/targets/wrapped.rs";
}

// Behind the targets, so that they take it by its path, as they take libFuzzer's.
/// Makes a function of a target: bytes as they are, or made into a value as libFuzzer's macro does.
macro_rules! fuzz_target {
    (|$input:ident: &[u8]| $body:expr) => {
        pub fn run($input: &[u8]) {
            $body
        }
    };
    (|$input:ident: $kind:ty| $body:expr) => {
        pub fn run(bytes: &[u8]) {
            let bytes = ::arbitrary::Unstructured::new(bytes);
            let value = <$kind as ::arbitrary::Arbitrary>::arbitrary_take_rest(bytes);
            let Ok($input) = value else {
                return;
            };
            $body
        }
    };
}
pub(crate) use fuzz_target;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Runs every input; what it must not do, the target asserts.
fn replay(target: &str, run: fn(&[u8])) {
    let inputs = files(&folder().join("corpus").join(target));
    assert!(!inputs.is_empty(), "{target} has a corpus");
    for input in inputs {
        let bytes = fs::read(&input).unwrap();
        // Shown only when the test fails: the last line is the input that did it.
        println!("{}", input.display());
        run(&bytes);
    }
}

#[test]
fn every_target_is_among_the_tests() {
    let mut found: Vec<_> = files(&folder().join("targets"))
        .iter()
        .map(|file| file.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    found.sort();
    assert_eq!(found, TARGETS);
}

#[test]
fn the_corpus_is_small_enough_to_commit() {
    let mut bytes = 0;
    for target in TARGETS {
        let inputs = files(&folder().join("corpus").join(target));
        assert!(inputs.len() < 200, "{target}: {}", inputs.len());
        bytes += inputs
            .iter()
            .map(|input| fs::metadata(input).unwrap().len())
            .sum::<u64>();
    }
    assert!(bytes < 1 << 20, "{bytes} bytes");
}
