//! `up`: every role on this machine.

use super::role;
use crate::{
    args::{Global, configuration},
    stop::Done,
};
use clap::Args;
use img_storage_daemon::roles::{self, UpOptions};
use img_storage_model::size::Interval;
use std::path::PathBuf;

/// Runs every role on this machine, until interrupted or told to stop
#[derive(Debug, Args)]
pub struct Up {
    /// How many nodes to run [default: the configuration's, else 2]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=64))]
    nodes: Option<u16>,
    /// How often what changed on a node goes to the NAS, such as 60s or 10m [default: the configuration's, else 60s]
    #[arg(long, value_name = "TIME")]
    frequency: Option<Interval>,
    /// The configuration: a file, or a directory with config.toml and conf.d [default: /etc/img-storage] [env: IMG_STORAGE_CONFIG]
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
}

impl Up {
    pub fn run(self, global: &Global) -> Done {
        let options =
            UpOptions { dir: global.dir()?, nodes: self.nodes, frequency: self.frequency, config: configuration(self.config) };
        role::run(roles::up(options))
    }
}
