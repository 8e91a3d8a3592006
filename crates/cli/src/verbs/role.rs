//! What the verbs that are daemons share.

use crate::{
    args::{Global, configuration},
    stop::Done,
};
use clap::Args;
use img_storage_daemon::roles::RoleOptions;
use img_storage_model::{Fault, HostName, Interval};
use std::{future::Future, io::IsTerminal, path::PathBuf};

/// Flags of a single role.
#[derive(Debug, Args)]
pub struct Role {
    /// This host's name on the bus [default: the configuration's, else frontend, nas-0-0 or compute-0-0]
    #[arg(long, value_name = "HOST")]
    name: Option<HostName>,
    /// The socket of the bus that the front end serves [default: DIR/bus.sock]
    #[arg(long, value_name = "PATH")]
    bus: Option<PathBuf>,
    /// How often what changed on a node goes to the NAS, such as 60s or 10m
    #[arg(long, value_name = "TIME")]
    frequency: Option<Interval>,
    /// The configuration: a file, or a directory with config.toml and conf.d [default: /etc/img-storage] [env: IMG_STORAGE_CONFIG]
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
}

impl Role {
    /// For the daemon.
    pub fn options(self, global: &Global) -> Result<RoleOptions, Fault> {
        Ok(RoleOptions {
            dir: global.dir()?,
            name: self.name,
            bus: self.bus,
            frequency: self.frequency,
            config: configuration(self.config),
        })
    }
}

/// Runs a daemon until it is told to stop.
pub fn run(daemon: impl Future<Output = Result<(), Fault>>) -> Done {
    // What the AMQP library has to say is said by us, in one line.
    let wanted = std::env::var("IMG_STORAGE_LOG").ok().filter(|wanted| !wanted.is_empty()).unwrap_or_else(|| "info".to_owned());
    let filter = tracing_subscriber::EnvFilter::try_new(format!("lapin=off,{wanted}"))
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("lapin=off,info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && crate::stop::coloured())
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Fault::failed(format!("cannot start: {error}")))?;
    Ok(runtime.block_on(daemon)?)
}
