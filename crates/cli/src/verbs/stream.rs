//! `stream`: the end of a ZFS stream on a node. sshd starts it for the NAS's key; nobody calls it by hand.
//!
//! The line in `authorized_keys` of the user `img-storage`:
//! `restrict,command="img-storage stream --within POOL/img-storage" ssh-ed25519 …`

use crate::stop::Done;
use clap::Args;
use img_storage_host::kernel::{
    marks,
    stream::{Served, Side, serve},
};
use img_storage_model::{Dataset, Fault};
use std::io::Write;

/// Sends or receives a volume's ZFS stream for a NAS, as SSH_ORIGINAL_COMMAND asks
#[derive(Debug, Args)]
pub struct Stream {
    /// A dataset that local copies lie in; nothing else is sent or received
    #[arg(long, value_name = "DATASET", required = true)]
    within: Vec<Dataset>,
}

impl Stream {
    pub fn run(self) -> Done {
        let line = std::env::var("SSH_ORIGINAL_COMMAND").map_err(|_| {
            Fault::invalid("no request: SSH_ORIGINAL_COMMAND is not set")
                .next("this is for sshd to start, as the forced command of a NAS's key")
        })?;
        let side = Side::new(marks::zfs(), self.within);
        let served =
            crate::follow::block_on(async move { serve(&side, &line).await.map_err(|error| Fault::failed(error.0).into()) });
        let Served(answer) = served?;
        std::io::stdout().lock().write_all(answer.as_bytes())?;
        Ok(())
    }
}
