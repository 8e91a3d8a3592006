//! What a node decides about one volume: the facts it can see, the steps it can take, what it must remember, and the planner.
//!
//! The phases of the qemu plane, and what the node's block graph looks like in each, are in `ARCHITECTURE.md`.

mod facts;
mod plan;
mod plan_local;
mod record;
mod step;

pub use facts::{Bitmap, Incremental, Job, JobState, Layer, LocalFile, NodeFacts, QsdFacts, Snapshotting};
pub use plan::{Decision, after, after_error, phase, plan, report, retreat, setback};
pub use record::{NodeChange, NodeRecord, PushOutcome, PushResult, Truth};
pub use step::{Moving, NodeStep, StepResult};
