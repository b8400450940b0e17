//! Keys of manual SAs, as people write and read them.

use std::collections::BTreeMap;
use std::io::Read;

use towpath_base::Spi;
use towpath_base::key::Key;
use towpath_base::manual::{AhForm, AhKeys, ManualKeys, Protection, Segments};
use towpath_base::sa::{Class, EspKeys, EspSuite};
use towpath_telemetry::admin::ManualSaInfo;
use zeroize::Zeroizing;

use super::Add;
use crate::failure::{Failure, Outcome};
use crate::output;

/// Longest key file, bytes.
const MAX_KEY_FILE: u64 = 16 << 10;

/// Names of keys; those of AH have `ah_` in front.
const NAMES: [&str; 6] = ["in", "out", "peer_in", "peer_out", "segment_in", "segment_out"];

/// Keys by name.
struct Found(BTreeMap<String, Zeroizing<Vec<u8>>>);

/// Which of the names are there, for one protocol.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Given {
    Nothing,
    Ends,
    Segments,
    Other,
}

impl Found {
    fn given(&self, prefix: &str) -> Given {
        let own = |name: &str| match prefix {
            "" if name.starts_with("ah_") => None,
            prefix => name.strip_prefix(prefix).map(str::to_owned),
        };
        let names: Vec<String> = self.0.keys().filter_map(|name| own(name)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        match names.as_slice() {
            [] => Given::Nothing,
            ["in", "out"] => Given::Ends,
            ["peer_in", "peer_out", "segment_in", "segment_out"] => Given::Segments,
            _ => Given::Other,
        }
    }

    fn bytes(&self, name: &str) -> &[u8] {
        self.0.get(name).map(|bytes| bytes.as_slice()).unwrap_or_default()
    }

    fn esp(&self, suite: EspSuite, name: &str) -> Outcome<EspKeys> {
        let bytes = self.bytes(name);
        let expected = suite.key_material_len();
        EspKeys::split(suite, bytes).ok_or_else(|| {
            let given = bytes.len();
            Failure::usage(format!(
                "key {name}: is {given} bytes, expected {expected} for {suite}"
            ))
        })
    }

    fn cipher(&self, suite: EspSuite, name: &str) -> Outcome<Key> {
        let expected = suite.cipher_key_len() + suite.salt_len();
        let why = "class inspect takes the cipher key alone";
        self.exact(name, expected, why)
    }

    fn ah(&self, form: AhForm, name: &str) -> Outcome<Key> {
        self.exact(name, form.integrity.key_len(), "the length of the hash")
    }

    fn exact(&self, name: &str, expected: usize, why: &str) -> Outcome<Key> {
        let bytes = self.bytes(name);
        let key = Key::from_slice(bytes).filter(|key| key.len() == expected);
        key.ok_or_else(|| {
            let given = bytes.len();
            Failure::usage(format!(
                "key {name}: is {given} bytes, expected {expected}: {why}"
            ))
        })
    }

    fn esp_segments(&self, suite: EspSuite) -> Outcome<Segments<EspKeys>> {
        Ok(Segments {
            peer_in: self.esp(suite, "peer_in")?,
            peer_out: self.esp(suite, "peer_out")?,
            segment_in: self.esp(suite, "segment_in")?,
            segment_out: self.esp(suite, "segment_out")?,
        })
    }

    fn ah_segments(&self, form: AhForm) -> Outcome<Segments<Key>> {
        Ok(Segments {
            peer_in: self.ah(form, "ah_peer_in")?,
            peer_out: self.ah(form, "ah_peer_out")?,
            segment_in: self.ah(form, "ah_segment_in")?,
            segment_out: self.ah(form, "ah_segment_out")?,
        })
    }

    /// They do not fit what is asked for.
    fn refused(&self, class: Option<Class>, expected: &str) -> Failure {
        let class = class.map_or("no class".into(), |class| format!("class {class}"));
        let names: Vec<&str> = self.0.keys().map(String::as_str).collect();
        let given = if names.is_empty() {
            "none given".into()
        } else {
            names.join(", ")
        };
        Failure::usage(format!("keys: {given} with {class}, expected {expected}"))
    }
}

/// What the SA is protected with, from the options, the key file and the command line.
pub(super) fn protection(args: &Add) -> Outcome<Protection> {
    let mut found = BTreeMap::new();
    if let Some(path) = &args.keys {
        let (what, text) = read(path)?;
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if !line.is_empty() {
                let place = format!("{what}, line {}", number + 1);
                take(&mut found, &place, line)?;
            }
        }
    }
    for text in &args.key {
        take(&mut found, "--key", text)?;
    }
    let found = Found(found);
    let form = args.ah.map(|integrity| AhForm {
        integrity,
        align8: args.ah_align8,
    });
    match (args.suite, form) {
        (Some(suite), None) => esp(&found, args.class, suite),
        (None, Some(form)) => ah(&found, args.class, form),
        (Some(suite), Some(form)) => both(&found, args, suite, form),
        (None, None) => Err(Failure::usage(
            "--suite: is missing, and so is --ah; expected one",
        )),
    }
}

fn esp(found: &Found, class: Option<Class>, suite: EspSuite) -> Outcome<Protection> {
    let keys = match (found.given(""), found.given("ah_"), class) {
        (Given::Nothing, Given::Nothing, None | Some(Class::None)) => ManualKeys::None,
        (Given::Ends, Given::Nothing, Some(Class::Inspect)) => ManualKeys::Inspect {
            cipher_in: found.cipher(suite, "in")?,
            cipher_out: found.cipher(suite, "out")?,
        },
        (Given::Ends, Given::Nothing, None | Some(Class::Full)) => ManualKeys::Shared {
            keys_in: found.esp(suite, "in")?,
            keys_out: found.esp(suite, "out")?,
        },
        (Given::Segments, Given::Nothing, None | Some(Class::Full)) => {
            let Segments {
                peer_in,
                peer_out,
                segment_in,
                segment_out,
            } = found.esp_segments(suite)?;
            ManualKeys::Segments {
                peer_in,
                peer_out,
                segment_in,
                segment_out,
            }
        }
        (_, _, class) => {
            let expected = "in and out; or peer_in, peer_out, segment_in and segment_out (class full); or none (class none)";
            return Err(found.refused(class, expected));
        }
    };
    Ok(Protection::Esp { suite, keys })
}

fn ah(found: &Found, class: Option<Class>, form: AhForm) -> Outcome<Protection> {
    let keys = match (found.given(""), found.given("ah_"), class) {
        (Given::Nothing, Given::Nothing, None | Some(Class::None)) => AhKeys::None,
        (Given::Nothing, Given::Ends, None | Some(Class::Full)) => AhKeys::Shared {
            key_in: found.ah(form, "ah_in")?,
            key_out: found.ah(form, "ah_out")?,
        },
        (Given::Nothing, Given::Segments, None | Some(Class::Full)) => {
            AhKeys::Segments(found.ah_segments(form)?)
        }
        (_, _, class) => {
            let expected = "ah_in and ah_out; or ah_peer_in, ah_peer_out, ah_segment_in and ah_segment_out (class \
                            full); or none (class none); AH hides nothing, so there is no class inspect";
            return Err(found.refused(class, expected));
        }
    };
    Ok(Protection::Ah { form, keys })
}

fn both(found: &Found, args: &Add, suite: EspSuite, form: AhForm) -> Outcome<Protection> {
    match (found.given(""), found.given("ah_"), args.class) {
        (Given::Nothing, Given::Nothing, None | Some(Class::None)) => {
            // Without keys the gateway sees AH alone.
            let keys = AhKeys::None;
            Ok(Protection::Ah { form, keys })
        }
        (Given::Segments, Given::Segments, None | Some(Class::Full)) => Ok(Protection::EspInAh {
            suite,
            keys: found.esp_segments(suite)?,
            spi_in: Spi(args.esp_spi_in.unwrap_or(args.spi_in)),
            spi_out: Spi(args.esp_spi_out.unwrap_or(args.spi_out)),
            form,
            ah: found.ah_segments(form)?,
        }),
        (_, _, class) => {
            let expected = "peer_in, peer_out, segment_in, segment_out, and the same with ah_ in front (class full); or \
                            none (class none); the gateway does not share end-to-end keys of ESP inside AH";
            Err(found.refused(class, expected))
        }
    }
}

/// The keys in the form of a key file.
pub(super) fn shown(sa: &ManualSaInfo) -> String {
    let lines = sa.keys.as_ref().map(lines).unwrap_or_default();
    let lines: Vec<String> = lines
        .iter()
        .map(|(name, hex)| format!("{name} = \"{hex}\"\n"))
        .collect();
    format!("\n# {}\n{}", sa.name, lines.concat())
}

fn lines(protection: &Protection) -> Vec<(&'static str, String)> {
    let esp = |keys: &EspKeys| output::hex(keys.cipher.expose()) + &output::hex(keys.integrity.expose());
    let hex = |key: &Key| output::hex(key.expose());
    let ah = |keys: &Segments<Key>| {
        vec![
            ("ah_peer_in", hex(&keys.peer_in)),
            ("ah_peer_out", hex(&keys.peer_out)),
            ("ah_segment_in", hex(&keys.segment_in)),
            ("ah_segment_out", hex(&keys.segment_out)),
        ]
    };
    match protection {
        Protection::Esp { keys, .. } => match keys {
            ManualKeys::None => Vec::new(),
            ManualKeys::Segments {
                peer_in,
                peer_out,
                segment_in,
                segment_out,
            } => vec![
                ("peer_in", esp(peer_in)),
                ("peer_out", esp(peer_out)),
                ("segment_in", esp(segment_in)),
                ("segment_out", esp(segment_out)),
            ],
            ManualKeys::Shared { keys_in, keys_out } => vec![("in", esp(keys_in)), ("out", esp(keys_out))],
            ManualKeys::Inspect {
                cipher_in,
                cipher_out,
            } => vec![("in", hex(cipher_in)), ("out", hex(cipher_out))],
        },
        Protection::Ah { keys, .. } => match keys {
            AhKeys::None => Vec::new(),
            AhKeys::Segments(keys) => ah(keys),
            AhKeys::Shared { key_in, key_out } => vec![("ah_in", hex(key_in)), ("ah_out", hex(key_out))],
        },
        Protection::EspInAh { keys, ah: outer, .. } => {
            let mut lines = vec![
                ("peer_in", esp(&keys.peer_in)),
                ("peer_out", esp(&keys.peer_out)),
                ("segment_in", esp(&keys.segment_in)),
                ("segment_out", esp(&keys.segment_out)),
            ];
            lines.extend(ah(outer));
            lines
        }
    }
}

fn read(path: &std::path::Path) -> Outcome<(String, Zeroizing<String>)> {
    let mut text = Zeroizing::new(String::new());
    let what = if path.as_os_str() == "-" {
        "standard input".to_owned()
    } else {
        path.display().to_string()
    };
    let outcome = if path.as_os_str() == "-" {
        std::io::stdin()
            .lock()
            .take(MAX_KEY_FILE)
            .read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|file| file.take(MAX_KEY_FILE).read_to_string(&mut text))
    };
    outcome.map_err(|error| Failure::usage(format!("{what}: cannot be read: {error}")))?;
    Ok((what, text))
}

/// `NAME = "HEX"`, quotes optional. The value is in no message.
fn take(found: &mut BTreeMap<String, Zeroizing<Vec<u8>>>, place: &str, text: &str) -> Outcome {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| Failure::usage(format!("{place}: expected NAME = \"HEX\"")))?;
    let (name, value) = (name.trim(), value.trim().trim_matches('"'));
    if !NAMES.contains(&name.strip_prefix("ah_").unwrap_or(name)) {
        return Err(Failure::usage(format!(
            "{place}: `{}` is no key's name, expected {}, with ah_ in front for AH",
            name.escape_debug(),
            NAMES.join(", ")
        )));
    }
    let value = value.strip_prefix("0x").unwrap_or(value);
    let bytes = crate::subscriber::unhex(value).ok_or_else(|| {
        Failure::usage(format!(
            "{place}: key {name}: expected an even number of hex digits"
        ))
    })?;
    if found.insert(name.to_owned(), bytes).is_some() {
        return Err(Failure::usage(format!("{place}: key {name} is given twice")));
    }
    Ok(())
}
