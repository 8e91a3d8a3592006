//! Where results go: a table for people, or JSON, YAML and CSV for programs.

use crate::{
    client::json,
    stop::{Done, Stop, coloured},
    table::Table,
};
use clap::ValueEnum;
use img_storage_model::Fault;
use serde::Serialize;
use std::io::{BufWriter, IsTerminal, StdoutLock, Write};

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    #[default]
    Table,
    Wide,
    Json,
    Yaml,
    Csv,
}

impl Output {
    /// Whether a person reads it.
    pub fn for_people(self) -> bool {
        matches!(self, Output::Table | Output::Wide)
    }
}

/// What tables are fitted to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Screen {
    /// Columns of the terminal; nothing is cut without one.
    pub width: Option<usize>,
    /// Whether colours are wanted.
    pub colour: bool,
}

impl Screen {
    /// That of stdout.
    pub fn of_stdout() -> Self {
        if !std::io::stdout().is_terminal() {
            return Screen::default();
        }
        let width = rustix::termios::tcgetwinsize(std::io::stdout()).ok().map(|size| usize::from(size.ws_col)).filter(|w| *w > 0);
        Screen { width, colour: coloured() }
    }
}

/// Stdout.
pub struct Out {
    to: BufWriter<StdoutLock<'static>>,
    /// The wanted format.
    pub format: Output,
    /// The terminal, if it is one.
    pub screen: Screen,
}

impl Out {
    /// Stdout in a format.
    pub fn new(format: Output) -> Self {
        Out { to: BufWriter::with_capacity(1 << 16, std::io::stdout().lock()), format, screen: Screen::of_stdout() }
    }

    /// One line, now.
    pub fn line(&mut self, text: &str) -> Done {
        writeln!(self.to, "{text}")?;
        Ok(self.to.flush()?)
    }

    /// Text as it is, now.
    pub fn text(&mut self, text: &str) -> Done {
        self.to.write_all(text.as_bytes())?;
        Ok(self.to.flush()?)
    }

    /// A table.
    pub fn table(&mut self, table: &Table) -> Done {
        table.write(&mut self.to, self.screen)?;
        Ok(self.to.flush()?)
    }

    /// A value in JSON or YAML; a value in CSV is a list of flat records.
    pub fn value(&mut self, value: &impl Serialize, records: Option<&[csv_record::Record]>) -> Done {
        match self.format {
            Output::Yaml => {
                let text = serde_norway::to_string(&json(value)?)
                    .map_err(|error| Fault::failed(format!("cannot write the result: {error}")))?;
                self.text(&text)
            }
            Output::Csv => {
                let records = records.ok_or_else(|| {
                    Stop::from(Fault::invalid("this has no CSV form, for it is not one list").next("use -o json or -o yaml"))
                })?;
                csv_record::write(&mut self.to, records)?;
                Ok(self.to.flush()?)
            }
            _ => {
                serde_json::to_writer_pretty(&mut self.to, value).map_err(std::io::Error::from)?;
                self.line("")
            }
        }
    }
}

/// Flat records for CSV.
pub mod csv_record {
    use std::io::Write;

    /// A record: names and values.
    pub type Record = Vec<(&'static str, String)>;

    /// Header and lines; nothing at all without a record.
    pub fn write(to: &mut impl Write, records: &[Record]) -> std::io::Result<()> {
        let mut writer = csv::Writer::from_writer(to);
        if let Some(first) = records.first() {
            writer.write_record(first.iter().map(|(name, _)| name))?;
        }
        for record in records {
            writer.write_record(record.iter().map(|(_, value)| value))?;
        }
        writer.flush()
    }
}
