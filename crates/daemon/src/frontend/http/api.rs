//! The handlers: take a request apart, ask the office, put the answer together.

use super::{
    Api, Office,
    body::{Asked, Body, Failure, Named},
    dry,
    wire::{Attributes, Create, Export, History, Hosts, Map, Order, Outcome, Plain, Resize, Set, Status, Unmap, Volumes},
};
use crate::frontend::{TransferId, TransferView};
use axum::{Json, extract::State};
use img_storage_model::{
    Fault, HostName, Selector, VolumeId,
    api::{Answer, AttributesOf, Request, VolumeView},
};
use serde::Deserialize;
use std::{collections::BTreeMap, path::Path, time::Duration};
use utoipa::IntoParams;

type Reply<T> = Result<Json<T>, Failure>;

/// How long a question may take.
const QUESTION: Duration = Duration::from_secs(10);

/// Which volumes.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Which {
    /// `NAS:POOL/NAME` or any shorter part of it; all volumes without one.
    #[param(value_type = Option<String>, example = "tank/vol1")]
    selector: Option<Selector>,
}

/// Which volume.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WhichOne {
    /// `NAS:POOL/NAME` or any shorter part of it that is unique.
    #[param(value_type = String, example = "tank/vol1")]
    selector: Selector,
}

/// A transfer's id in a path.
pub struct Transfer(TransferId);

impl std::str::FromStr for Transfer {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self, Fault> {
        serde_json::from_value(serde_json::Value::String(text.to_owned()))
            .map(Transfer)
            .map_err(|_| Fault::invalid(format!("{text:?} is no transfer's id")))
    }
}

/// Everything on one screen.
#[utoipa::path(get, path = "/api/status", operation_id = "status", responses((status = 200, body = Status)))]
pub async fn status(State(api): State<Api>) -> Json<Status> {
    let (hosts, volumes) = tokio::join!(api.office.hosts(), api.office.volumes(None));
    let (volumes, trouble) = match volumes {
        Ok(volumes) => (volumes, None),
        Err(fault) => (Vec::new(), Some(fault)),
    };
    let mut phases = BTreeMap::new();
    for volume in &volumes {
        *phases.entry(volume.phase).or_default() += 1;
    }
    let some = |of: &dyn Fn(&VolumeView) -> bool| volumes.iter().filter(|v| of(v)).cloned().collect();
    Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        hosts,
        volumes: u64::try_from(volumes.len()).unwrap_or(u64::MAX),
        phases,
        stuck: some(&|v| v.stuck.is_some()),
        moving: some(&|v| v.progress.is_some()),
        trouble,
    })
}

/// The hosts.
#[utoipa::path(get, path = "/api/hosts", operation_id = "hosts", responses((status = 200, body = Hosts)))]
pub async fn hosts(State(api): State<Api>) -> Json<Hosts> {
    Json(Hosts { hosts: api.office.hosts().await })
}

/// The volumes.
#[utoipa::path(get, path = "/api/volumes", operation_id = "volumes", params(Which), responses((status = 200, body = Volumes)))]
pub async fn volumes(State(api): State<Api>, Asked(which): Asked<Which>) -> Reply<Volumes> {
    Ok(Json(Volumes { volumes: api.office.volumes(which.selector.as_ref()).await? }))
}

/// One volume.
#[utoipa::path(get, path = "/api/volumes/{volume}", operation_id = "volume", responses((status = 200, body = VolumeView)))]
pub async fn volume(State(api): State<Api>, Named(selector): Named<Selector>) -> Reply<VolumeView> {
    Ok(Json(api.office.one(&selector).await?))
}

/// What happened to a volume.
#[utoipa::path(get, path = "/api/history", operation_id = "history", params(WhichOne), responses((status = 200, body = History)))]
pub async fn history(State(api): State<Api>, Asked(which): Asked<WhichOne>) -> Reply<History> {
    let volume = api.office.one(&which.selector).await?;
    match api.office.ask(&volume.nas, api.office.id(), Request::History { volume: volume.id }, QUESTION).await? {
        Answer::History { events } => Ok(Json(History { events })),
        other => Err(strange(&volume.nas, &other).into()),
    }
}

/// How far an export is.
#[utoipa::path(get, path = "/api/transfers/{id}", operation_id = "transfer", responses((status = 200, body = TransferView)))]
pub async fn transfer(State(api): State<Api>, Named(Transfer(id)): Named<Transfer>) -> Reply<TransferView> {
    api.office.transfer(id).map(Json).ok_or_else(|| {
        Fault::not_found("no such transfer here").next("transfers are forgotten when the front end restarts").into()
    })
}

/// This description.
#[utoipa::path(get, path = "/api/openapi.json", operation_id = "openapi", responses((status = 200, body = Object)))]
pub async fn openapi_json() -> Json<utoipa::openapi::OpenApi> {
    Json(super::openapi())
}

/// A new volume.
#[utoipa::path(post, path = "/api/volumes", operation_id = "create", request_body = Create, responses((status = 200, body = Outcome)))]
pub async fn create(State(api): State<Api>, Body(order): Body<Create>) -> Reply<Outcome> {
    if order.size.is_none() && order.from.is_none() {
        return Err(Fault::invalid("a new volume needs a size or an image to fill it from").into());
    }
    if let Some(from) = &order.from {
        absolute(from)?;
    }
    let common = order.common();
    let Selector { nas, pool, name } = order.name.clone();
    if common.dry_run {
        let nas = api.office.nas_for_new(nas.as_ref(), pool.as_ref()).await?;
        return Ok(Json(dry::create(&*api.office, &nas, &order).await?));
    }
    let id = common.id.unwrap_or_else(|| api.office.id());
    let deadline = common.deadline()?;
    let office = api.office.clone();
    let what = format!("create {} {:?} {:?}", order.name, order.size, order.from);
    let work = async move {
        let nas = office.nas_for_new(nas.as_ref(), pool.as_ref()).await?;
        let volume = match (order.from, order.size) {
            (Some(from), size) => office.create_from(nas, pool, name, size, from).await?,
            (None, Some(size)) => {
                let request = Request::Create { pool, name, size, import: false };
                match office.ask(&nas, id, request, deadline).await? {
                    Answer::Volume { volume } => *volume,
                    other => return Err(strange(&nas, &other)),
                }
            }
            (None, None) => return Err(Fault::invalid("a new volume needs a size")),
        };
        Ok(Outcome { volume: Some(volume), ..Outcome::default() })
    };
    Ok(Json(api.once.run(id, what, work).await?))
}

/// Map a volume to a node; answered when it can be used.
#[utoipa::path(post, path = "/api/volumes/{volume}/map", operation_id = "map", request_body = Map, responses((status = 200, body = Outcome)))]
pub async fn map(State(api): State<Api>, Named(volume): Named<Selector>, Body(order): Body<Map>) -> Reply<Outcome> {
    if order.dry_run {
        let volume = expected(&*api.office, &volume, order.expect).await?;
        return Ok(Json(dry::map(&api.office.hosts().await, volume, &order)?));
    }
    let (node, sync, device) = (order.node.clone(), order.sync, order.device);
    api.order("map", volume, &order, move |volume| Request::Map { volume, node, sync, device }).await
}

/// End a mapping; answered when it is over.
#[utoipa::path(post, path = "/api/volumes/{volume}/unmap", operation_id = "unmap", request_body = Unmap, responses((status = 200, body = Outcome)))]
pub async fn unmap(State(api): State<Api>, Named(volume): Named<Selector>, Body(order): Body<Unmap>) -> Reply<Outcome> {
    if order.dry_run {
        return Ok(Json(dry::unmap(expected(&*api.office, &volume, order.expect).await?, order.force)?));
    }
    let force = order.force;
    api.order("unmap", volume, &order, move |volume| Request::Unmap { volume, force }).await
}

/// Bring the NAS's copy up to date now; answered when it is.
#[utoipa::path(post, path = "/api/volumes/{volume}/sync", operation_id = "sync", request_body = Plain, responses((status = 200, body = Outcome)))]
pub async fn sync(State(api): State<Api>, Named(volume): Named<Selector>, Body(order): Body<Plain>) -> Reply<Outcome> {
    if order.dry_run {
        return Ok(Json(dry::sync(expected(&*api.office, &volume, order.expect).await?)));
    }
    api.order("sync", volume, &order, |volume| Request::Sync { volume }).await
}

/// From local back to remote while the guest runs; answered when it is.
#[utoipa::path(post, path = "/api/volumes/{volume}/bring-back", operation_id = "bring-back", request_body = Plain, responses((status = 200, body = Outcome)))]
pub async fn bring_back(State(api): State<Api>, Named(volume): Named<Selector>, Body(order): Body<Plain>) -> Reply<Outcome> {
    if order.dry_run {
        return Ok(Json(dry::bring_back(expected(&*api.office, &volume, order.expect).await?)?));
    }
    api.order("bring-back", volume, &order, |volume| Request::BringBack { volume }).await
}

/// Make a volume longer.
#[utoipa::path(post, path = "/api/volumes/{volume}/resize", operation_id = "resize", request_body = Resize, responses((status = 200, body = Outcome)))]
pub async fn resize(State(api): State<Api>, Named(volume): Named<Selector>, Body(order): Body<Resize>) -> Reply<Outcome> {
    if order.dry_run {
        return Ok(Json(dry::resize(expected(&*api.office, &volume, order.expect).await?, order.size)?));
    }
    let size = order.size;
    api.order("resize", volume, &order, move |volume| Request::Resize { volume, size }).await
}

/// Destroy a volume.
#[utoipa::path(post, path = "/api/volumes/{volume}/delete", operation_id = "delete", request_body = Plain, responses((status = 200, body = Outcome)))]
pub async fn delete(State(api): State<Api>, Named(volume): Named<Selector>, Body(order): Body<Plain>) -> Reply<Outcome> {
    if order.dry_run {
        return Ok(Json(dry::delete(expected(&*api.office, &volume, order.expect).await?)?));
    }
    api.order("delete", volume, &order, |volume| Request::Delete { volume }).await
}

/// Write a volume into a file on the front end's host; answered when it has begun.
#[utoipa::path(post, path = "/api/volumes/{volume}/export", operation_id = "export", request_body = Export, responses((status = 200, body = Outcome)))]
pub async fn export(State(api): State<Api>, Named(volume): Named<Selector>, Body(order): Body<Export>) -> Reply<Outcome> {
    absolute(&order.file)?;
    if order.dry_run {
        return Ok(Json(dry::export(expected(&*api.office, &volume, order.expect).await?, &order)?));
    }
    let common = order.common();
    let office = api.office.clone();
    let what = format!("export {volume} {:?} {:?} {}", common.expect, order.file, order.format.name());
    let work = async move {
        let volume = expected(&*office, &volume, common.expect).await?;
        dry::nothing_at(&order.file)?;
        let transfer = office.export_to(volume.clone(), order.file, order.format.name().to_owned()).await?;
        Ok(Outcome { volume: Some(volume), transfer: Some(transfer), ..Outcome::default() })
    };
    Ok(Json(api.once.run(common.id.unwrap_or_else(|| api.office.id()), what, work).await?))
}

/// The attributes of a volume, as they count.
#[utoipa::path(get, path = "/api/volumes/{volume}/attributes", operation_id = "volume-attributes", responses((status = 200, body = Attributes)))]
pub async fn volume_attributes(State(api): State<Api>, Named(volume): Named<Selector>) -> Reply<Attributes> {
    let volume = api.office.one(&volume).await?;
    Ok(Json(attributes(&*api.office, &volume.nas, AttributesOf::Volume(volume.id)).await?))
}

/// Change attributes of a volume, all or none.
#[utoipa::path(post, path = "/api/volumes/{volume}/attributes", operation_id = "set-volume-attributes", request_body = Set, responses((status = 200, body = Outcome)))]
pub async fn set_volume_attributes(
    State(api): State<Api>,
    Named(volume): Named<Selector>,
    Body(order): Body<Set>,
) -> Reply<Outcome> {
    if order.dry_run {
        let volume = expected(&*api.office, &volume, order.expect).await?;
        let now = attributes(&*api.office, &volume.nas, AttributesOf::Volume(volume.id)).await?.attributes;
        return Ok(Json(dry::set(&volume.full_name(), Some(volume), &now, &order.changes)?));
    }
    let changes = order.changes.clone();
    let request = move |volume| Request::SetAttributes { of: AttributesOf::Volume(volume), changes, notes: false };
    api.order("set", volume, &order, request).await
}

/// The attributes of a NAS, as they count.
#[utoipa::path(get, path = "/api/nas/{nas}/attributes", operation_id = "nas-attributes", responses((status = 200, body = Attributes)))]
pub async fn nas_attributes(State(api): State<Api>, Named(nas): Named<HostName>) -> Reply<Attributes> {
    let nas = api.office.nas_for_new(Some(&nas), None).await?;
    Ok(Json(attributes(&*api.office, &nas, AttributesOf::Nas).await?))
}

/// Change attributes of a NAS, all or none; its volumes inherit them.
#[utoipa::path(post, path = "/api/nas/{nas}/attributes", operation_id = "set-nas-attributes", request_body = Set, responses((status = 200, body = Outcome)))]
pub async fn set_nas_attributes(State(api): State<Api>, Named(nas): Named<HostName>, Body(order): Body<Set>) -> Reply<Outcome> {
    let nas = api.office.nas_for_new(Some(&nas), None).await?;
    if order.dry_run {
        let now = attributes(&*api.office, &nas, AttributesOf::Nas).await?.attributes;
        return Ok(Json(dry::set(nas.as_str(), None, &now, &order.changes)?));
    }
    let common = order.common();
    let (id, deadline) = (common.id.unwrap_or_else(|| api.office.id()), common.deadline()?);
    let (office, what) = (api.office.clone(), format!("set {nas} {}", description(&order)));
    let work = async move {
        let request = Request::SetAttributes { of: AttributesOf::Nas, changes: order.changes, notes: order.notes };
        match office.ask(&nas, id, request, deadline).await? {
            Answer::Attributes { attributes } => Ok(Outcome { attributes, ..Outcome::default() }),
            other => Err(strange(&nas, &other)),
        }
    };
    Ok(Json(api.once.run(id, what, work).await?))
}

async fn attributes(office: &dyn Office, nas: &HostName, of: AttributesOf) -> Result<Attributes, Fault> {
    match office.ask(nas, office.id(), Request::Attributes { of }, QUESTION).await? {
        Answer::Attributes { attributes } => Ok(Attributes { attributes }),
        other => Err(strange(nas, &other)),
    }
}

impl Api {
    /// Carries an order to the volume's NAS, once.
    async fn order(
        &self,
        verb: &str,
        selector: Selector,
        order: &impl Order,
        request: impl FnOnce(VolumeId) -> Request + Send + 'static,
    ) -> Reply<Outcome> {
        let common = order.common();
        let id = common.id.unwrap_or_else(|| self.office.id());
        let deadline = common.deadline()?;
        let office = self.office.clone();
        let expect = common.expect;
        let what = format!("{verb} {selector} {}", description(order));
        let work = async move {
            let (nas, volume) = match (&selector.nas, expect) {
                (Some(nas), Some(volume)) => (nas.clone(), volume),
                _ => {
                    let found = expected(&*office, &selector, expect).await?;
                    (found.nas, found.id)
                }
            };
            match office.ask(&nas, id, request(volume), deadline).await? {
                Answer::Volume { volume } | Answer::Served { volume, .. } => {
                    Ok(Outcome { volume: Some(*volume), ..Outcome::default() })
                }
                Answer::Deleted => Ok(Outcome::default()),
                Answer::Attributes { attributes } => Ok(Outcome { attributes, ..Outcome::default() }),
                other => Err(strange(&nas, &other)),
            }
        };
        Ok(Json(self.once.run(id, what, work).await?))
    }
}

/// An order's own fields, without its identity and timeout.
fn description(order: &impl Order) -> String {
    let mut value = serde_json::to_value(order).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        for common in ["id", "timeout", "dry_run"] {
            fields.remove(common);
        }
    }
    value.to_string()
}

/// The volume of a name, and with the identity that the client saw.
async fn expected(office: &dyn Office, selector: &Selector, expect: Option<VolumeId>) -> Result<VolumeView, Fault> {
    let volume = office.one(selector).await?;
    match expect {
        Some(id) if id != volume.id => {
            Err(Fault::refused(format!("{} is not the volume it was: it was deleted and made anew", volume.full_name()))
                .next("look at it again, then repeat the command"))
        }
        _ => Ok(volume),
    }
}

fn absolute(path: &Path) -> Result<(), Fault> {
    if path.is_absolute() { Ok(()) } else { Err(Fault::invalid(format!("{} is not an absolute path", path.display()))) }
}

fn strange(nas: &HostName, answer: &Answer) -> Fault {
    let answer = serde_json::to_value(answer).ok().and_then(|a| a["result"].as_str().map(str::to_owned)).unwrap_or_default();
    Fault::failed(format!("{nas} gave an answer that does not fit the question: {answer}"))
        .next("see that front end and NAS run the same version")
}
