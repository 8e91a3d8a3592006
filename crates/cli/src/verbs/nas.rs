//! `nas`: one role.

use super::role::{self, Role};
use crate::{args::Global, stop::Done};
use clap::Args;

/// Runs the daemon of a NAS, until interrupted or told to stop
#[derive(Debug, Args)]
pub struct Nas {
    #[command(flatten)]
    role: Role,
}

impl Nas {
    pub fn run(self, global: &Global) -> Done {
        role::run(img_storage_daemon::roles::nas(self.role.options(global)?))
    }
}
