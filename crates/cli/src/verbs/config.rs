//! `config`: what a configuration says, and the original's as one of ours.

use crate::{
    args::{Global, configuration},
    output::{Out, Output, csv_record::Record},
    stop::{Done, remark},
    table::{Table, elastic, text},
};
use clap::{Args, Subcommand, ValueEnum};
use img_storage_daemon::{
    config::{self, ImportAs},
    roles,
};
use img_storage_model::Fault;
use std::{net::ToSocketAddrs, path::PathBuf};

/// Checks a configuration, or makes one from the original's
#[derive(Debug, Args)]
pub struct Config {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Check(Check),
    Import(Import),
}

/// Checks the configuration and shows what would be used; starts and changes nothing
#[derive(Debug, Args)]
struct Check {
    /// Check also what this role needs on this host: addresses, certificates, pools
    #[arg(value_enum, value_name = "ROLE")]
    role: Option<RoleName>,
    /// The configuration: a file, or a directory with config.toml and conf.d [default: /etc/img-storage] [env: IMG_STORAGE_CONFIG]
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
}

/// Prints the original's configuration as a config.toml
#[derive(Debug, Args)]
struct Import {
    /// The original's configuration, /etc/imgstorage.conf
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// What this host is
    #[arg(long = "as", value_enum, value_name = "ROLE")]
    role: ImportRole,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RoleName {
    Frontend,
    Nas,
    Vm,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ImportRole {
    Nas,
    Vm,
}

impl Config {
    pub fn run(self, global: &Global) -> Done {
        let mut out = Out::new(global.output);
        match self.verb {
            Verb::Check(verb) => verb.run(global, &mut out),
            Verb::Import(verb) => verb.run(&mut out),
        }
    }
}

impl Check {
    fn run(self, global: &Global, out: &mut Out) -> Done {
        let path = configuration(self.config);
        let (config, files, lines) = config::check(path.as_deref())?;
        match self.role {
            Some(RoleName::Frontend) => roles::check_frontend(&global.dir()?, &config)?,
            Some(RoleName::Nas) => roles::check_nas_here(&global.dir()?, &config)?,
            Some(RoleName::Vm) => roles::check_vm(&global.dir()?, &config)?,
            None => {}
        }
        let from = |line: &config::Line| line.from.as_ref().map_or_else(|| "default".to_owned(), |f| f.display().to_string());
        match out.format {
            Output::Table | Output::Wide => {
                let mut table = Table::new(vec![text("KEY"), elastic("VALUE"), text("FROM")]);
                lines.iter().for_each(|line| table.row(vec![line.key.clone(), line.value.clone(), from(line)], false));
                out.table(&table)?;
                match files.len() {
                    0 => remark("there is no configuration; this is what is used without one"),
                    _ => remark("the configuration is right"),
                }
                Ok(())
            }
            Output::Csv => {
                let record = |line: &config::Line| -> Record {
                    vec![("key", line.key.clone()), ("value", line.value.clone()), ("from", from(line))]
                };
                out.value(&(), Some(&lines.iter().map(record).collect::<Vec<_>>()))
            }
            Output::Json | Output::Yaml => out.value(&serde_json::json!({ "files": files, "keys": lines }), None),
        }
    }
}

impl Import {
    fn run(self, out: &mut Out) -> Done {
        let text = std::fs::read_to_string(&self.file).map_err(|e| {
            Fault::invalid(format!("{} cannot be read: {e}", self.file.display())).next("name the original's file")
        })?;
        let role = match self.role {
            ImportRole::Nas => ImportAs::Nas,
            ImportRole::Vm => ImportAs::Vm,
        };
        let resolve = |name: &str| Some((name, 0).to_socket_addrs().ok()?.next()?.ip());
        let ours = config::import(&text, role, resolve)
            .map_err(|fault| Fault { message: format!("{}: {}", self.file.display(), fault.message), ..fault })?;
        out.text(&ours)
    }
}
