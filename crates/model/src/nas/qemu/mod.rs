//! What a NAS sees, decides and does on the qemu plane: raw files, served by storage daemons.

pub(super) mod assign;
mod facts;
mod plan;
mod plan_node;
mod step;

pub use facts::{DiskFile, ExportFacts, IncomingFacts, NasFacts};
pub use plan::{Decision, after, after_error, plan, setback};
pub use step::{BACK, IMPORT, NasStep, plain_export};
