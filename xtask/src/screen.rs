//! What is shown on the way and at the end.

use indicatif::{ProgressBar, ProgressStyle};
use std::time::{Duration, Instant};

/// A step that is under way: a bar on a terminal, one line when it is over everywhere.
pub struct Step {
    bar: ProgressBar,
    what: String,
    begun: Instant,
}

impl Step {
    /// Begins one.
    pub fn new(what: &str) -> Self {
        let bar = ProgressBar::new(0);
        bar.set_style(ProgressStyle::with_template("{spinner} {msg}").unwrap_or_else(|_| ProgressStyle::default_spinner()));
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Step { bar, what: what.to_owned(), begun: Instant::now() }
    }

    /// How far it is.
    pub fn progress(&self, done: u64, total: u64, note: &str) {
        if self.bar.length() != Some(total) {
            let template = "{spinner} {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
            self.bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            self.bar.set_length(total);
        }
        self.bar.set_position(done);
        self.bar.set_message(format!("{} {note}", self.what));
    }

    /// What it is at.
    pub fn note(&self, note: &str) {
        self.bar.set_message(format!("{}: {note}", self.what));
    }

    /// It is over; gives how long it took.
    pub fn done(self, result: &str) -> Duration {
        let took = self.begun.elapsed();
        self.bar.finish_and_clear();
        println!("  {}{} ({})", self.what, if result.is_empty() { String::new() } else { format!(": {result}") }, seconds(took));
        took
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.bar.is_finished() {
            self.bar.finish_and_clear();
            println!("  {}: not finished after {}", self.what, seconds(self.begun.elapsed()));
        }
    }
}

/// A time for people.
pub fn seconds(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    if ms < 10.0 {
        format!("{ms:.1} ms")
    } else if ms < 1000.0 {
        format!("{ms:.0} ms")
    } else {
        format!("{:.2} s", ms / 1e3)
    }
}

/// Bytes for people.
pub fn bytes(bytes: u64) -> String {
    let text = img_storage_model::size::human_bytes(bytes);
    if text.ends_with(|c: char| c.is_ascii_digit()) { format!("{text} B") } else { format!("{text}iB") }
}

/// Bytes a second for people.
pub fn rate(moved: u64, time: Duration) -> String {
    format!("{:.0} MiB/s", moved as f64 / time.as_secs_f64().max(1e-9) / f64::from(1 << 20))
}

/// A Markdown table, its columns aligned so that it can be read as it is.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let all = || std::iter::once(head.iter().map(|&h| h.to_owned()).collect::<Vec<_>>()).chain(rows.iter().cloned());
    let widths: Vec<usize> =
        (0..head.len()).map(|n| all().filter_map(|row| row.get(n).map(|cell| cell.chars().count())).max().unwrap_or(0)).collect();
    let mut text = String::new();
    for (n, row) in all().enumerate() {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
        if n == 0 {
            let rules: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
            text.push_str(&format!("| {} |\n", rules.join(" | ")));
        }
    }
    text
}
