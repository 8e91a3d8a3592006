//! `frontend`: one role.

use super::role::{self, Role};
use crate::{args::Global, stop::Done};
use clap::Args;

/// Runs the front end, until interrupted or told to stop
#[derive(Debug, Args)]
pub struct Frontend {
    #[command(flatten)]
    role: Role,
}

impl Frontend {
    pub fn run(self, global: &Global) -> Done {
        role::run(img_storage_daemon::roles::frontend(self.role.options(global)?))
    }
}
