//! Aligned columns.
//!
//! Done here and not by comfy-table: the cells are kept in one text and printed as they are measured. docs/cli.md says what
//! 10,000 rows take.

use crate::{output::Screen, stop::clean};
use std::io::{self, Write};
use unicode_width::UnicodeWidthStr;

/// The narrowest a column that may be cut gets.
const NARROWEST: usize = 8;

/// A column.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    name: &'static str,
    right: bool,
    cut: bool,
}

/// A column of text.
pub const fn text(name: &'static str) -> Column {
    Column { name, right: false, cut: false }
}

/// A column of numbers.
pub const fn number(name: &'static str) -> Column {
    Column { name, right: true, cut: false }
}

/// A column of text that is cut when the terminal is too narrow.
pub const fn elastic(name: &'static str) -> Column {
    Column { name, right: false, cut: true }
}

/// Rows under headings.
#[derive(Debug)]
pub struct Table {
    columns: Vec<Column>,
    /// All cells, one after the other: a cell of its own allocation costs more than printing it.
    text: String,
    ends: Vec<usize>,
    bad: Vec<bool>,
}

impl Table {
    /// An empty one.
    pub fn new(columns: Vec<Column>) -> Self {
        Table { columns, text: String::new(), ends: Vec::new(), bad: Vec::new() }
    }

    /// Adds a row; one that is `bad` is shown in red.
    pub fn row(&mut self, cells: Vec<String>, bad: bool) {
        cells.iter().for_each(|cell| self.cell(|text| text.push_str(cell)));
        self.end_row(bad);
    }

    /// Adds a cell: what is written behind the text.
    pub fn cell(&mut self, write: impl FnOnce(&mut String)) {
        let start = self.text.len();
        write(&mut self.text);
        if let std::borrow::Cow::Owned(cleaned) = clean(&self.text[start..]) {
            self.text.replace_range(start.., &cleaned);
        }
        if self.text.len() == start {
            self.text.push('-');
        }
        self.ends.push(self.text.len());
    }

    /// Ends a row of cells.
    pub fn end_row(&mut self, bad: bool) {
        self.bad.push(bad);
        debug_assert_eq!(self.ends.len(), self.bad.len() * self.columns.len());
    }

    /// All cells, row by row.
    fn cells(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.text[start..*end])
    }

    /// Prints it.
    pub fn write(&self, to: &mut impl Write, screen: Screen) -> io::Result<()> {
        let mut widths: Vec<usize> = self.columns.iter().map(|column| column.name.len()).collect();
        let count = widths.len();
        for (at, cell) in self.cells().enumerate() {
            let width = &mut widths[at % count];
            *width = (*width).max(width_of(cell));
        }
        if let Some(limit) = screen.width {
            self.fit(&mut widths, limit);
        }
        let mut line = String::new();
        for (column, width) in self.columns.iter().zip(&widths) {
            cell(&mut line, column.name, *width, column.right);
        }
        put(to, &mut line, screen, "1")?;
        let mut cells = self.cells();
        for bad in &self.bad {
            for ((column, width), text) in self.columns.iter().zip(&widths).zip(cells.by_ref().take(count)) {
                cell(&mut line, text, *width, column.right);
            }
            put(to, &mut line, screen, if *bad { "31" } else { "" })?;
        }
        Ok(())
    }

    /// Narrows columns that may be cut until the line fits, from the right: what stands left names the row.
    fn fit(&self, widths: &mut [usize], limit: usize) {
        let line = widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
        let mut over = line.saturating_sub(limit);
        for (column, width) in self.columns.iter().zip(widths).rev().filter(|(column, _)| column.cut) {
            let less = over.min(width.saturating_sub(NARROWEST.max(column.name.len())));
            *width -= less;
            over -= less;
        }
    }
}

fn width_of(text: &str) -> usize {
    if text.is_ascii() { text.len() } else { text.width() }
}

/// Appends a cell, cut or filled to its width, and the gap before it.
fn cell(line: &mut String, text: &str, width: usize, right: bool) {
    if !line.is_empty() {
        line.push_str("  ");
    }
    let own = width_of(text);
    let fill = width.saturating_sub(own);
    if right {
        line.extend(std::iter::repeat_n(' ', fill));
    }
    if own > width {
        cut(line, text, width);
    } else {
        line.push_str(text);
    }
    if !right {
        line.extend(std::iter::repeat_n(' ', fill));
    }
}

/// Appends as much of a text as fits, and `…`, filled to exactly `width`.
///
/// What fits is measured as a text, not by its characters: a variation selector widens the character before it.
fn cut(line: &mut String, text: &str, width: usize) {
    if width == 0 {
        return;
    }
    let ends = text.char_indices().map(|(at, _)| at);
    let kept = &text[..ends.take_while(|at| width_of(&text[..*at]) < width).last().unwrap_or(0)];
    line.push_str(kept);
    line.push('…');
    line.extend(std::iter::repeat_n(' ', width - 1 - width_of(kept)));
}

fn put(to: &mut impl Write, line: &mut String, screen: Screen, style: &str) -> io::Result<()> {
    let mut shown = line.trim_end();
    let shortened;
    if let Some(limit) = screen.width.filter(|limit| width_of(shown) > *limit) {
        let mut short = String::new();
        cut(&mut short, shown, limit);
        shortened = short;
        shown = shortened.trim_end();
    }
    if screen.colour && !style.is_empty() {
        writeln!(to, "\x1b[{style}m{shown}\x1b[0m")?;
    } else {
        to.write_all(shown.as_bytes())?;
        to.write_all(b"\n")?;
    }
    line.clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn printed(rows: &[[&str; 3]], screen: Screen) -> String {
        let mut table = Table::new(vec![elastic("VOLUME"), number("SIZE"), elastic("NOTE")]);
        for row in rows {
            table.row(row.map(str::to_owned).to_vec(), false);
        }
        let mut text = Vec::new();
        table.write(&mut text, screen).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn plain_is_never_cut_and_a_terminal_never_overrun() {
        let rows = [["nas-0-0:tank/vol1", "35G", ""], ["nas-0-0:tank/a-much-longer-name", "1.5T", "stuck 3m: the node\nis away"]];
        assert_eq!(
            printed(&rows, Screen::default()),
            "VOLUME                           SIZE  NOTE\n\
             nas-0-0:tank/vol1                 35G  -\n\
             nas-0-0:tank/a-much-longer-name  1.5T  stuck 3m: the node is away\n"
        );
        assert_eq!(
            printed(&rows, Screen { width: Some(40), colour: false }),
            "VOLUME                    SIZE  NOTE\n\
             nas-0-0:tank/vol1          35G  -\n\
             nas-0-0:tank/a-much-lon…  1.5T  stuck 3…\n"
        );
    }

    #[test]
    fn what_widens_its_neighbour_is_measured_with_it() {
        let mut line = String::new();
        cut(&mut line, "®\u{fe0f}®\u{fe0f}®\u{fe0f}", 4);
        assert_eq!((line.as_str(), line.width()), ("®\u{fe0f}®…", 4));
    }

    proptest! {
        #[test]
        fn lines_fit_and_keep_to_themselves(
            rows in proptest::collection::vec(("\\PC{0,40}", "[0-9]{1,6}", ".{0,60}"), 0..6),
            width in 1usize..120,
        ) {
            let rows: Vec<_> = rows.iter().map(|(a, b, c)| [a.as_str(), b.as_str(), c.as_str()]).collect();
            let text = printed(&rows, Screen { width: Some(width), colour: false });
            prop_assert_eq!(text.lines().count(), rows.len() + 1);
            for line in text.lines() {
                prop_assert!(line.width() <= width, "{line:?}");
            }
        }
    }
}
