//! Running other programs: one builder, errors that carry what the program said.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// A command line to be run.
#[derive(Clone, Debug)]
pub struct Cmd {
    words: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    removed: Vec<OsString>,
    dir: Option<PathBuf>,
    limit: Option<Duration>,
}

/// How a finished command ended and what it said.
#[derive(Clone, Debug)]
pub struct Output {
    /// The exit status; `None` when a signal ended the program.
    pub code: Option<i32>,
    /// Standard output, lossily decoded.
    pub stdout: String,
    /// Standard error, lossily decoded.
    pub stderr: String,
}

impl Output {
    /// Whether the exit status was 0.
    pub fn ok(&self) -> bool {
        self.code == Some(0)
    }

    /// Both streams, for messages.
    pub fn all(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl Cmd {
    /// Starts a command line with its program.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self {
            words: vec![program.as_ref().to_owned()],
            envs: vec![],
            removed: vec![],
            dir: None,
            limit: None,
        }
    }

    /// A command line written with blanks, for arguments that contain none.
    pub fn line(line: &str) -> Self {
        let mut words = line.split_whitespace();
        Self::new(words.next().unwrap_or("true")).args(words)
    }

    /// Appends arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.words.extend(args.into_iter().map(|a| a.as_ref().to_owned()));
        self
    }

    /// Appends one argument.
    pub fn arg(self, arg: impl AsRef<OsStr>) -> Self {
        self.args([arg])
    }

    /// Puts `words` in front: `cmd.behind(["ip", "netns", "exec", "x"])`.
    pub fn behind<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        let mut front: Vec<OsString> = words.into_iter().map(|w| w.as_ref().to_owned()).collect();
        front.append(&mut self.words);
        self.words = front;
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.envs
            .push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Removes an inherited environment variable.
    pub fn env_remove(mut self, key: impl AsRef<OsStr>) -> Self {
        self.removed.push(key.as_ref().to_owned());
        self
    }

    /// Sets the working directory.
    pub fn dir(mut self, dir: impl AsRef<Path>) -> Self {
        self.dir = Some(dir.as_ref().to_owned());
        self
    }

    /// Ends the program after this long (exit status 124).
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// The command line as one would type it.
    pub fn shown(&self) -> String {
        self.words
            .iter()
            .map(|w| w.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn command(&self) -> Command {
        let mut words = self.words.clone();
        if let Some(limit) = self.limit {
            let mut front: Vec<OsString> = vec!["timeout".into(), "-k".into(), "2".into()];
            front.push(format!("{:.1}", limit.as_secs_f64()).into());
            front.append(&mut words);
            words = front;
        }
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        for key in &self.removed {
            command.env_remove(key);
        }
        command.envs(self.envs.iter().map(|(k, v)| (k, v)));
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command
    }

    /// Runs to the end and collects both streams; an error only if it cannot start.
    pub fn output(&self) -> Result<Output> {
        let out = self
            .command()
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start `{}`", self.shown()))?;
        Ok(Output {
            code: out.status.code(),
            stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
        })
    }

    /// Runs silently; anything but exit status 0 is an error that carries the output.
    pub fn run(&self) -> Result<()> {
        self.read().map(|_| ())
    }

    /// Runs silently and returns standard output.
    pub fn read(&self) -> Result<String> {
        let out = self.output()?;
        if !out.ok() {
            let status = out.code.map_or("a signal".to_owned(), |c| format!("status {c}"));
            bail!("`{}` ended with {status}\n{}", self.shown(), out.all().trim_end());
        }
        Ok(out.stdout)
    }

    /// Runs with this terminal as its terminal; anything but exit status 0 is an error.
    pub fn show(&self) -> Result<()> {
        let status = self.status()?;
        if status != 0 {
            bail!("`{}` ended with status {status}", self.shown());
        }
        Ok(())
    }

    /// Runs with this terminal as its terminal and returns the exit status (255 for a signal).
    pub fn status(&self) -> Result<i32> {
        let status = self
            .command()
            .status()
            .with_context(|| format!("cannot start `{}`", self.shown()))?;
        Ok(status.code().unwrap_or(255))
    }

    /// Starts with standard output as a pipe, the rest closed; the caller ends it.
    pub fn piped(&self) -> Result<Child> {
        let mut command = self.command();
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        command
            .spawn()
            .with_context(|| format!("cannot start `{}`", self.shown()))
    }

    /// Starts in the background, in a process group of its own, both streams into `log`.
    /// Returns the process id.
    pub fn spawn(&self, log: &Path) -> Result<u32> {
        let out = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| log.display().to_string())?;
        let err = out.try_clone()?;
        let mut command = self.command();
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .spawn()
            .with_context(|| format!("cannot start `{}`", self.shown()))?;
        Ok(child.id())
    }
}

/// Whether a program of this name is on PATH (or in a system folder).
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(
            ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin"]
                .iter()
                .map(PathBuf::from),
        )
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// The last lines of a text.
pub fn last_lines(text: &str, count: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all.get(all.len().saturating_sub(count)..)
        .unwrap_or(&[])
        .join("\n")
}

/// Whether this process is root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A wrong command line, found after parsing: the process ends with status 2.
#[derive(Debug)]
pub struct Usage(pub String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}
