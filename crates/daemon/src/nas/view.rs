//! What is shown of a volume, made from its row, the facts and the node's report.

use super::Shown;
use img_storage_model::{
    HostName,
    api::{Phase, Trouble, VolumeView, WriteBack},
    attribute::AttributeFrom,
    messages::{Endpoint, NodePhase, Report, Want},
    nas::{Authority, Stage, VolumeRecord},
    schedule,
};
use jiff::Timestamp;

/// A volume nobody has looked at yet.
pub(super) fn at_rest(record: &VolumeRecord, nas: &HostName) -> Shown {
    let mut shown = show(record, nas, &Seen::default());
    shown.at_rest = true;
    shown
}

/// What an actor has seen and knows besides the row.
#[derive(Default)]
pub(super) struct Seen<'a> {
    pub allocated: Option<u64>,
    pub report: Option<&'a Report>,
    pub rate: Option<u64>,
    pub frequency: Option<u64>,
    pub clean_at: Option<Timestamp>,
    pub clean: bool,
    pub due: Option<(Timestamp, AttributeFrom)>,
    pub in_line: Option<String>,
    pub last_write_back: Option<WriteBack>,
    pub write_backs: u64,
    pub stuck: Option<Trouble>,
    pub waiting: Option<String>,
    pub progress: Option<img_storage_model::messages::Progress>,
}

pub(super) fn show(record: &VolumeRecord, nas: &HostName, seen: &Seen<'_>) -> Shown {
    let mapping = record.mapping.as_ref();
    let report = seen.report.filter(|r| mapping.is_some_and(|m| m.epoch == r.epoch));
    let moving = report.and_then(|r| r.progress);
    let notice = seen.in_line.clone().or_else(|| report.and_then(|r| r.notice.clone())).or_else(|| seen.waiting.clone());
    let behind_since = mapping.and_then(|m| schedule::behind_since(m, seen.clean_at));
    let view = VolumeView {
        id: record.id,
        nas: nas.clone(),
        pool: record.pool.clone(),
        name: record.name.clone(),
        size: record.size,
        allocated: seen.allocated,
        phase: phase(record, report),
        node: mapping.map(|m| m.node.clone()),
        epoch: record.epoch,
        device: report.and_then(|r| r.device.clone()),
        export: export(record),
        sync: mapping.is_some_and(|m| m.want == Want::Local),
        lag: None,
        home: behind_since,
        frequency: seen.frequency.filter(|_| mapping.is_some_and(|m| m.want == Want::Local)),
        next_sync: seen.due.map(|(at, _)| at),
        dirty: report.and_then(|r| r.dirty),
        progress: moving.or(seen.progress),
        transfer_since: transfer_since(record, phase(record, report)),
        rate: seen.rate.filter(|_| moving.is_some() || seen.progress.is_some()),
        last_write_back: seen.last_write_back.clone().filter(|_| mapping.is_some()),
        write_backs: if mapping.is_some() { seen.write_backs } else { 0 },
        stuck: seen.stuck.clone(),
        notice,
        created: record.created,
        mapped: mapping.map(|m| m.since),
    };
    let home_at = mapping.and_then(|m| m.accepted.as_ref()).map(|a| a.at);
    Shown {
        view,
        plane: record.plane,
        behind_since,
        clean: seen.clean,
        attributes: record.attributes,
        due: seen.due,
        at_rest: false,
        length: None,
        served: None,
        home_at,
        failed: None,
        unread: None,
        at_node: report.map(|r| r.phase),
    }
}

/// Where the node is told to find the volume.
fn export(record: &VolumeRecord) -> Option<String> {
    let assign = record.assign.as_ref().filter(|a| record.mapping.as_ref().is_some_and(|m| m.epoch == a.epoch))?;
    assign.export.as_ref().map(Endpoint::uri)
}

/// Since when something moves between here and the node.
fn transfer_since(record: &VolumeRecord, phase: Phase) -> Option<Timestamp> {
    let mapping = record.mapping.as_ref()?;
    let write_back = mapping.push.as_ref().map(|p| p.ordered);
    match phase {
        Phase::Copying | Phase::Switching => Some(mapping.since),
        Phase::Remote if mapping.want == Want::Local => Some(mapping.since),
        Phase::Local => write_back,
        Phase::Returning if mapping.authority != Authority::Nas => {
            let last = mapping.accepted.as_ref().map(|a| a.at).or(mapping.pivoted_at);
            Some(write_back.or(last).unwrap_or(mapping.since))
        }
        _ => None,
    }
}

fn phase(record: &VolumeRecord, report: Option<&Report>) -> Phase {
    match record.stage {
        Stage::Creating => return Phase::Creating,
        Stage::Importing { .. } => return Phase::Importing,
        Stage::Deleting => return Phase::Deleting,
        Stage::Ready => {}
    }
    let Some(mapping) = &record.mapping else { return Phase::Unmapped };
    if mapping.want == Want::Gone {
        return Phase::Returning;
    }
    let Some(report) = report else { return Phase::Attaching };
    match report.phase {
        NodePhase::Attaching | NodePhase::Gone => Phase::Attaching,
        NodePhase::Remote => Phase::Remote,
        NodePhase::Copying => Phase::Copying,
        NodePhase::Ready => Phase::Copying,
        NodePhase::Switching => Phase::Switching,
        // Until the NAS has written down that authority passed, the switch is not over.
        NodePhase::Local if mapping.authority == Authority::MaybeNode => Phase::Switching,
        NodePhase::Local => Phase::Local,
        NodePhase::BringingBack | NodePhase::BackReady => Phase::BringingBack,
        NodePhase::Returning => Phase::Returning,
    }
}
