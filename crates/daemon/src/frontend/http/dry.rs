//! Dry runs: what an order would do, from what can be seen now. They promise nothing: the NAS decides when it is asked.

use super::{
    Office,
    wire::{Create, Export, Map, Outcome},
};
use crate::{frontend::transfers::look_at_image, nas::no_guests};
use img_storage_model::{
    Fault, HostName, RequestId, Selector, Size,
    api::{HostView, Phase, VolumeView},
    attribute::{AttributeKey, AttributeView, Attributes, Changes, NasAttributes},
    messages::Role,
    size::human_bytes,
};
use std::path::Path;

fn would(volume: Option<VolumeView>, steps: Vec<String>) -> Outcome {
    Outcome { dry_run: true, would: steps, volume, ..Outcome::default() }
}

fn in_use(volume: &VolumeView) -> Fault {
    let name = volume.full_name();
    match &volume.node {
        Some(node) => Fault::refused(format!("{name} is mapped to {node} ({})", volume.phase))
            .next(format!("unmap it first: img-storage unmap {name}")),
        None => Fault::refused(format!("{name} is {}", volume.phase)).next("try again when that is over"),
    }
}

/// The file to be made must not be there.
pub fn nothing_at(file: &Path) -> Result<(), Fault> {
    let shown = file.display();
    match std::fs::symlink_metadata(file) {
        Ok(_) => Err(Fault::refused(format!("{shown} is there already")).next("move it away, or choose another name")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => match file.parent().map(std::fs::metadata) {
            Some(Ok(parent)) if parent.is_dir() => Ok(()),
            _ => Err(Fault::not_found(format!("the directory of {shown} does not exist")).next("create it first")),
        },
        Err(error) => Err(Fault::failed(format!("cannot look at {shown}: {error}"))),
    }
}

pub async fn create(office: &dyn Office, nas: &HostName, order: &Create) -> Result<Outcome, Fault> {
    let selector = Selector { nas: Some(nas.clone()), ..order.name.clone() };
    if let Some(there) = office.volumes(Some(&selector)).await?.first() {
        return Err(Fault::refused(format!("{} is there already", there.full_name())).next("choose another name"));
    }
    let (size, image) = match (&order.from, order.size) {
        (Some(from), size) => {
            let (image, size) = look_at_image(from, size).await?;
            (size, Some(format!("fill it from {} ({})", from.display(), human_bytes(image.virtual_size))))
        }
        (None, Some(size)) => (size, None),
        (None, None) => return Err(Fault::invalid("a new volume needs a size")),
    };
    let mut steps = vec![format!("create {selector} of {size} ({} bytes)", size.bytes())];
    steps.extend(image);
    Ok(would(None, steps))
}

pub fn map(hosts: &[HostView], volume: VolumeView, order: &Map) -> Result<Outcome, Fault> {
    let node = &order.node;
    let host = hosts.iter().find(|h| h.name == *node).ok_or_else(|| {
        Fault::unreachable(format!("host {node} is unknown or not connected")).next("img-storage hosts shows those that are")
    })?;
    if host.role != Role::Node {
        return Err(no_guests(node, host.role));
    }
    if host.away {
        return Err(Fault::unreachable(format!("{node} was last heard of {} s ago", host.heard))
            .next(format!("see that img-storage runs on {node}")));
    }
    match (volume.phase, &volume.node) {
        (Phase::Unmapped, _) => {}
        (Phase::Remote | Phase::Attaching, Some(at)) if at == node && order.sync && !volume.sync => {}
        _ => return Err(in_use(&volume)),
    }
    let mut steps = Vec::new();
    if volume.phase == Phase::Unmapped {
        steps.push(format!("export {} to {node}", volume.full_name()));
        steps.push(format!("attach it on {node} as a guest's device"));
    }
    if order.sync {
        steps.push(format!(
            "copy {} to {node} and switch the guest over",
            human_bytes(volume.allocated.unwrap_or(volume.size.bytes()))
        ));
    }
    Ok(would(Some(volume), steps))
}

pub fn unmap(volume: VolumeView, force: bool) -> Result<Outcome, Fault> {
    let Some(node) = volume.node.clone().filter(|_| volume.phase != Phase::Unmapped) else {
        return Err(Fault::refused(format!("{} is not mapped", volume.full_name())).next("see img-storage list"));
    };
    let mut steps = Vec::new();
    if force {
        steps.push(format!("cut off whoever uses the device on {node}: writes it has not flushed are lost"));
    }
    if matches!(volume.phase, Phase::Switching | Phase::Local | Phase::BringingBack | Phase::Returning) {
        let dirty =
            volume.dirty.map_or_else(|| "the last changes".to_owned(), |d| format!("the last changes ({})", human_bytes(d)));
        steps.push(format!("bring {dirty} from {node} to {} and verify them there", volume.nas));
        steps.push(format!("release the local copy on {node}"));
    }
    steps.push(format!("end the mapping of {} to {node}", volume.full_name()));
    Ok(would(Some(volume), steps))
}

pub fn sync(volume: VolumeView) -> Outcome {
    let steps = match (&volume.node, volume.phase) {
        (Some(node), Phase::Local) => {
            let dirty = volume.dirty.map(|d| format!(" ({})", human_bytes(d))).unwrap_or_default();
            vec![format!("push what changed on {node}{dirty} to {}", volume.nas)]
        }
        _ => Vec::new(),
    };
    would(Some(volume), steps)
}

pub fn bring_back(volume: VolumeView) -> Result<Outcome, Fault> {
    let node = volume.node.clone().map_or_else(|| "its node".to_owned(), |n| n.to_string());
    match volume.phase {
        Phase::Copying | Phase::Switching | Phase::Local if volume.sync => {
            let mut steps = Vec::new();
            if volume.phase == Phase::Local {
                steps.push(format!("write what changed on {node} to {} while the guest runs", volume.nas));
                steps.push(format!("switch the guest on {node} over to {}", volume.nas));
            }
            steps.push(format!("release the local copy on {node}"));
            Ok(would(Some(volume), steps))
        }
        phase => Err(Fault::refused(format!("{} is {phase}, not local", volume.full_name()))
            .next("only a volume on a local copy can be brought back")),
    }
}

/// `now` are the attributes as they count, `of` names whose they are.
pub fn set(of: &str, volume: Option<VolumeView>, now: &[AttributeView], changes: &Changes) -> Result<Outcome, Fault> {
    let at = jiff::Timestamp::now();
    match volume {
        Some(_) => Attributes::default().changed(changes, at).map(drop)?,
        None => {
            let request = RequestId(uuid::Uuid::nil());
            NasAttributes::default().changed(changes, false, request, at).map(drop)?;
        }
    }
    let mut steps = Vec::new();
    for (name, value) in changes {
        let key: AttributeKey = name.parse()?;
        let before = now.iter().find(|view| view.key == key.name());
        let before = before.and_then(|view| view.value.as_ref().map(|value| format!("{value}, {}", view.from)));
        let before = before.unwrap_or_else(|| "nothing".to_owned());
        steps.push(match value {
            Some(value) => format!("set {key} of {of} to {value} (now {before})"),
            None => format!("unset {key} of {of} (now {before})"),
        });
    }
    Ok(would(volume, steps))
}

pub fn resize(volume: VolumeView, size: Size) -> Result<Outcome, Fault> {
    if size < volume.size {
        return Err(Fault::refused(format!("{} is {} already; volumes do not shrink", volume.full_name(), volume.size))
            .next("give a larger size"));
    }
    let steps = if size == volume.size {
        Vec::new()
    } else if volume.phase == Phase::Unmapped {
        vec![format!("make {} longer, from {} to {size}", volume.full_name(), volume.size)]
    } else {
        return Err(in_use(&volume));
    };
    Ok(would(Some(volume), steps))
}

pub fn delete(volume: VolumeView) -> Result<Outcome, Fault> {
    match volume.phase {
        Phase::Unmapped | Phase::Importing | Phase::Deleting => {
            let steps = vec![format!("destroy {} and all its contents ({})", volume.full_name(), volume.size)];
            Ok(would(Some(volume), steps))
        }
        _ => Err(in_use(&volume)),
    }
}

pub fn export(volume: VolumeView, order: &Export) -> Result<Outcome, Fault> {
    nothing_at(&order.file)?;
    // While a node has newer writes the copy here is a point in time.
    if !matches!(volume.phase, Phase::Unmapped | Phase::Local) {
        return Err(in_use(&volume));
    }
    let steps =
        vec![format!("write {} ({}) to {} as {}", volume.full_name(), volume.size, order.file.display(), order.format.name())];
    Ok(would(Some(volume), steps))
}
