//! Rows, facts and reports to begin from, and arbitrary ones.

pub use crate::common::*;
use img_storage_model::{
    Epoch, Extents, Fact, SnapshotId,
    messages::{Assign, BackOrder, ContentDigest, Endpoint, NodePhase, PushOrder, Report, Want},
    node::{Job, JobState, PushOutcome, PushResult, qemu::Incremental},
};
use proptest::prelude::*;

pub fn job(state: JobState) -> Job {
    Job { state, done: 1, total: 2, speed: 0 }
}

pub fn sent(push: SnapshotId) -> PushResult {
    let outcome = PushOutcome::Sent { extents: Extents::whole(1 << 20), digest: ContentDigest("d".to_owned()), moved: 9 };
    PushResult { push, outcome }
}

pub fn failed(push: SnapshotId) -> PushResult {
    PushResult { push, outcome: PushOutcome::Failed { why: "no".to_owned() } }
}

/// A report that answers [`assign`].
pub fn report(phase: NodePhase, pivoted: bool) -> Report {
    Report {
        volume: volume(),
        epoch: E,
        revision: 5,
        phase,
        pivoted,
        detached: pivoted,
        attached: None,
        device: None,
        progress: None,
        dirty: None,
        pushed: None,
        stuck: None,
        notice: None,
        asked: None,
        kernel: None,
        proof: None,
    }
}

pub fn any_epoch() -> impl Strategy<Value = Epoch> {
    prop_oneof![4 => Just(E), 1 => Just(Epoch(2)), 1 => Just(Epoch(4))]
}

pub fn any_snapshot() -> impl Strategy<Value = SnapshotId> {
    (0u8..3).prop_map(snapshot)
}

pub fn any_want() -> impl Strategy<Value = Want> {
    prop_oneof![Just(Want::Remote), Just(Want::Local), Just(Want::Gone)]
}

pub fn any_job() -> impl Strategy<Value = Job> {
    prop_oneof![
        Just(JobState::Running),
        Just(JobState::Paused("full".to_owned())),
        Just(JobState::Ready),
        Just(JobState::Pending),
        Just(JobState::Done),
        Just(JobState::Failed("no".to_owned())),
    ]
    .prop_map(job)
}

pub fn any_since() -> impl Strategy<Value = Incremental> {
    prop_oneof![Just(Incremental::Pivot), Just(Incremental::Unknown), any_snapshot().prop_map(Incremental::Snapshot)]
}

pub fn any_pushed() -> impl Strategy<Value = PushResult> {
    (any_snapshot(), any::<bool>()).prop_map(|(push, well)| if well { sent(push) } else { failed(push) })
}

/// Known, or not: a fact and the same fact unseen.
pub fn unseen<T>() -> Fact<T> {
    Fact::Unknown("it does not answer".to_owned())
}

pub fn any_export() -> impl Strategy<Value = Endpoint> {
    prop_oneof![Just("e3"), Just("e3.back")].prop_map(endpoint)
}

prop_compose! {
    pub fn any_assign()(
        want in any_want(),
        epoch in any_epoch(),
        flags in any::<(bool, bool, bool)>(),
        export in proptest::option::of(any_export()),
        push in proptest::option::of((any_snapshot(), any::<bool>(), any::<bool>(), any::<bool>())),
        accepted in proptest::option::of(any_snapshot()),
        back in proptest::option::of(any::<bool>()),
    ) -> Assign {
        let push = push.map(|(push, served, last, full)| PushOrder { push, endpoint: served.then(|| endpoint("push")), last, full });
        let back = back.map(|granted| BackOrder { endpoint: endpoint("e3.back"), granted });
        let (force, granted, release) = flags;
        Assign { epoch, force, granted, release, export, push, accepted, back, ..assign(want) }
    }
}

prop_compose! {
    pub fn any_report()(
        phase in prop_oneof![
            Just(NodePhase::Attaching), Just(NodePhase::Remote), Just(NodePhase::Copying), Just(NodePhase::Ready),
            Just(NodePhase::Switching), Just(NodePhase::Local), Just(NodePhase::BringingBack), Just(NodePhase::BackReady),
            Just(NodePhase::Returning), Just(NodePhase::Gone),
        ],
        pivoted in any::<bool>(),
        detached in any::<bool>(),
        attached in proptest::option::of(prop_oneof![Just("e3".to_owned()), Just("e3.back".to_owned())]),
        pushed in proptest::option::of(any_pushed()),
    ) -> Report {
        Report { detached, attached, pushed, ..report(phase, pivoted) }
    }
}
