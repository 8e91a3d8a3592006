//! The API's description, generated from the handlers and the types they take and give.

use super::{api, wire};
use crate::frontend::TransferView;
use img_storage_model::api::{Event, HostView, Phase, Trouble, VolumeView, WarmCopy, WriteBack};
use utoipa::{Modify, OpenApi, ToSchema, openapi};

/// The OpenAPI 3.1 description of the API.
pub fn openapi() -> openapi::OpenApi {
    Description::openapi()
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "img-storage",
        description = "Moves VM disk images between a NAS and compute nodes. JSON over the unix socket of the front end. \
                       In a path a volume's name stands percent-encoded as one segment: `nas-0-0%3Atank%2Fvol1`. \
                       Every refusal is a Fault.",
    ),
    paths(
        api::status,
        api::hosts,
        api::volumes,
        api::volume,
        api::create,
        api::map,
        api::unmap,
        api::sync,
        api::bring_back,
        api::resize,
        api::delete,
        api::export,
        api::volume_attributes,
        api::set_volume_attributes,
        api::nas_attributes,
        api::set_nas_attributes,
        api::history,
        api::transfer,
        api::openapi_json,
    ),
    components(schemas(
        Fault,
        FaultKind,
        Progress,
        PoolReport,
        Role,
        Plane,
        DeviceKind,
        VolumeView,
        Phase,
        Trouble,
        WriteBack,
        HostView,
        WarmCopy,
        Event,
        TransferView,
        wire::Plain,
        wire::Format,
    )),
    modifiers(&Rest)
)]
struct Description;

// The model keeps some of its types free of schemas; these say what those look like, and a test holds them to it.

/// An error a person reads.
#[derive(ToSchema)]
#[allow(dead_code)]
pub(super) struct Fault {
    /// What kind of refusal or failure it is.
    kind: FaultKind,
    /// What happened, naming the thing and the host.
    message: String,
    /// What to do next; left out when there is nothing to do.
    #[schema(required = false)]
    next: String,
}

/// Status 400, 404, 409, 500, 503 and 504.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code)]
pub(super) enum FaultKind {
    Invalid,
    NotFound,
    Refused,
    Failed,
    Unreachable,
    Unfinished,
}

/// How far something is.
#[derive(ToSchema)]
#[allow(dead_code)]
struct Progress {
    /// Bytes done.
    done: u64,
    /// Bytes in total, as far as known.
    total: u64,
}

/// A pool as its daemon sees it.
#[derive(ToSchema)]
#[allow(dead_code)]
struct PoolReport {
    /// Its name.
    name: String,
    /// Bytes in all.
    size: u64,
    /// Bytes free.
    free: u64,
    /// What carries the data of its volumes.
    plane: Plane,
}

/// What carries a volume's data.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code)]
enum Plane {
    Qemu,
    Kernel,
}

/// What a daemon is.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code)]
enum Role {
    Nas,
    Node,
    Frontend,
}

/// How a guest reaches the volume.
#[derive(ToSchema)]
#[schema(rename_all = "kebab-case")]
#[allow(dead_code)]
pub(super) enum DeviceKind {
    Nbd,
    VhostUserBlk,
    Block,
}

/// What the derives cannot say.
struct Rest;

impl Modify for Rest {
    fn modify(&self, api: &mut openapi::OpenApi) {
        let mut json = match serde_json::to_value(&*api) {
            Ok(json) => json,
            Err(_) => return,
        };
        let refer = |name: &str| serde_json::json!({ "$ref": format!("#/components/schemas/{name}") });
        let schemas = &mut json["components"]["schemas"];
        schemas["VolumeView"]["properties"]["progress"] = serde_json::json!({ "oneOf": [{ "type": "null" }, refer("Progress")], "description": "How far a transfer under way is." });
        schemas["HostView"]["properties"]["pools"]["items"] = refer("PoolReport");
        schemas["HostView"]["properties"]["role"] = refer("Role");
        if let Some(paths) = json["paths"].as_object_mut() {
            for (path, item) in paths {
                let in_path = match path {
                    p if p.contains("{volume}") => {
                        Some(("volume", "`NAS:POOL/NAME` or any shorter part of it that is unique, percent-encoded."))
                    }
                    p if p.contains("{nas}") => Some(("nas", "Its name.")),
                    p if p.contains("{id}") => Some(("id", "Of the transfer.")),
                    _ => None,
                };
                for operation in item.as_object_mut().into_iter().flat_map(|i| i.values_mut()) {
                    if let Some((name, about)) = in_path {
                        operation["parameters"] = serde_json::json!([
                            { "name": name, "in": "path", "required": true, "description": about, "schema": { "type": "string" } }
                        ]);
                    }
                    operation["responses"]["default"] = serde_json::json!({
                        "description": "Refused or failed: Invalid 400, NotFound 404, Refused 409, Failed 500, Unreachable 503, Unfinished 504.",
                        "content": { "application/json": { "schema": refer("Fault") } },
                    });
                }
            }
        }
        if let Ok(complete) = serde_json::from_value(json) {
            *api = complete;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use img_storage_model::{self as model, messages};
    use serde_json::Value;

    fn description() -> Value {
        serde_json::to_value(openapi()).unwrap()
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_operation_is_described() {
        let api = description();
        assert!(api["openapi"].as_str().unwrap().starts_with("3.1"), "{}", api["openapi"]);
        assert_eq!(api["paths"].as_object().unwrap().len(), 16);
        fn walk(value: &Value, api: &Value) {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::String(to)) = fields.get("$ref") {
                        assert!(api.pointer(to.trim_start_matches('#')).is_some(), "{to} leads nowhere");
                    }
                    fields.values().for_each(|v| walk(v, api));
                }
                Value::Array(items) => items.iter().for_each(|v| walk(v, api)),
                _ => {}
            }
        }
        walk(&api, &api);
        for (path, item) in api["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                assert!(operation["responses"]["200"]["content"].is_object(), "{method} {path}");
                assert!(operation["responses"]["default"].is_object(), "{method} {path}");
                assert!(operation["summary"].is_string() || operation["description"].is_string(), "{method} {path}");
                let named = operation["parameters"].as_array().map_or(0, Vec::len);
                assert!(named >= path.matches('{').count(), "{method} {path}");
            }
        }
    }

    #[test]
    fn what_stands_in_for_the_model_looks_like_it() {
        let api = description();
        let schemas = &api["components"]["schemas"];
        let has = |schema: &str, value: Value| {
            let known = schemas[schema]["enum"].as_array().unwrap_or_else(|| panic!("{schema}"));
            assert!(known.contains(&value), "{schema} lacks {value}");
        };
        use model::FaultKind as K;
        for kind in [K::Invalid, K::NotFound, K::Refused, K::Failed, K::Unreachable, K::Unfinished] {
            has("FaultKind", serde_json::to_value(kind).unwrap());
        }
        for role in [messages::Role::Nas, messages::Role::Node, messages::Role::Frontend] {
            has("Role", serde_json::to_value(role).unwrap());
        }
        for device in [messages::DeviceKind::Nbd, messages::DeviceKind::VhostUserBlk, messages::DeviceKind::Block] {
            has("DeviceKind", serde_json::to_value(device).unwrap());
        }
        let fields = |schema: &str, value: Value| {
            let value: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
            let known: Vec<_> = schemas[schema]["properties"].as_object().unwrap().keys().cloned().collect();
            assert_eq!(value, known, "{schema}");
        };
        fields("Fault", serde_json::to_value(model::Fault::invalid("x").next("y")).unwrap());
        fields("Progress", serde_json::to_value(messages::Progress { done: 1, total: 2 }).unwrap());
        let pool = messages::PoolReport { name: "tank".into(), size: 1, free: 1, plane: Default::default() };
        fields("PoolReport", serde_json::to_value(pool).unwrap());
    }
}
