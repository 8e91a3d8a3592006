//! What a node decides about one volume: the facts it can see, the steps it can take, what it must remember, and the planners of
//! the two planes.
//!
//! What both have in common is the ledger row and what is said to the NAS; the rest is in [`qemu`] and [`kernel`].

mod job;
pub mod kernel;
pub mod qemu;
mod record;

use crate::{
    Extents, Fact, Plane, VolumeId,
    messages::{Assign, NodePhase, Report},
};
pub use job::{Job, JobState, Layer};
pub use record::{Going, Lies, NodeChange, NodeRecord, PushOutcome, PushResult, Truth, Warm};
use std::fmt;

/// What a node's host can show about one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Facts {
    /// On the qemu plane.
    Qemu(qemu::NodeFacts),
    /// On the kernel plane.
    Kernel(kernel::NodeFacts),
}

/// One effect on the node's host, on one volume.
#[derive(Clone, PartialEq, Eq)]
pub enum Step {
    /// On the qemu plane.
    Qemu(qemu::NodeStep),
    /// On the kernel plane.
    Kernel(kernel::NodeStep),
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Qemu(step) => step.fmt(f),
            Step::Kernel(step) => step.fmt(f),
        }
    }
}

impl From<qemu::NodeStep> for Step {
    fn from(step: qemu::NodeStep) -> Self {
        Step::Qemu(step)
    }
}

impl From<kernel::NodeStep> for Step {
    fn from(step: kernel::NodeStep) -> Self {
        Step::Kernel(step)
    }
}

/// A node's decision.
pub type Decision = crate::Decision<Step, NodeChange>;

/// The longest label, in bytes.
const LONGEST_LABEL: usize = 100;

/// A volume as a node's host knows it by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeVolume {
    /// Identity.
    pub id: VolumeId,
    /// What carries its data.
    pub plane: Plane,
    /// Its name for people, and of its device: `NAS.POOL.NAME`.
    pub label: String,
}

impl From<&Assign> for NodeVolume {
    fn from(assign: &Assign) -> Self {
        let label = format!("{}.{}", assign.nas, assign.name.replace('/', "."));
        // device-mapper takes 127 bytes; what would be longer goes by its identity.
        let label = if label.len() <= LONGEST_LABEL { label } else { assign.volume.to_string() };
        NodeVolume { id: assign.volume, plane: assign.plane, label }
    }
}

/// What a step found out, beyond having been done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepResult {
    /// It is done.
    Done,
    /// [`super::qemu::NodeStep::DigestPush`]: what moved and its digest.
    Digest {
        /// The ranges, coalesced; a superset of what moved.
        extents: Extents,
        /// Digest of the contents, see [`crate::messages::ContentDigest`].
        digest: crate::messages::ContentDigest,
        /// Bytes the push moved over the wire.
        moved: u64,
    },
    /// [`crate::nas::qemu::NasStep::VerifyIncoming`]: whether the contents are what the node said they are.
    Verified(bool),
    /// [`crate::nas::kernel::NasStep::EndStream`] of a stream that was done.
    Streamed {
        /// Bytes that went over the network.
        moved: u64,
        /// How long it took, in milliseconds.
        took_ms: u64,
    },
    /// [`crate::nas::kernel::NasStep::CountWritten`]: so many bytes.
    Written(u64),
}

const OTHER_PLANE: &str = "the host shows a volume of another plane";

impl Facts {
    /// Nothing can be seen.
    pub fn unknown(plane: Plane, why: &str) -> Self {
        fn blind<T>(why: &str) -> Fact<T> {
            Fact::Unknown(why.to_owned())
        }
        match plane {
            Plane::Qemu => Facts::Qemu(qemu::NodeFacts { qsd: blind(why), local: blind(why) }),
            Plane::Kernel => Facts::Kernel(kernel::NodeFacts {
                session: blind(why),
                device: blind(why),
                local: blind(why),
                overlay: blind(why),
                dataset: String::new(),
            }),
        }
    }

    /// Whether what carries the guest's device could be seen.
    pub fn seen(&self) -> bool {
        match self {
            Facts::Qemu(facts) => facts.qsd.known().is_some(),
            Facts::Kernel(facts) => facts.device.known().is_some() && facts.session.known().is_some(),
        }
    }

    /// The job that moves the volume's contents, when one is there.
    pub fn job(&self) -> Option<&Job> {
        match self {
            Facts::Qemu(facts) => facts.qsd.known()?.as_ref()?.job(),
            Facts::Kernel(_) => None,
        }
    }

    /// What was seen of the volume's zvols, when both could be looked at; there are none on the qemu plane.
    pub fn into_zvols(self) -> Option<kernel::Zvols> {
        match self {
            Facts::Kernel(kernel::NodeFacts { local: Fact::Known(local), overlay: Fact::Known(overlay), .. }) => {
                Some(kernel::Zvols { local, overlay })
            }
            Facts::Kernel(_) | Facts::Qemu(_) => None,
        }
    }

    /// The guest's device is merging.
    pub fn merging(&self) -> bool {
        match self {
            Facts::Qemu(_) => false,
            Facts::Kernel(facts) => facts.device.known().is_some_and(|d| d.as_ref().is_some_and(|d| d.merge.is_some())),
        }
    }
}

impl Step {
    /// What was seen of the volume's zvols before it is good enough for what is decided next: its own effect is not to be seen in them, and what it
    /// lets a guest or a merge write there is not decided on before they are looked at again.
    pub fn leaves_zvols(&self) -> bool {
        use kernel::NodeStep::{CreateDevice, Login, Logout, Move, Rescan};
        matches!(self, Step::Kernel(Login { .. } | Logout | Rescan { .. } | CreateDevice { .. } | Move { .. }))
    }

    /// What it begins was given up before, and is not begun again at once.
    pub fn begins_anew(&self) -> bool {
        use qemu::NodeStep as Qemu;
        matches!(self, Step::Qemu(Qemu::ResumeCopy | Qemu::OpenLocal | Qemu::StartCopy { .. } | Qemu::OpenBack { .. }))
    }

    /// It takes up something that is over, and may have failed.
    pub fn takes_up(&self) -> bool {
        matches!(self, Step::Qemu(qemu::NodeStep::ResumeCopy | qemu::NodeStep::CancelCopy | qemu::NodeStep::CancelBack))
    }

    /// It destroys what was seen to be of no use: that is seen right before it.
    pub fn is_final(&self) -> bool {
        matches!(self, Step::Kernel(kernel::NodeStep::DestroyLocal))
    }

    /// It may take as long as the whole volume takes.
    pub fn is_bulk(&self) -> bool {
        match self {
            Step::Qemu(step) => {
                matches!(step, qemu::NodeStep::DigestPush { .. } | qemu::NodeStep::RemoveLocal | qemu::NodeStep::ReserveLocal)
            }
            Step::Kernel(step) => {
                use kernel::NodeStep::{DestroyLocal, DestroyWarm, DropSnapshot, FlushRemote, Move, RollBackLocal, Swap};
                matches!(
                    step,
                    DestroyLocal
                        | DestroyWarm { .. }
                        | RollBackLocal { .. }
                        | DropSnapshot { .. }
                        | FlushRemote
                        | Swap { .. }
                        | Move { .. }
                )
            }
        }
    }
}

/// What to do next about one volume on this node.
pub fn plan(record: &NodeRecord, facts: &Facts) -> Decision {
    match (record.assign.plane, facts) {
        (Plane::Qemu, Facts::Qemu(facts)) => qemu::plan(record, facts).map(Step::Qemu),
        (Plane::Kernel, Facts::Kernel(facts)) => kernel::plan(record, facts).map(Step::Kernel),
        _ => Decision::Stuck(OTHER_PLANE.to_owned()),
    }
}

/// The ledger change that a finished step calls for.
pub fn after(record: &NodeRecord, step: &Step, result: &StepResult) -> Option<NodeChange> {
    match step {
        Step::Qemu(step) => qemu::after(record, step, result),
        Step::Kernel(step) => kernel::after(record, step),
    }
}

/// The ledger change that a failed step calls for: a write-back is given up at its first error, and the NAS orders another.
pub fn after_error(record: &NodeRecord, step: &Step, why: &str) -> Option<NodeChange> {
    match step {
        Step::Qemu(step) => qemu::after_error(record, step, why),
        Step::Kernel(step) => kernel::after_error(record, step, why),
    }
}

/// Why a copy or bring-back does not get on, as the jobs say: it is tried again, with growing pauses.
pub fn setback(facts: &Facts) -> Option<&str> {
    match facts {
        Facts::Qemu(facts) => qemu::setback(facts),
        Facts::Kernel(_) => None,
    }
}

/// What lets a guest go on that is held for a pivot the ledger cannot take down.
pub fn retreat(facts: &Facts) -> Option<Step> {
    match facts {
        Facts::Qemu(facts) => qemu::retreat(facts).map(Step::Qemu),
        // A guest is never held there while something is written down.
        Facts::Kernel(_) => None,
    }
}

/// The phase the facts and the ledger show.
pub fn phase(record: &NodeRecord, facts: &Facts) -> NodePhase {
    match facts {
        Facts::Qemu(facts) => qemu::phase(record, facts),
        Facts::Kernel(facts) => kernel::phase(record, facts),
    }
}

/// What this node tells the NAS. `device` is what a guest would use; `stuck` what the actor could not get past.
pub fn report(record: &NodeRecord, facts: &Facts, device: &str, stuck: Option<String>) -> Report {
    match facts {
        Facts::Qemu(facts) => qemu::report(record, facts, device, stuck),
        Facts::Kernel(facts) => kernel::report(record, facts, device, stuck),
    }
}
