//! Distinguished names (RFC 5280 §4.1.2.4) between DER and the text people configure: `C=CH, O=Towpath, CN=host`.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt::{self, Write};

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_IDENTIFIER: u8 = 0x06;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;
/// UTF8String, PrintableString, TeletexString, IA5String: compared as text.
const TEXT: [u8; 4] = [UTF8_STRING, PRINTABLE_STRING, 0x14, IA5_STRING];

/// Most attributes of one name.
const MAX_ATTRIBUTES: usize = 64;

/// Attribute types: short name, and the content of the object identifier.
const TYPES: &[(&str, &[u8])] = &[
    ("CN", &[0x55, 4, 3]),
    ("SN", &[0x55, 4, 4]),
    ("serialNumber", &[0x55, 4, 5]),
    ("C", &[0x55, 4, 6]),
    ("L", &[0x55, 4, 7]),
    ("ST", &[0x55, 4, 8]),
    ("STREET", &[0x55, 4, 9]),
    ("O", &[0x55, 4, 10]),
    ("OU", &[0x55, 4, 11]),
    ("T", &[0x55, 4, 12]),
    ("G", &[0x55, 4, 42]),
    ("I", &[0x55, 4, 43]),
    ("dnQualifier", &[0x55, 4, 46]),
    ("DC", &[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25]),
    ("UID", &[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1]),
    ("E", &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1]),
];

/// Takes one element of a DER encoding off the front: tag and content. Definite, minimal lengths below 64 KiB only.
pub fn take<'a>(bytes: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (&[tag, first], mut rest) = bytes.split_first_chunk::<2>()?;
    let len = match first {
        0..=0x7f => usize::from(first),
        0x81 => {
            let (&[len], tail) = rest.split_first_chunk()?;
            rest = tail;
            usize::from(len).checked_sub(0x80)? + 0x80
        }
        0x82 => {
            let (len, tail) = rest.split_first_chunk()?;
            rest = tail;
            let len = usize::from(u16::from_be_bytes(*len));
            (len > 0xff).then_some(len)?
        }
        _ => return None,
    };
    let (content, tail) = rest.split_at_checked(len)?;
    *bytes = tail;
    Some((tag, content))
}

fn expect<'a>(bytes: &mut &'a [u8], wanted: u8) -> Option<&'a [u8]> {
    take(bytes)
        .filter(|(tag, _)| *tag == wanted)
        .map(|(_, content)| content)
}

/// Appends one element.
fn put(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
    out.push(tag);
    match content.len() {
        len @ 0..=0x7f => out.push(len as u8),
        len @ 0x80..=0xff => out.extend_from_slice(&[0x81, len as u8]),
        len => {
            out.push(0x82);
            out.extend_from_slice(&u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    out.extend_from_slice(content);
}

/// One attribute: object identifier, tag and content of its value, and whether it starts a new RDN.
struct Attribute<'a> {
    oid: &'a [u8],
    tag: u8,
    value: &'a [u8],
    first: bool,
}

/// `None` if the bytes are not a name.
fn attributes(der: &[u8]) -> Option<Vec<Attribute<'_>>> {
    let mut rest = der;
    let mut names = expect(&mut rest, SEQUENCE)?;
    if !rest.is_empty() {
        return None;
    }
    let mut attributes = Vec::new();
    while !names.is_empty() {
        let mut set = expect(&mut names, SET)?;
        let mut first = true;
        while !set.is_empty() {
            let mut pair = expect(&mut set, SEQUENCE)?;
            let oid = expect(&mut pair, OBJECT_IDENTIFIER)?;
            let (tag, value) = take(&mut pair)?;
            if !pair.is_empty() || attributes.len() == MAX_ATTRIBUTES {
                return None;
            }
            attributes.push(Attribute {
                oid,
                tag,
                value,
                first,
            });
            first = false;
        }
        if first {
            return None;
        }
    }
    Some(attributes)
}

/// Whether the bytes are a name.
pub fn is_name(der: &[u8]) -> bool {
    attributes(der).is_some()
}

/// Text without regard to case and repeated blanks (RFC 5280 §7.1, RFC 4518 in short).
fn same_text(a: &[u8], b: &[u8]) -> bool {
    fn folded(text: &[u8]) -> impl Iterator<Item = u8> + '_ {
        let text = text.trim_ascii();
        text.iter().enumerate().filter_map(|(at, byte)| {
            let repeated = *byte == b' ' && at > 0 && text.get(at - 1) == Some(&b' ');
            (!repeated).then_some(byte.to_ascii_lowercase())
        })
    }
    folded(a).eq(folded(b))
}

fn same_attribute(a: &Attribute<'_>, b: &Attribute<'_>) -> bool {
    let value = if TEXT.contains(&a.tag) && TEXT.contains(&b.tag) {
        same_text(a.value, b.value)
    } else {
        a.tag == b.tag && a.value == b.value
    };
    a.oid == b.oid && a.first == b.first && value
}

/// Whether two encodings are of one name; case and kind of string do not matter. Bytes that are not a name match
/// nothing.
pub fn same(a: &[u8], b: &[u8]) -> bool {
    match (attributes(a), attributes(b)) {
        (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| same_attribute(a, b)),
        _ => false,
    }
}

/// Whether `name` lies in the subtree `base`: its first RDNs are those of `base` (RFC 5280 §4.2.1.10).
pub fn within(name: &[u8], base: &[u8]) -> bool {
    match (attributes(name), attributes(base)) {
        (Some(name), Some(base)) => {
            let starts =
                name.len() >= base.len() && name.iter().zip(&base).all(|(a, b)| same_attribute(a, b));
            // Not in the middle of an RDN of several attributes.
            starts && name.get(base.len()).is_none_or(|next| next.first)
        }
        _ => false,
    }
}

/// Writes the text of a name; bytes that are not one as hex digits after `#`. Control characters are escaped.
pub fn write(der: &[u8], f: &mut impl Write) -> fmt::Result {
    let Some(attributes) = attributes(der) else {
        f.write_char('#')?;
        return der.iter().try_for_each(|byte| write!(f, "{byte:02x}"));
    };
    for (index, attribute) in attributes.iter().enumerate() {
        if index > 0 {
            f.write_str(if attribute.first { ", " } else { "+" })?;
        }
        match TYPES.iter().find(|(_, oid)| *oid == attribute.oid) {
            Some((name, _)) => f.write_str(name)?,
            None => attribute
                .oid
                .iter()
                .try_for_each(|byte| write!(f, "{byte:02x}"))?,
        }
        f.write_char('=')?;
        for character in String::from_utf8_lossy(attribute.value).chars() {
            match character {
                ',' | '+' | '=' | '\\' => write!(f, "\\{character}")?,
                other => write!(f, "{}", other.escape_debug())?,
            }
        }
    }
    Ok(())
}

/// Reads `C=CH, O=Towpath, CN=host`: types as in `TYPES`, commas in values as `\,`. `None` if it is not a name.
pub fn parse(text: &str) -> Option<Vec<u8>> {
    let mut names = Vec::new();
    for part in split(text) {
        let (kind, value) = part.split_once('=')?;
        let (kind, value) = (kind.trim(), unescape(value.trim()));
        let (name, oid) = TYPES.iter().find(|(name, _)| name.eq_ignore_ascii_case(kind))?;
        if value.is_empty() {
            return None;
        }
        let printable = value
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b" '()+,-./:=?".contains(&byte));
        let tag = match *name {
            "E" | "DC" => IA5_STRING,
            _ if printable => PRINTABLE_STRING,
            _ => UTF8_STRING,
        };
        let (mut pair, mut set) = (Vec::new(), Vec::new());
        put(&mut pair, OBJECT_IDENTIFIER, oid);
        put(&mut pair, tag, value.as_bytes());
        put(&mut set, SEQUENCE, &pair);
        put(&mut names, SET, &set);
    }
    let mut der = Vec::new();
    put(&mut der, SEQUENCE, &names);
    (!names.is_empty() && is_name(&der)).then_some(der)
}

/// Parts between commas that are not escaped.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, character) in text.char_indices() {
        if character == ',' && !escaped {
            parts.extend(text.get(start..at));
            start = at + 1;
        }
        escaped = character == '\\' && !escaped;
    }
    parts.extend(text.get(start..));
    parts
}

fn unescape(text: &str) -> String {
    let (mut out, mut escaped) = (String::new(), false);
    for character in text.chars() {
        if character == '\\' && !escaped {
            escaped = true;
            continue;
        }
        escaped = false;
        out.push(character);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(der: &[u8]) -> String {
        let mut text = String::new();
        write(der, &mut text).unwrap();
        text
    }

    #[test]
    fn names_are_read_back() {
        for name in [
            "CN=host",
            "C=CH, O=Towpath, CN=a.test",
            "O=Ham\\, Eggs, CN=x",
            "DC=example, UID=7, E=a@b.c",
        ] {
            assert_eq!(text(&parse(name).unwrap()), name);
        }
        assert_eq!(
            parse("CN=ab").unwrap(),
            [0x30, 13, 0x31, 11, 0x30, 9, 6, 3, 0x55, 4, 3, 0x13, 2, b'a', b'b']
        );
        for bad in ["", "host", "CN=", "XX=1", "CN=a,", "=a"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn case_and_kind_of_string_do_not_matter() {
        let mut other = parse("C=ch, CN=Host  One").unwrap();
        assert!(same(&other, &parse("C=CH, CN=host one").unwrap()));
        let at = other.iter().rposition(|byte| *byte == PRINTABLE_STRING).unwrap();
        other[at] = UTF8_STRING;
        assert!(same(&other, &parse("C=CH, CN=host one").unwrap()));
        assert!(!same(&other, &parse("CN=host one, C=CH").unwrap()));
        assert!(!same(b"junk", b"junk"));
    }

    #[test]
    fn a_subtree_is_a_prefix_of_whole_rdns() {
        let [name, base, other] = ["C=CH, O=X, CN=y", "C=ch, O=x", "O=X"].map(|text| parse(text).unwrap());
        assert!(within(&name, &base) && !within(&name, &other) && !within(&base, &name));
    }

    #[test]
    fn hostile_bytes_are_no_names() {
        let name = parse("C=CH, O=Towpath, CN=a.test").unwrap();
        for len in 0..name.len() {
            assert!(!is_name(&name[..len]));
        }
        assert!(!is_name(&[&name[..], &[0]].concat()));
        assert!(!is_name(&[0x30, 0x84, 0xff, 0xff, 0xff, 0xff]));
        assert!(!is_name(&[0x30, 0x80, 0, 0]));
        assert!(!is_name(&[0x30, 2, 0x31, 0]));
        assert_eq!(text(b"\n"), "#0a");
    }
}
