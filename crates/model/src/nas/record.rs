//! What a NAS must remember about a volume: its ledger row.

use super::kernel::{Copying, Round};
use crate::{
    Epoch, HostName, Plane, PoolName, RequestId, Size, SnapshotId, VolumeId, VolumeName,
    attribute::Attributes,
    messages::{Assign, DeviceKind, Report, Still, Want},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Where a volume is in its own life.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub enum Stage {
    /// Its file is being made.
    Creating,
    /// A front end fills it from an image.
    Importing {
        /// That front end.
        peer: HostName,
        /// When that front end's process began: another one knows nothing of the image.
        session: Option<Timestamp>,
        /// TCP port of its export.
        port: u16,
        /// The front end says that everything is in.
        complete: bool,
    },
    /// It can be mapped.
    Ready,
    /// It is being destroyed.
    Deleting,
}

/// What the exports lie on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NasLayer {
    /// The volume's file.
    #[default]
    Disk,
    /// The overlay of a bring-back, over the volume's file.
    Overlay,
}

/// Which side holds the newest acknowledged writes, as the NAS knows it. The two `Maybe`s are permissions that were
/// given and not yet answered: whoever holds one may have used it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Authority {
    /// The NAS.
    Nas,
    /// The node may have pivoted to its local copy.
    MaybeNode,
    /// The node.
    Node,
    /// The node may have pivoted back to the NAS's overlay.
    MaybeNas,
}

/// A write-back under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushState {
    /// The snapshot it will be.
    pub push: SnapshotId,
    /// When it was ordered; its point in time is not older.
    pub ordered: Timestamp,
    /// The guest is off.
    pub last: bool,
    /// TCP port of the incoming file.
    pub port: u16,
    /// Its contents are what the node said they are.
    pub verified: bool,
}

/// The newest snapshot that came home in this mapping.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// Which.
    pub push: SnapshotId,
    /// No write older than this is missing from it.
    pub at: Timestamp,
    /// The guest was off.
    pub last: bool,
}

/// The right of one node to use the volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mapping {
    /// The node.
    pub node: HostName,
    /// Its epoch.
    pub epoch: Epoch,
    /// How the guest wants it.
    pub device: DeviceKind,
    /// Who asked.
    pub request: RequestId,
    /// When.
    pub since: Timestamp,
    /// The wanted phase.
    pub want: Want,
    /// Cut a connected guest off.
    pub force: bool,
    /// End the mapping without hearing from the node; only ever given while the NAS has authority.
    pub abandon: bool,
    /// TCP port of its export.
    pub port: u16,
    /// Assignments of this mapping have higher revisions.
    #[serde(default)]
    pub revision_floor: u64,
    /// Who holds the newest writes.
    pub authority: Authority,
    /// When authority passed to the node.
    pub pivoted_at: Option<Timestamp>,
    /// Where the NAS's newest writes are, after a bring-back.
    #[serde(default)]
    pub layer: NasLayer,
    /// A write-back under way.
    pub push: Option<PushState>,
    /// The newest that came home.
    pub accepted: Option<Accepted>,
    /// The operator wants one now.
    pub sync_now: bool,
    /// On the kernel plane.
    #[serde(default, skip_serializing_if = "is_default")]
    pub copying: Copying,
    /// This NAS was rebooted while it had authority: what the node's copy was made equal to may have lost what was not flushed.
    /// The first write-back compares and moves everything.
    #[serde(default)]
    pub base_unsure: bool,
}

/// The ledger row of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeRecord {
    /// Identity.
    pub id: VolumeId,
    /// Its pool.
    pub pool: PoolName,
    /// Its name.
    pub name: VolumeName,
    /// What carries its data.
    #[serde(default)]
    pub plane: Plane,
    /// Its size; a file of another size is made to fit while unmapped.
    pub size: Size,
    /// When it was created.
    pub created: Timestamp,
    /// Where it is in its life.
    #[serde(flatten)]
    pub stage: Stage,
    /// The highest epoch ever given.
    pub epoch: Epoch,
    /// The request whose intent was taken last: asked again, it is not taken twice.
    #[serde(default)]
    pub asked: Option<RequestId>,
    /// The ones before it: a repetition that comes late is not taken for news.
    #[serde(default)]
    pub asked_before: Vec<RequestId>,
    /// A reader may have been given it: there may be a reader's export to end.
    #[serde(default)]
    pub lent: bool,
    /// What was set of it.
    #[serde(default, skip_serializing_if = "Attributes::is_empty")]
    pub attributes: Attributes,
    /// The newest assignment sent to the mapped node.
    pub assign: Option<Assign>,
    /// Who may use it.
    pub mapping: Option<Mapping>,
}

fn is_default(copying: &Copying) -> bool {
    *copying == Copying::default()
}

/// A change of the row that the planner asks for; durable before the next step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NasChange {
    /// The volume is there and usable.
    Created,
    /// Nothing of it is left: the row goes.
    Deleted,
    /// Who holds the newest writes.
    Authority(Authority),
    /// The node may pivot, and at once where nothing is written any more.
    Grant(Still),
    /// Where the NAS's newest writes are.
    Layer(NasLayer),
    /// Order a write-back (the daemon gives it its id, port and time).
    Order {
        /// The guest is off.
        last: bool,
    },
    /// Send another snapshot to the node (the daemon gives it its id).
    Round,
    /// It is there.
    RoundDone,
    /// What the node kept of an earlier mapping is to go first, or is gone.
    Fresh(bool),
    /// A stream is over and well.
    Streamed {
        /// Bytes over the network.
        moved: u64,
        /// Milliseconds.
        took_ms: u64,
    },
    /// Take the last snapshot before authority passed.
    Base,
    /// A bring-back is, or is not any more, to have its overlay.
    Back(bool),
    /// Order a write-back that leaves less to bring back.
    BackRound,
    /// Order the write-back of what lies under a bring-back's overlay.
    BackOrder,
    /// The export's port is taken by somebody else: another one, which nobody has been told yet.
    NewPort,
    /// The write-back under way is what the node said.
    Verified,
    /// The write-back under way came to nothing.
    PushFailed {
        /// Why.
        why: String,
    },
    /// The write-back under way is committed.
    Accepted,
    /// The mapping is over.
    Unmapped,
    /// The new volume could not be made or filled: what there is of it goes.
    GiveUp,
}

impl Mapping {
    /// The volume stays as long as it is: the node may be about to take it over by a snapshot in which it would not be longer.
    pub fn keeps_size(&self) -> bool {
        self.authority == Authority::MaybeNode && self.copying.still.is_some()
    }

    fn order(&mut self, now: Timestamp, last: bool, (push, port): (SnapshotId, u16)) -> SnapshotId {
        self.push = Some(PushState { push, ordered: now, last, port, verified: false });
        self.sync_now = false;
        push
    }
}

impl VolumeRecord {
    /// What is waited for is the node's word while the newest writes are here: what is to be done next depends on what it says, and
    /// nothing of it destroys anything. For a moment the zvol need not be looked at anew.
    pub fn awaits_word(&self) -> bool {
        let nas = |m: &&Mapping| matches!(m.authority, Authority::Nas | Authority::MaybeNode) && m.want != Want::Gone;
        self.stage == Stage::Ready && self.mapping.as_ref().filter(nas).is_some()
    }

    /// The node's report, when it answers the newest assignment: an old one that comes late is then never taken for news.
    pub fn answered<'r>(&self, report: Option<&'r Report>) -> Option<&'r Report> {
        let (mapping, assign) = (self.mapping.as_ref()?, self.assign.as_ref()?);
        report.filter(|r| r.epoch == mapping.epoch && assign.epoch == mapping.epoch && assign.revision == r.revision)
    }

    /// The row after a change; `now` is the daemon's clock, `order` what it gives a new write-back.
    pub fn apply(&mut self, change: &NasChange, now: Timestamp, order: impl FnOnce() -> (SnapshotId, u16)) {
        if *change == NasChange::Created {
            self.stage = Stage::Ready;
        }
        if *change == NasChange::GiveUp {
            self.stage = Stage::Deleting;
            // Who asked for the volume is not told "deleted".
            self.asked = None;
        }
        if *change == NasChange::Unmapped {
            self.mapping = None;
            self.assign = None;
        }
        let Some(mapping) = &mut self.mapping else {
            return;
        };
        match change {
            NasChange::Authority(authority) => {
                match authority {
                    Authority::Node if mapping.authority == Authority::MaybeNode => {
                        mapping.pivoted_at = Some(now);
                        mapping.accepted = None;
                    }
                    Authority::Nas => {
                        if mapping.authority == Authority::MaybeNas && self.plane == Plane::Qemu {
                            mapping.layer = NasLayer::Overlay;
                        }
                        mapping.copying = Copying::default();
                        mapping.pivoted_at = None;
                        mapping.accepted = None;
                        mapping.push = None;
                    }
                    _ => {}
                }
                mapping.authority = *authority;
            }
            NasChange::Grant(still) => {
                mapping.copying.still = Some(still.clone());
                mapping.authority = Authority::MaybeNode;
            }
            NasChange::Layer(layer) => mapping.layer = *layer,
            NasChange::Order { last } => {
                mapping.order(now, *last, order());
            }
            NasChange::BackRound => {
                mapping.order(now, false, order());
                mapping.copying.back_rounds += 1;
            }
            NasChange::BackOrder => mapping.copying.back_push = Some(mapping.order(now, false, order())),
            NasChange::Back(back) => {
                mapping.copying.back = *back;
                (mapping.copying.back_push, mapping.copying.back_rounds) = (None, 0);
            }
            NasChange::Round => mapping.copying.round = Some(order().0),
            NasChange::Fresh(fresh) => mapping.copying.fresh = *fresh,
            NasChange::RoundDone => {
                mapping.copying.round = None;
                mapping.copying.rounds += 1;
            }
            NasChange::Streamed { moved, took_ms } => {
                mapping.copying.last = Some(Round { moved: *moved, took_ms: *took_ms });
            }
            NasChange::Base => mapping.copying.base = Some(order().0),
            NasChange::NewPort => mapping.port = order().1,
            NasChange::Verified => {
                if let Some(push) = &mut mapping.push {
                    push.verified = true;
                }
            }
            NasChange::PushFailed { .. } => {
                mapping.push = None;
                // The next one need not wait for its time.
                mapping.sync_now = true;
            }
            NasChange::Accepted => {
                if let Some(push) = mapping.push.take() {
                    mapping.base_unsure = false;
                    mapping.accepted = Some(Accepted { push: push.push, at: push.ordered, last: push.last });
                }
            }
            NasChange::Created | NasChange::Deleted | NasChange::Unmapped | NasChange::GiveUp => {}
        }
    }
}
