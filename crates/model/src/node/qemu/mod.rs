//! What a node sees, decides and does on the qemu plane: one storage daemon a volume.
//!
//! The phases, and what the node's block graph looks like in each, are in `ARCHITECTURE.md`.

mod facts;
mod plan;
mod plan_local;
mod step;

pub use facts::{Bitmap, Incremental, LocalFile, NodeFacts, QsdFacts, Snapshotting};
pub use plan::{Decision, after, after_error, phase, plan, report, retreat, setback};
pub use step::{Moving, NodeStep};
