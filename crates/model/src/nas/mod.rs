//! What a NAS decides about one of its volumes: the ledger row, what operators can want, and the planners of the two planes.
//!
//! What both planes have in common is the row, the intents and the assignment; what they see and do is in [`qemu`] and [`kernel`].

mod assign;
mod intent;
pub mod kernel;
pub mod qemu;
mod record;

use crate::{
    Fact, HostName, Plane,
    attribute::{Speed, Speeds},
    messages::Report,
    node::{Job, StepResult},
};
pub use assign::{Terms, assignment, copies};
pub use intent::{Intent, adopt, apply};
pub use record::{Accepted, Authority, Mapping, NasChange, NasLayer, PushState, Stage, VolumeRecord};
use std::fmt;

/// What a NAS's host can show about one volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Facts {
    /// On the qemu plane.
    Qemu(qemu::NasFacts),
    /// On the kernel plane.
    Kernel(kernel::NasFacts),
}

/// One effect on the NAS's host, on one volume.
#[derive(Clone, PartialEq, Eq)]
pub enum Step {
    /// On the qemu plane.
    Qemu(qemu::NasStep),
    /// On the kernel plane.
    Kernel(kernel::NasStep),
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Qemu(step) => step.fmt(f),
            Step::Kernel(step) => step.fmt(f),
        }
    }
}

impl From<qemu::NasStep> for Step {
    fn from(step: qemu::NasStep) -> Self {
        Step::Qemu(step)
    }
}

impl From<kernel::NasStep> for Step {
    fn from(step: kernel::NasStep) -> Self {
        Step::Kernel(step)
    }
}

/// A NAS's decision.
pub type Decision = crate::Decision<Step, NasChange>;

/// What the planner is told besides the row and the facts.
#[derive(Clone, Debug, Default)]
pub struct Context<'a> {
    /// The node's newest report of this volume.
    pub report: Option<&'a Report>,
    /// A write-back is due by the clock.
    pub due: bool,
    /// The last write-back failed a moment ago: no other is ordered for now.
    pub hold_off: bool,
    /// A reader wants the volume: who, on which port.
    pub reader: Option<(HostName, u16)>,
    /// This NAS's name.
    pub nas: &'a str,
    /// The mapped node's iSCSI name, when it has said one.
    pub initiator: Option<&'a str>,
    /// Where the mapped node is reached; without it, by its name.
    pub peer_address: Option<&'a str>,
    /// The iSCSI secret of this mapping.
    pub password: &'a str,
    /// How fast transfers may be.
    pub speeds: Speeds,
}

/// Why a mapping does not end whose node had the newest writes and says now that nothing is left there.
fn never_home(m: &Mapping) -> String {
    format!(
        "{} says that nothing of the volume is mapped there, and its last write-back never came home: is its ledger an old one? \
         `img-storage doctor` there shows what it has; nothing is ended",
        m.node
    )
}

impl Context<'_> {
    /// How fast a stream may go.
    pub fn speed(&self, way: kernel::Way) -> Speed {
        match way {
            kernel::Way::ToNode => self.speeds.download,
            kernel::Way::FromNode => self.speeds.upload,
        }
    }
}

impl Facts {
    /// Nothing can be seen.
    pub fn unknown(plane: Plane, why: &str) -> Self {
        fn blind<T>(why: &str) -> Fact<T> {
            Fact::Unknown(why.to_owned())
        }
        match plane {
            Plane::Qemu => Facts::Qemu(qemu::NasFacts {
                disk: blind(why),
                export: blind(why),
                incoming: blind(why),
                pending: blind(why),
                overlay: blind(why),
                reader: blind(why),
            }),
            Plane::Kernel => Facts::Kernel(kernel::NasFacts {
                zvol: blind(why),
                exports: blind(why),
                import: blind(why),
                reader: blind(why),
                stream: None,
            }),
        }
    }

    /// What was seen of the volume's zvol; there is none on the qemu plane.
    pub fn into_zvol(self) -> Option<kernel::Zvol> {
        match self {
            Facts::Kernel(kernel::NasFacts { zvol: Fact::Known(zvol), .. }) => zvol,
            Facts::Kernel(_) | Facts::Qemu(_) => None,
        }
    }

    /// Bytes the volume takes in the pool.
    pub fn allocated(&self) -> Option<u64> {
        match self {
            Facts::Qemu(facts) => facts.disk.known().copied().flatten().map(|d| d.allocated),
            Facts::Kernel(facts) => facts.zvol.known()?.as_ref().map(|z| z.allocated),
        }
    }

    /// Length of the volume here, in bytes.
    pub fn length(&self) -> Option<u64> {
        match self {
            Facts::Qemu(facts) => facts.disk.known().copied().flatten().map(|d| d.size),
            Facts::Kernel(facts) => facts.zvol.known()?.as_ref().map(|z| z.size),
        }
    }

    /// Whether a reader's export is served.
    pub fn reader(&self) -> Option<bool> {
        match self {
            Facts::Qemu(facts) => facts.reader.known().copied(),
            Facts::Kernel(facts) => facts.reader.known().copied(),
        }
    }

    /// The name of the export through which a front end fills it.
    pub fn import(&self) -> Option<&str> {
        let export = match self {
            Facts::Qemu(facts) => facts.export.known()?.as_ref()?,
            Facts::Kernel(facts) => facts.import.known()?.as_ref()?,
        };
        export.names.first().map(String::as_str)
    }

    /// The stream that this daemon runs.
    pub fn stream(&self) -> Option<&kernel::Stream> {
        match self {
            Facts::Qemu(_) => None,
            Facts::Kernel(facts) => facts.stream.as_ref(),
        }
    }

    /// The job that moves contents here.
    pub fn job(&self) -> Option<&Job> {
        match self {
            Facts::Qemu(facts) => facts.export.known()?.as_ref()?.commit.as_ref(),
            Facts::Kernel(facts) => facts.stream.as_ref().map(|s| &s.job),
        }
    }

    /// What a bring-back needs here is made.
    pub fn back_begun(&self) -> bool {
        match self {
            Facts::Qemu(facts) => facts.overlay.known().is_some_and(Option::is_some),
            Facts::Kernel(_) => false,
        }
    }

    /// Why something that is tried again does not get on.
    pub fn setback(&self) -> Option<String> {
        match self {
            Facts::Qemu(facts) => qemu::setback(facts),
            Facts::Kernel(facts) => kernel::setback(facts),
        }
    }
}

impl Step {
    /// What was seen of the volume's zvol before it is good enough for what is decided next, if that is not that something is wrong: an export notes on
    /// it what ZFS counts by itself. `facts` are those that the step was planned with.
    pub fn leaves_zvol(&self, facts: &Facts) -> bool {
        use kernel::NasStep::{EndStream, Export, SetSpeed};
        match self {
            Step::Kernel(Export { .. } | SetSpeed { .. }) => true,
            Step::Kernel(EndStream) => facts.stream().is_some_and(|stream| stream.way == kernel::Way::ToNode),
            _ => false,
        }
    }

    /// What it begins was given up before, and is not begun again at once.
    pub fn begins_anew(&self) -> bool {
        matches!(
            self,
            Step::Qemu(qemu::NasStep::StartCommit) | Step::Kernel(kernel::NasStep::Send { .. } | kernel::NasStep::Receive { .. })
        )
    }

    /// It begins to take a guest back.
    pub fn begins_back(&self) -> bool {
        matches!(self, Step::Qemu(qemu::NasStep::CreateOverlay { .. }))
    }

    /// It gives the volume to a reader.
    pub fn lends(&self) -> bool {
        matches!(self, Step::Qemu(qemu::NasStep::StartReader { .. }) | Step::Kernel(kernel::NasStep::StartReader { .. }))
    }

    /// It may take as long as the whole volume takes.
    pub fn is_bulk(&self) -> bool {
        use kernel::NasStep as Kernel;
        use qemu::NasStep as Qemu;
        match self {
            Step::Qemu(step) => matches!(
                step,
                Qemu::SyncDisk
                    | Qemu::RemoveDisk
                    | Qemu::StopExport
                    | Qemu::VerifyIncoming { .. }
                    | Qemu::SealIncoming { .. }
                    | Qemu::CommitPending { .. }
            ),
            Step::Kernel(step) => {
                matches!(step, Kernel::SyncZvol | Kernel::DestroyZvol | Kernel::StopImport | Kernel::DropSnapshot { .. })
            }
        }
    }

    /// It ends something that is over, and may have failed.
    pub fn takes_up(&self) -> bool {
        matches!(self, Step::Qemu(qemu::NasStep::EndCommit) | Step::Kernel(kernel::NasStep::EndStream))
    }
}

/// What to do next about one volume.
pub fn plan(v: &VolumeRecord, facts: &Facts, context: &Context<'_>) -> Decision {
    match (v.plane, facts) {
        (Plane::Qemu, Facts::Qemu(facts)) => qemu::plan(v, facts, context).map(Step::Qemu),
        (Plane::Kernel, Facts::Kernel(facts)) => kernel::plan(v, facts, context).map(Step::Kernel),
        _ => Decision::Stuck("the host shows a volume of another plane".to_owned()),
    }
}

/// The ledger change that a finished step calls for.
pub fn after(v: &VolumeRecord, step: &Step, result: &StepResult) -> Option<NasChange> {
    match step {
        Step::Qemu(step) => qemu::after(v, step, result),
        Step::Kernel(step) => kernel::after(v, step, result),
    }
}

/// The ledger change that a failed step calls for: a write-back that cannot be taken in is given up and ordered anew.
pub fn after_error(v: &VolumeRecord, step: &Step, why: &str) -> Option<NasChange> {
    match step {
        Step::Qemu(step) => qemu::after_error(v, step, why),
        Step::Kernel(step) => kernel::after_error(v, step),
    }
}
