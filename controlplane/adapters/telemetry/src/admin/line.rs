//! Lines of JSON with a bound. Buffers are wiped: requests carry secrets.

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufRead, AsyncBufReadExt};
use zeroize::Zeroizing;

use super::MAX_LINE;

/// A line that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("line longer than {MAX_LINE} bytes")]
    TooLong,
    #[error("connection closed in the middle of a line")]
    CutShort,
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// `value` as one line, line feed included.
pub(super) fn encode(value: &impl Serialize) -> serde_json::Result<Zeroizing<Vec<u8>>> {
    let mut line = Zeroizing::new(Vec::with_capacity(4096));
    serde_json::to_writer(&mut *line, value)?;
    line.push(b'\n');
    Ok(line)
}

/// What `line` says.
pub(super) fn decode<T: DeserializeOwned>(line: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(line)
}

/// Reads one line without its line feed; `None` at the end of the stream.
pub(super) async fn read(
    input: &mut (impl AsyncBufRead + Unpin),
) -> Result<Option<Zeroizing<Vec<u8>>>, LineError> {
    let mut line = Zeroizing::new(Vec::new());
    loop {
        let available = input.fill_buf().await?;
        if available.is_empty() {
            return if line.is_empty() {
                Ok(None)
            } else {
                Err(LineError::CutShort)
            };
        }
        let end = available.iter().position(|byte| *byte == b'\n');
        let (part, used) = match end {
            Some(end) => (available.get(..end).unwrap_or_default(), end + 1),
            None => (available, available.len()),
        };
        if line.len() + part.len() > MAX_LINE {
            return Err(LineError::TooLong);
        }
        line.extend_from_slice(part);
        input.consume(used);
        if end.is_some() {
            return Ok(Some(line));
        }
    }
}
