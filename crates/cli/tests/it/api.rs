//! The API as a client that is not ours sees it.

use crate::support::World;
use serde_json::{Value, json};
use std::{
    io::{Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
};

fn ask(world: &World, method: &str, path: &str, body: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(world.dir.path().join("api.sock")).unwrap();
    let length = body.len();
    write!(stream, "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}")))
}

#[test]
fn every_refusal_is_a_fault() {
    let world = World::new();
    for (method, path, body, status, kind, says) in [
        ("GET", "/api/volumes?selector=vol9%2F%2F", "", 400, "invalid", "volume name"),
        ("GET", "/api/volumes?colour=red", "", 400, "invalid", "unknown field"),
        ("GET", "/api/volumes/..%2Fx", "", 400, "invalid", "pool name"),
        ("GET", "/api/volumes/%ff", "", 400, "invalid", "path"),
        ("GET", "/api/volumes/vol9", "", 404, "not_found", "no volume vol9"),
        ("GET", "/api/volumes/vol1", "", 400, "invalid", "nas-0-0:fast/vol1, nas-0-0:tank/vol1"),
        ("GET", "/api/nothing", "", 404, "not_found", "/api/nothing"),
        ("DELETE", "/api/volumes", "", 400, "invalid", "DELETE"),
        ("GET", "/api/history", "", 400, "invalid", "selector"),
        ("GET", "/api/transfers/x", "", 400, "invalid", "transfer"),
        ("GET", "/api/transfers/00000000-0000-0000-0000-000000000009", "", 404, "not_found", "transfer"),
        ("POST", "/api/volumes", "{", 400, "invalid", "body"),
        ("POST", "/api/volumes", "{}", 400, "invalid", "name"),
        ("POST", "/api/volumes", r#"{"name":"a b","size":1048576}"#, 400, "invalid", "' '"),
        ("POST", "/api/volumes", r#"{"name":"x"}"#, 400, "invalid", "size"),
        ("POST", "/api/volumes", r#"{"name":"x","size":1000}"#, 400, "invalid", "64 KiB"),
        ("POST", "/api/volumes", r#"{"name":"x","from":"x.raw"}"#, 400, "invalid", "absolute"),
        ("POST", "/api/volumes", r#"{"name":"x","size":1048576,"colour":1}"#, 400, "invalid", "colour"),
        ("POST", "/api/volumes/tank%2Fvol1/map", r#"{"node":"a","timeout":0}"#, 400, "invalid", "timeout"),
        ("POST", "/api/volumes/tank%2Fvol1/map", r#"{"node":"a","id":7}"#, 400, "invalid", "body"),
        (
            "POST",
            "/api/volumes/tank%2Fvol1/delete",
            r#"{"expect":"00000000-0000-0000-0000-000000000009"}"#,
            409,
            "refused",
            "not the volume it was",
        ),
        ("POST", "/api/volumes/tank%2Fvol2/delete", "", 409, "refused", "mapped"),
        ("POST", "/api/volumes/tank%2Fvol3/unmap", r#"{"timeout":1}"#, 504, "unfinished", "goes on"),
    ] {
        let (is, fault) = ask(&world, method, path, body);
        assert_eq!((is, &fault["kind"]), (status, &kind.into()), "{method} {path} {body}: {fault}");
        assert!(fault["message"].as_str().unwrap().contains(says), "{method} {path} {body}: {fault}");
    }
}

#[test]
fn what_comes_twice_is_done_once() {
    let world = World::new();
    let path = "/api/volumes/nas-0-0%3Atank%2Fvol1/delete";
    let order = json!({ "id": "01990000-0000-7000-8000-000000000001" }).to_string();
    for _ in 0..2 {
        assert_eq!(ask(&world, "POST", path, &order).0, 200);
    }
    assert_eq!(world.fake.asked.lock().unwrap().len(), 1);
    let (status, fault) = ask(&world, "POST", "/api/volumes/tank%2Fvol2/delete", &order);
    assert_eq!(status, 400, "{fault}");
    // Where the front end has forgotten it, the NAS is asked with the same id, though the volume is gone.
    let order = json!({ "id": "01990000-0000-7000-8000-000000000002", "expect": "00000000-0000-0000-0000-000000000001" });
    ask(&world, "POST", path, &order.to_string());
    assert_eq!(world.fake.asked.lock().unwrap().len(), 2);
}

#[test]
fn an_order_goes_on_when_its_client_leaves() {
    let world = World::new();
    let body = r#"{"timeout":5}"#;
    let mut stream = UnixStream::connect(world.dir.path().join("api.sock")).unwrap();
    write!(stream, "POST /api/volumes/tank%2Fvol2/unmap HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len())
        .unwrap();
    while world.fake.asked.lock().unwrap().is_empty() {
        std::thread::yield_now();
    }
    drop(stream);
    for _ in 0..200 {
        if world.fake.volumes.lock().unwrap()[2].node.is_none() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("it was given up");
}

#[test]
fn answers_are_what_the_description_says() {
    let world = World::new();
    let mode = std::fs::metadata(world.dir.path().join("api.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (_, api) = ask(&world, "GET", "/api/openapi.json", "");
    for (path, schema) in [
        ("/api/volumes", "Volumes"),
        ("/api/volumes/tank%2Fvol1", "VolumeView"),
        ("/api/hosts", "Hosts"),
        ("/api/status", "Status"),
        ("/api/history?selector=tank%2Fvol1", "History"),
    ] {
        let (status, value) = ask(&world, "GET", path, "");
        assert_eq!(status, 200, "{value}");
        holds(&api, &json!({ "$ref": format!("#/components/schemas/{schema}") }), &value, path);
    }
}

/// As much of JSON Schema as the description uses.
fn holds(api: &Value, schema: &Value, value: &Value, at: &str) {
    if let Some(to) = schema["$ref"].as_str() {
        return holds(api, api.pointer(&to[1..]).unwrap(), value, at);
    }
    if let Some(any) = schema["oneOf"].as_array() {
        if !value.is_null() {
            holds(api, any.iter().find(|s| s["type"] != "null").unwrap(), value, at);
        }
        return;
    }
    let fits = |kind: &str| match kind {
        "null" => value.is_null(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "array" => value.is_array(),
        _ => value.is_object(),
    };
    let kinds: Vec<&str> = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        kind => kind.as_str().into_iter().collect(),
    };
    assert!(kinds.iter().any(|kind| fits(kind)), "{at}: {value} is none of {kinds:?}");
    if let Some(known) = schema["enum"].as_array() {
        assert!(known.contains(value), "{at}: {value}");
    }
    for item in value.as_array().into_iter().flatten() {
        holds(api, &schema["items"], item, at);
    }
    if let (Some(fields), Some(properties)) = (value.as_object(), schema["properties"].as_object()) {
        for (name, field) in fields {
            holds(
                api,
                properties.get(name).unwrap_or_else(|| panic!("{at}: {name} is not described")),
                field,
                &format!("{at}.{name}"),
            );
        }
        for required in schema["required"].as_array().into_iter().flatten() {
            assert!(fields.contains_key(required.as_str().unwrap()), "{at}: {required}");
        }
    }
}
