//! What a node sees, decides and does on the kernel plane: an iSCSI session, a local zvol, and the device-mapper device over them.

mod facts;
mod plan;
mod plan_local;
mod shown;
mod step;
mod warm;

pub use facts::{Device, Disk, LocalZvol, Merge, NodeFacts, Overlay, Session, Table, Zvols};
pub use plan::{Decision, after, after_error, plan};
pub use shown::{phase, report};
pub use step::NodeStep;
pub use warm::{Kept, Quota, needs, needs_overlay, surplus};
