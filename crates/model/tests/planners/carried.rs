//! What was seen of zvols and is not looked at again for a moment: after which steps, and what is said meanwhile.

use crate::{
    kernel_nas,
    kernel_node::{self, copy, point, row, seen, with},
    things::{E, size, snapshot},
};
use img_storage_model::{
    messages::Want,
    nas::{self, kernel::Way},
    node::{
        self, JobState,
        Layer::{Local, Remote},
        Lies,
        kernel::{LocalZvol, NodeStep, Table, report},
    },
};

#[test]
fn a_node_looks_at_its_zvols_after_whatever_is_to_be_seen_there() {
    let leaves = |step: NodeStep| node::Step::Kernel(step).leaves_zvols();
    assert!(leaves(NodeStep::Logout) && leaves(NodeStep::Rescan { size: size() }));
    assert!(leaves(NodeStep::CreateDevice { epoch: E, table: Table::Linear(Remote), size: size() }));
    // Whether it was moved is seen on the device.
    assert!(leaves(NodeStep::Move { writes: kernel_node::writes(1), size: size() }));
    let others = [
        // What a guest wrote until now counts for what comes next.
        NodeStep::RemoveDevice { force: false },
        NodeStep::Swap { table: Table::Linear(Local), size: size() },
        NodeStep::ResumeDevice,
        NodeStep::FlushRemote,
        NodeStep::SetReceives { epoch: None },
        NodeStep::ReserveLocal,
        NodeStep::CloseLocal,
        NodeStep::UnreserveLocal,
        NodeStep::GrowLocal { size: size() },
        NodeStep::RollBackLocal { to: snapshot(1) },
        NodeStep::SettleLocal,
        NodeStep::DestroyLocal,
        NodeStep::DestroyWarm { home: point(1) },
        NodeStep::CreateOverlay { epoch: E, size: size() },
        NodeStep::RemoveOverlay,
        NodeStep::TakeSnapshot { snapshot: snapshot(1) },
        NodeStep::HoldSnapshot { snapshot: snapshot(1) },
        NodeStep::DropSnapshot { snapshot: snapshot(1) },
    ];
    for step in others {
        assert!(!leaves(step.clone()), "{step:?}");
    }
}

#[test]
fn a_nas_looks_at_its_zvol_after_what_came_in_a_stream() {
    use nas::kernel::NasStep::{DropSnapshot, EndStream, Hold, TakeSnapshot, Unexport};
    let of =
        |way| nas::Facts::Kernel(kernel_nas::streaming(kernel_nas::facts(kernel_nas::zvol(&[1]), true), way, 2, JobState::Done));
    let leaves = |step, way| nas::Step::Kernel(step).leaves_zvol(&of(way));
    assert!(leaves(EndStream, Way::ToNode));
    assert!(!leaves(EndStream, Way::FromNode));
    let snapshot = snapshot(1);
    // A node may have written until its export was closed.
    for step in [Unexport { epoch: E }, TakeSnapshot { snapshot }, Hold { snapshot }, DropSnapshot { snapshot }] {
        assert!(!leaves(step.clone(), Way::ToNode), "{step:?}");
    }
}

#[test]
fn what_was_written_is_told_of_a_local_copy_that_has_all_of_it() {
    let home = |lies| with(row(lies, Want::Local), |a| a.accepted = Some(snapshot(1)));
    let local = || Some(LocalZvol { written: 9, receives: None, ..copy(&[1]) });
    let dirty = |lies, table: Option<Table>| {
        let facts = seen(None, table, local(), table != Some(Table::Linear(Local)));
        report(&home(lies), &facts, "/dev/mapper/x", None).dirty
    };
    assert_eq!(dirty(Lies::Local, Some(Table::Linear(Local))), Some(9));
    assert_eq!(dirty(Lies::Local, None), Some(9), "nobody writes any more");
    // The ledger says first that the merge is over; what was merged is counted later.
    assert_eq!(dirty(Lies::Local, Some(Table::Merge(Local))), None);
    assert_eq!(dirty(Lies::MergingLocal, Some(Table::Merge(Local))), None);
    assert_eq!(dirty(Lies::OverLocal, Some(Table::Overlay(Local))), None);
}
