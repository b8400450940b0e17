//! What a person sees while a long step runs: a spinner on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// One step in progress. Say how it ended with [`Step::done`] or [`Step::failed`].
#[derive(Debug)]
pub struct Step {
    title: String,
    started: Instant,
    bar: Option<ProgressBar>,
}

impl Step {
    /// Starts a step and shows its title.
    pub fn new(title: impl Into<String>) -> Self {
        let title = title.into();
        let bar = if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg}") {
                bar.set_style(style);
            }
            bar.set_prefix(title.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            Some(bar)
        } else {
            eprintln!("... {title}");
            None
        };
        Self {
            title,
            started: Instant::now(),
            bar,
        }
    }

    /// Shows a detail beside the title, overwriting the one before.
    pub fn note(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
        }
    }

    /// Ends the step with a good word.
    pub fn done(self, text: impl AsRef<str>) {
        self.end("ok", text.as_ref());
    }

    /// Ends the step with a bad word.
    pub fn failed(self, text: impl AsRef<str>) {
        self.end("FAILED", text.as_ref());
    }

    fn end(self, word: &str, text: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.started.elapsed().as_secs_f32();
        let text = if text.is_empty() {
            String::new()
        } else {
            format!(": {text}")
        };
        eprintln!("{word:>6}  {} ({seconds:.1} s){text}", self.title);
    }
}

/// Runs `work` as a step named `title`.
pub fn step<T>(title: &str, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let step = Step::new(title);
    match work() {
        Ok(value) => {
            step.done("");
            Ok(value)
        }
        Err(error) => {
            step.failed("");
            Err(error)
        }
    }
}
