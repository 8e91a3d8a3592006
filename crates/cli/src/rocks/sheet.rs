//! A list as Rocks prints it: an owner and its fields in columns as wide as they must be, what is empty as dashes, and no owner
//! where there is just one. `output-header=no` and `output-col=zvol,state` do what they do there.

use super::words::Words;
use crate::{
    output::{Output, csv_record::Record},
    stop::{Done, clean},
    verbs::Context,
};
use serde_json::{Map, Value};

/// Rows under headings; the first column is the owner's.
pub struct Sheet {
    headings: &'static [&'static str],
    rows: Vec<Vec<Option<String>>>,
}

impl Sheet {
    pub fn new(headings: &'static [&'static str]) -> Self {
        Sheet { headings, rows: Vec::new() }
    }

    /// Adds a row: a field for each heading.
    pub fn row(&mut self, fields: Vec<Option<String>>) {
        debug_assert_eq!(fields.len(), self.headings.len());
        self.rows.push(fields);
    }

    /// Prints it.
    pub fn print(&self, context: &mut Context, words: &Words) -> Done {
        let json = words.flag("json")? == Some(true);
        match context.out.format {
            Output::Table | Output::Wide if !json => {
                let header = words.flag("output-header")? != Some(false);
                let text = self.text(header, words.param("output-col"));
                context.out.text(&text)
            }
            Output::Csv => {
                let record = |row: &Vec<Option<String>>| -> Record {
                    self.headings.iter().zip(row).map(|(name, field)| (*name, field.clone().unwrap_or_default())).collect()
                };
                let records: Vec<Record> = self.rows.iter().map(record).collect();
                context.out.value(&(), Some(&records))
            }
            _ => {
                let object = |row: &Vec<Option<String>>| -> Value {
                    let fields = self.headings.iter().zip(row);
                    Value::Object(fields.map(|(name, f)| ((*name).to_owned(), f.clone().into())).collect::<Map<_, _>>())
                };
                context.out.value(&self.rows.iter().map(object).collect::<Vec<_>>(), None)
            }
        }
    }

    fn text(&self, header: bool, only: Option<&str>) -> String {
        if self.rows.is_empty() {
            return String::new();
        }
        let owner = self.rows.first().and_then(|row| row[0].as_ref());
        let one_owner = self.rows.iter().all(|row| row[0].as_ref() == owner);
        let wanted: Option<Vec<String>> = only.map(|only| only.split(',').map(str::to_lowercase).collect());
        let columns: Vec<usize> = (usize::from(one_owner)..self.headings.len())
            .filter(|at| {
                wanted.as_ref().is_none_or(|wanted| wanted.iter().any(|name| *name == self.headings[*at].to_lowercase()))
            })
            .collect();
        let mut lines: Vec<Vec<String>> = Vec::new();
        if header {
            lines.push(self.headings.iter().map(|heading| heading.to_uppercase()).collect());
        }
        for row in &self.rows {
            let cell = |(at, field): (usize, &Option<String>)| {
                let text = field.as_deref().map(clean).unwrap_or_default();
                if at == 0 { format!("{text}:") } else { text.into_owned() }
            };
            lines.push(row.iter().enumerate().map(cell).collect());
        }
        let width = |at: usize| lines.iter().map(|line| line[at].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.headings.len()).map(width).collect();
        let mut text = String::new();
        for line in &lines {
            let cells = columns.iter().map(|&at| match line[at].as_str() {
                "" => "-".repeat(widths[at]),
                cell => format!("{cell:<width$}", width = widths[at]),
            });
            text.push_str(cells.collect::<Vec<_>>().join(" ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// A length of time as Python writes it: `0:32:05`, `1 day, 2:03:04`.
pub fn lasted(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    match days {
        0 => clock,
        1 => format!("1 day, {clock}"),
        days => format!("{days} days, {clock}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_looks_as_the_originals() {
        let mut sheet = Sheet::new(&["nas", "zvol", "target", "state"]);
        let some = |text: &str| Some(text.to_owned());
        sheet.row(vec![some("nas-0-0"), some("hpcdev-pub03-vol"), some("iqn.x"), some("mapped")]);
        sheet.row(vec![some("nas-0-0"), some("vol1"), None, some("NAS<-VM")]);
        assert_eq!(
            sheet.text(true, None),
            "ZVOL             TARGET STATE\n\
             hpcdev-pub03-vol iqn.x  mapped\n\
             vol1             ------ NAS<-VM\n"
        );
        assert_eq!(sheet.text(false, Some("zvol,state")), "hpcdev-pub03-vol mapped\nvol1             NAS<-VM\n");
        sheet.row(vec![some("nas-0-1"), some("vol2"), None, None]);
        assert!(sheet.text(true, None).starts_with("NAS      ZVOL "));
        assert!(sheet.text(true, None).ends_with("nas-0-1: vol2             ------ -------\n"));
        assert_eq!(Sheet::new(&["nas"]).text(true, None), "");
    }

    #[test]
    fn times_are_written_as_python_does() {
        assert_eq!([0, 1925, 93_784, 200_000].map(lasted), ["0:00:00", "0:32:05", "1 day, 2:03:04", "2 days, 7:33:20"]);
        assert_eq!(lasted(-5), "0:00:00");
    }
}
