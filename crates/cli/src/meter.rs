//! How far something is, on stderr: a bar on a terminal, now and then a line elsewhere.

use crate::{
    human,
    stop::{clean, remark},
};
use img_storage_model::{messages::Progress, size::human_bytes};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    io::IsTerminal,
    time::{Duration, Instant},
};

/// The least time between two lines.
const BETWEEN: Duration = Duration::from_secs(5);

/// A meter for one thing that moves.
pub struct Meter {
    what: String,
    bar: Option<ProgressBar>,
    last: Option<Instant>,
    /// Since when this transfer is seen, and how far it was then: for a rate when nobody tells one.
    seen: Option<(Instant, Progress)>,
    noted: Option<String>,
}

impl Meter {
    /// A meter; nothing is shown before there is something to show.
    pub fn new(what: String) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr_with_hz(5));
            if let Ok(style) = ProgressStyle::with_template("{prefix} [{wide_bar}] {percent:>3}% {msg}") {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        Meter { what, bar, last: None, seen: None, noted: None }
    }

    /// Shows how far it is.
    pub fn show(&mut self, phase: &str, progress: Option<Progress>, rate: Option<u64>) {
        let Some(p) = progress.filter(|p| p.total > 0) else { return };
        let rate = rate.or_else(|| self.measure(p));
        let pace = human::pace(p.done, p.total, rate);
        let amount = format!("{} of {}", human_bytes(p.done), human_bytes(p.total));
        if let Some(bar) = &self.bar {
            bar.set_length(p.total);
            bar.set_position(p.done.min(p.total));
            bar.set_prefix(format!("{} {phase}", self.what));
            bar.set_message(format!("{amount}, {pace}"));
        } else if self.last.is_none_or(|last| last.elapsed() >= BETWEEN) {
            self.last = Some(Instant::now());
            remark(&format!("{}: {phase} {}% ({amount}), {pace}", self.what, human::percent(p.done, p.total)));
        }
    }

    /// Says something once.
    pub fn note(&mut self, text: &str) {
        if self.noted.as_deref() == Some(text) {
            return;
        }
        self.noted = Some(text.to_owned());
        match &self.bar {
            Some(bar) => bar.suspend(|| remark(&format!("{}: {text}", self.what))),
            None => remark(&format!("{}: {}", self.what, clean(text))),
        }
    }

    /// Takes the bar away.
    pub fn end(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn measure(&mut self, now: Progress) -> Option<u64> {
        match self.seen {
            Some((since, first)) if first.total == now.total && first.done <= now.done => {
                let millis = since.elapsed().as_millis();
                (millis >= 1000).then(|| u64::try_from(u128::from(now.done - first.done) * 1000 / millis).unwrap_or(0))
            }
            _ => {
                self.seen = Some((Instant::now(), now));
                None
            }
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.end();
    }
}
