//! `vm`: one role.

use super::role::{self, Role};
use crate::{args::Global, stop::Done};
use clap::Args;

/// Runs the daemon of a VM container, until interrupted or told to stop
#[derive(Debug, Args)]
pub struct Vm {
    #[command(flatten)]
    role: Role,
}

impl Vm {
    pub fn run(self, global: &Global) -> Done {
        role::run(img_storage_daemon::roles::vm(self.role.options(global)?))
    }
}
