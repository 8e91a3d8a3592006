//! `pki`: certificates for the hosts of a cluster.

use crate::{
    args::Global,
    output::{Out, Output, csv_record::Record},
    stop::Done,
    table::{Table, elastic, number, text},
};
use clap::{Args, Subcommand};
use img_storage_daemon::pki::{self, Certificate, Kind};
use img_storage_model::HostName;
use jiff::Timestamp;
use std::path::PathBuf;

/// Makes a CA, and certificates for the hosts of a cluster; nothing is ever written over
#[derive(Debug, Args)]
pub struct Pki {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Init(Init),
    Issue(Issue),
    Show(Show),
}

/// Makes a CA, good for ten years
#[derive(Debug, Args)]
struct Init {
    /// A directory for it; its key never leaves that
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// Issues a host its certificates, good for two years, in DIR/NAME: copy that directory to the host
#[derive(Debug, Args)]
struct Issue {
    /// The CA's directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    host: Host,
    /// Another name or address by which it is connected to; may be given several times
    #[arg(long, value_name = "ADDRESS")]
    address: Vec<String>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Host {
    /// A host that runs guests
    #[arg(long, value_name = "NAME")]
    node: Option<HostName>,
    /// A NAS
    #[arg(long, value_name = "NAME")]
    nas: Option<HostName>,
    /// A front end
    #[arg(long, value_name = "NAME")]
    frontend: Option<HostName>,
    /// The RabbitMQ server, under the name that stands in [bus] hosts
    #[arg(long, value_name = "NAME")]
    broker: Option<HostName>,
}

/// Shows certificates and until when they are good
#[derive(Debug, Args)]
struct Show {
    /// A CA's directory, with all that it issued there; or what one host was issued
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

impl Pki {
    pub fn run(self, global: &Global) -> Done {
        let mut out = Out::new(global.output);
        match self.verb {
            Verb::Init(verb) => {
                let made = pki::init(&verb.dir)?;
                made_line(&mut out, &made, "the CA")
            }
            Verb::Issue(verb) => {
                let Host { node, nas, frontend, broker } = verb.host;
                let all = [(node, Kind::Node), (nas, Kind::Nas), (frontend, Kind::Frontend), (broker, Kind::Broker)];
                // Exactly one is there, by the grammar.
                for (name, kind) in all {
                    if let Some(name) = name {
                        let made = pki::issue(&verb.dir, kind, &name, &verb.address)?;
                        made_line(&mut out, &made, name.as_str())?;
                    }
                }
                Ok(())
            }
            Verb::Show(verb) => show(&mut out, &pki::show(&verb.dir)?),
        }
    }
}

fn made_line(out: &mut Out, made: &pki::Made, what: &str) -> Done {
    if out.format.for_people() {
        return out.line(&format!("{what} is in {}, good until {}", made.dir.display(), made.until));
    }
    let record: Record = vec![("dir", made.dir.display().to_string()), ("until", made.until.to_string())];
    out.value(&serde_json::json!({ "dir": made.dir, "until": made.until }), Some(&[record]))
}

fn show(out: &mut Out, certificates: &[Certificate]) -> Done {
    let now = Timestamp::now();
    match out.format {
        Output::Table | Output::Wide => {
            let mut table = Table::new(vec![text("NAME"), text("GOOD UNTIL"), number("DAYS"), elastic("FILE")]);
            for c in certificates {
                let days = if c.has_ended(now) { "over".to_owned() } else { c.days(now).to_string() };
                let row = vec![c.name.clone(), c.until.to_string(), days, c.file.display().to_string()];
                table.row(row, c.has_ended(now));
            }
            out.table(&table)
        }
        Output::Csv => {
            let record = |c: &Certificate| -> Record {
                vec![
                    ("name", c.name.clone()),
                    ("from", c.from.to_string()),
                    ("until", c.until.to_string()),
                    ("file", c.file.display().to_string()),
                ]
            };
            out.value(&(), Some(&certificates.iter().map(record).collect::<Vec<_>>()))
        }
        Output::Json | Output::Yaml => out.value(&serde_json::json!({ "certificates": certificates }), None),
    }
}
