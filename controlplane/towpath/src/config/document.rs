//! A TOML text that can say where each of its keys stands.

use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::Path;

use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

/// Largest file read, bytes.
const MAX_FILE: u64 = 256 << 20;

/// One clear message about a file: where, which key, what is wrong, what was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfigError {
    /// The file.
    file: String,
    /// Line from 1, column from 1, and the line's text.
    place: Option<(usize, usize, String)>,
    /// Characters to underline.
    width: usize,
    /// Dotted key (`gateway.port[0].name`); empty when the text is not TOML.
    key: String,
    /// What is wrong and what was expected.
    message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some((line, column, _)) = &self.place {
            write!(f, ":{line}:{column}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": key `{}`", self.key)?;
        }
        write!(f, ": {}", self.message)?;
        if let Some((line, column, text)) = &self.place {
            let margin = line.to_string().len();
            write!(f, "\n{:margin$} |\n{line} | {text}\n", "")?;
            let (before, under) = (" ".repeat(column - 1), "^".repeat(self.width.max(1)));
            write!(f, "{:margin$} | {before}{under}", "")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// A file that was read.
#[derive(Debug)]
pub(crate) struct Document {
    name: String,
    text: String,
}

impl Document {
    /// Reads `path`, `-` for standard input.
    pub(crate) fn open(path: &Path) -> Result<Self, ConfigError> {
        let fail = |message: String| ConfigError {
            file: path.display().to_string(),
            place: None,
            width: 0,
            key: String::new(),
            message,
        };
        if path == Path::new("-") {
            let text = std::io::read_to_string(std::io::stdin()).map_err(|error| fail(error.to_string()))?;
            return Ok(Self::from_text("standard input", text));
        }
        let size = fs::metadata(path)
            .map_err(|error| fail(format!("cannot be read: {error}")))?
            .len();
        if size > MAX_FILE {
            return Err(fail(format!("is {size} bytes, expected at most {MAX_FILE}")));
        }
        let text = fs::read_to_string(path).map_err(|error| fail(format!("cannot be read: {error}")))?;
        Ok(Self {
            name: path.display().to_string(),
            text,
        })
    }

    /// `text`, called `name` in errors.
    pub(crate) fn from_text(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            text: text.into(),
        }
    }

    /// The text.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The name in errors.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Reads the text as TOML.
    pub(crate) fn read<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        let deserializer = toml::Deserializer::parse(&self.text)
            .map_err(|error| self.error("", error.span(), error.message()))?;
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            let path = error.path().to_string();
            let key = if path == "." { "" } else { &path };
            // The parser marks the whole array or table where it cannot say which element.
            let marked = error.inner().span();
            let closer = self.locate(key).filter(|exact| {
                marked
                    .as_ref()
                    .is_none_or(|marked| marked.start <= exact.start && exact.end <= marked.end)
            });
            self.error(key, closer.or(marked), error.inner().message())
        })
    }

    /// Reads the text as JSON.
    pub(crate) fn read_json<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        let mut deserializer = serde_json::Deserializer::from_str(&self.text);
        let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            let path = error.path().to_string();
            let key = if path == "." { "" } else { &path };
            let (line, column) = (error.inner().line(), error.inner().column());
            let text = error.inner().to_string();
            // serde_json appends the place, which is in front of our message.
            let message = text
                .rsplit_once(" at line ")
                .map_or(text.as_str(), |(message, _)| message);
            self.error(key, self.offset(line, column), message)
        })?;
        deserializer.end().map_err(|error| {
            let place = self.offset(error.line(), error.column());
            self.error("", place, "expected the end of the file")
        })?;
        Ok(value)
    }

    fn offset(&self, line: usize, column: usize) -> Option<Range<usize>> {
        let before: usize = self
            .text
            .split_inclusive('\n')
            .take(line.checked_sub(1)?)
            .map(str::len)
            .sum();
        let start = (before + column.saturating_sub(1)).min(self.text.len());
        Some(start..start)
    }

    /// An error about the value of `key`, a dotted path with indices as in `gateway.port[0].name`.
    pub(crate) fn invalid(&self, key: &str, message: impl Into<String>) -> ConfigError {
        self.error(key, self.locate(key), &message.into())
    }

    fn error(&self, key: &str, span: Option<Range<usize>>, message: &str) -> ConfigError {
        let (place, width) =
            match span.filter(|span| !(span.is_empty() && span.start == 0 && self.text.is_empty())) {
                None => (None, 0),
                Some(span) => {
                    let (place, width) = self.place(span);
                    (Some(place), width)
                }
            };
        ConfigError {
            file: self.name.clone(),
            place,
            width,
            key: key.to_owned(),
            message: if is_secret(key) && !message.contains("expected `") && !message.starts_with("expected")
            {
                "is not valid (value not shown), expected text".to_owned()
            } else {
                // Messages of the parser may have several lines; one is enough.
                message.trim().replace('\n', ", ")
            },
        }
    }

    fn place(&self, span: Range<usize>) -> ((usize, usize, String), usize) {
        let before = self.text.get(..span.start).unwrap_or(&self.text);
        let line_start = before.rfind('\n').map_or(0, |end| end + 1);
        let rest = self.text.get(line_start..).unwrap_or_default();
        let line = rest.lines().next().unwrap_or_default();
        let column = before.get(line_start..).map_or(0, |text| text.chars().count());
        let marked = self.text.get(span).unwrap_or_default();
        let width = marked.lines().next().map_or(1, |text| text.chars().count());
        let number = before.matches('\n').count() + 1;
        // A control character could play tricks with the reader's terminal, a long line fill it.
        let shown = if ["ksub", "psk"].iter().any(|secret| line.contains(secret)) {
            "[a line with a secret, not shown]".to_owned()
        } else {
            line.chars()
                .map(|c| if c.is_control() { ' ' } else { c })
                .take(200)
                .collect()
        };
        ((number, column + 1, shown), width.min(200))
    }

    /// Where the value of `key` stands, or the closest of its parents that is there.
    fn locate(&self, key: &str) -> Option<Range<usize>> {
        let table = DeTable::parse(&self.text).ok()?;
        let mut span = None;
        let mut value: Option<&DeValue<'_>> = None;
        for part in key.split(['.', '[']).map(|part| part.trim_end_matches(']')) {
            let next = match (value, part.parse::<usize>()) {
                (None, _) => table.get_ref().get(part),
                (Some(DeValue::Array(items)), Ok(index)) => items.get(index),
                (Some(DeValue::Table(inner)), _) => inner.get(part),
                _ => None,
            };
            let Some(next) = next else { break };
            span = Some(next.span());
            value = Some(next.get_ref());
        }
        span
    }
}

/// Whether the value of `key` must not be shown.
fn is_secret(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or(key);
    ["ksub", "psk", "psk_hex"].contains(&last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn error(text: &str) -> String {
        Document::from_text("t.toml", text)
            .read::<Config>()
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_wrong_value_is_shown_where_it_stands() {
        assert_eq!(
            error("[gateway]\n\n[[gateway.port]]\nname = \"a\"\nrole = \"acces\"\n"),
            "t.toml:5:8: key `gateway.port[0].role`: unknown variant `acces`, expected `access` or `core`\n  |\n\
             5 | role = \"acces\"\n  |        ^^^^^^^"
        );
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let error = error("[admin]\nsokcet = 1\n");
        assert!(
            error.starts_with("t.toml:2:1: key `admin.sokcet`: unknown field `sokcet`, expected `socket`"),
            "{error}"
        );
    }

    #[test]
    fn a_wrong_type_and_broken_toml_name_the_line() {
        assert!(error("[log]\nfilter = 3\n").starts_with("t.toml:2:10: key `log.filter`: invalid type"));
        assert!(error("[log\n").starts_with("t.toml:1:5: "), "{}", error("[log\n"));
    }

    #[test]
    fn values_are_found_by_their_key() {
        let document = Document::from_text("t", "[gateway]\nport = [{ name = \"x\" }, { name = \"y\" }]\n");
        let shown = document.invalid("gateway.port[1].name", "bad").to_string();
        assert!(
            shown.starts_with("t:2:34: key `gateway.port[1].name`: bad"),
            "{shown}"
        );
    }

    #[test]
    fn errors_in_json_name_line_and_key() {
        let document = Document::from_text("t.json", "{\n  \"log\": { \"format\": \"xml\" }\n}\n");
        let shown = document.read_json::<Config>().unwrap_err().to_string();
        assert!(
            shown.starts_with("t.json:2:") && shown.contains("key `log.format`: unknown variant `xml`"),
            "{shown}"
        );
        let more = Document::from_text("t", "{} {}")
            .read_json::<Config>()
            .unwrap_err()
            .to_string();
        assert!(more.contains("expected the end of the file"), "{more}");
    }

    #[test]
    fn secrets_are_not_shown() {
        #[derive(Debug, serde::Deserialize)]
        struct Secret {
            #[expect(dead_code, reason = "only whether it can be read counts")]
            psk: String,
        }
        let document = Document::from_text("t", "psk = 271828\n");
        let shown = document.read::<Secret>().unwrap_err().to_string();
        assert!(
            shown.contains("key `psk`") && !shown.contains("271828"),
            "{shown}"
        );
    }
}
