//! The command line's side of the admin socket; blocking.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use super::{AdminError, Event, MAX_LINE, Reply, Request, Response, line};

/// How long a daemon may take to answer.
const ANSWER: Duration = Duration::from_secs(30);

/// A request that was not answered with a [`Reply`].
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The daemon refused or failed.
    #[error(transparent)]
    Refused(#[from] AdminError),
    /// The socket failed.
    #[error("admin socket {path}: {error}")]
    Io {
        /// The socket.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// The daemon answered something else: it is of another version.
    #[error("the daemon's answer is not understood (is it of another version?): {0}")]
    Protocol(String),
}

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
    path: PathBuf,
}

impl Client {
    /// Connects; `None` when no daemon serves `path`.
    pub fn connect(path: &Path) -> Result<Option<Self>, ClientError> {
        let stream = match UnixStream::connect(path) {
            Ok(stream) => stream,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(error) => {
                let path = path.to_owned();
                return Err(ClientError::Io { path, error });
            }
        };
        let client = Self {
            stream: BufReader::new(stream),
            path: path.to_owned(),
        };
        let socket = client.stream.get_ref();
        for set in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
            set(socket, Some(ANSWER)).map_err(|error| client.io(error))?;
        }
        Ok(Some(client))
    }

    /// Asks and waits for the answer.
    pub fn request(&mut self, request: &Request) -> Result<Reply, ClientError> {
        let bytes = line::encode(request).map_err(|error| ClientError::Protocol(error.to_string()))?;
        if bytes.len() > MAX_LINE {
            return Err(AdminError::invalid(format!(
                "the request is {} bytes, more than a daemon takes ({MAX_LINE}); split it, or stop the daemon first",
                bytes.len()
            ))
            .into());
        }
        let sent = self.stream.get_mut().write_all(&bytes);
        sent.map_err(|error| self.io(error))?;
        let answer = self
            .read()?
            .ok_or_else(|| self.io(io::ErrorKind::UnexpectedEof.into()))?;
        match line::decode(&answer) {
            Ok(Response::Ok(reply)) => Ok(reply),
            Ok(Response::Error(error)) => Err(error.into()),
            Err(error) => Err(ClientError::Protocol(error.to_string())),
        }
    }

    /// Asks for events; then [`Client::next_event`] reads them.
    pub fn follow(&mut self) -> Result<(), ClientError> {
        self.request(&Request::Events)?;
        let quiet = self.stream.get_ref().set_read_timeout(None);
        quiet.map_err(|error| self.io(error))
    }

    /// The last events, the oldest first.
    pub fn recent(&mut self) -> Result<Vec<Event>, ClientError> {
        match self.request(&Request::Recent)? {
            Reply::Recent(events) => Ok(events),
            _ => Err(ClientError::Protocol("another answer than events".into())),
        }
    }

    /// The next event; `None` when the daemon ended.
    pub fn next_event(&mut self) -> Result<Option<Event>, ClientError> {
        self.read()?
            .map(|line| line::decode(&line).map_err(|error| ClientError::Protocol(error.to_string())))
            .transpose()
    }

    fn read(&mut self) -> Result<Option<Zeroizing<Vec<u8>>>, ClientError> {
        let mut bytes = Zeroizing::new(Vec::new());
        let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
        let read = Read::by_ref(&mut self.stream)
            .take(limit)
            .read_until(b'\n', &mut bytes);
        let count = read.map_err(|error| self.io(error))?;
        Ok((count > 0).then_some(bytes))
    }

    fn io(&self, error: io::Error) -> ClientError {
        let path = self.path.clone();
        ClientError::Io { path, error }
    }
}
