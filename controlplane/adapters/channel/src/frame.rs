//! Frames: a length of four bytes, big-endian, and as many bytes. Length 0 is a heartbeat.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

/// Longest message, bytes. A subscriber with everything it may have stays far below.
pub(crate) const MAX_FRAME: usize = 4 << 20;

/// A message: it may hold keys.
pub(crate) type Bytes = Zeroizing<Vec<u8>>;

/// Writes one message; an empty one is a heartbeat.
pub(crate) async fn write<W: AsyncWrite + Unpin>(to: &mut W, message: &[u8]) -> io::Result<()> {
    let length = u32::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    to.write_all(&length.to_be_bytes()).await?;
    to.write_all(message).await
}

/// Reads one message; an empty one is a heartbeat.
pub(crate) async fn read<R: AsyncRead + Unpin>(from: &mut R) -> io::Result<Bytes> {
    let length = usize::try_from(from.read_u32().await?).unwrap_or(usize::MAX);
    if length > MAX_FRAME {
        let message = format!("message of {length} bytes, expected at most {MAX_FRAME}");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let mut message = Zeroizing::new(vec![0; length]);
    from.read_exact(&mut message).await?;
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_is_read_and_too_much_is_refused_before_it_is_stored() {
        let mut wire = Vec::new();
        write(&mut wire, b"one").await.unwrap();
        write(&mut wire, b"").await.unwrap();
        let mut from = wire.as_slice();
        assert_eq!(read(&mut from).await.unwrap().as_slice(), b"one");
        assert!(read(&mut from).await.unwrap().is_empty());
        assert!(read(&mut from).await.is_err());
        let huge = u32::MAX.to_be_bytes();
        assert_eq!(
            read(&mut huge.as_slice()).await.unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
