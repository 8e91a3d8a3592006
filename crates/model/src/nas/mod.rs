//! What a NAS decides about one of its volumes: facts, steps, the ledger row, and the planner.

mod assign;
mod facts;
mod intent;
mod plan;
mod plan_node;
mod record;
mod step;

pub use assign::{assignment, copies};
pub use facts::{DiskFile, ExportFacts, IncomingFacts, NasFacts, NasLayer};
pub use intent::{Intent, adopt, apply};
pub use plan::{Context, Decision, after, after_error, plan};
pub use record::{Accepted, Authority, Mapping, NasChange, PushState, Stage, VolumeRecord};
pub use step::{BACK, IMPORT, NasStep, plain_export};
