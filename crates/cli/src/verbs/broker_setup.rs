//! `broker-setup`: what the RabbitMQ server needs.

use crate::{
    args::Global,
    follow::block_on,
    output::Out,
    stop::{Done, remark},
};
use clap::Args;
use img_storage_daemon::broker_setup::{self, Setup};
use img_storage_model::{Fault, HostName};
use std::path::PathBuf;

/// Prints what makes a RabbitMQ server the cluster's broker, or runs it
///
/// Every host gets a user of its name, who comes by its certificate and may do no more than it must. Run it again for hosts that
/// are added later.
#[derive(Debug, Args)]
pub struct BrokerSetup {
    /// The hosts: front ends, NASes, nodes
    #[arg(value_name = "HOST", required_unless_present = "conf")]
    hosts: Vec<HostName>,
    /// The virtual host
    #[arg(long, value_name = "NAME", default_value = "img-storage")]
    vhost: String,
    /// Run the commands here, as root on the broker's host
    #[arg(long)]
    run: bool,
    /// Print the lines for rabbitmq.conf instead; CERTIFICATES is the directory with what was issued for the broker
    #[arg(long, value_name = "CERTIFICATES", conflicts_with_all = ["run", "hosts"])]
    conf: Option<PathBuf>,
}

impl BrokerSetup {
    pub fn run(self, global: &Global) -> Done {
        let mut out = Out::new(global.output);
        if let Some(dir) = self.conf {
            return out.text(&broker_setup::conf(&super::absolute(&dir)?));
        }
        if self.vhost.is_empty() || self.vhost.len() > 255 {
            return Err(Fault::invalid("a virtual host's name has 1 to 255 bytes").into());
        }
        let setup = Setup { vhost: self.vhost, hosts: self.hosts };
        if !self.run {
            out.text(&setup.commands())?;
            remark(
                "nothing was done: run these on the broker's host as root, or give --run there; --conf prints the lines for rabbitmq.conf",
            );
            return Ok(());
        }
        let done = block_on(async { Ok(setup.run().await?) });
        match done {
            Ok(lines) => lines.iter().try_for_each(|line| out.line(line)),
            Err(stop) => Err(stop),
        }
    }
}
