//! What is sent to the API by hand.

use super::bed::up;
use serde_json::json;

#[tokio::test]
async fn every_bad_request_gets_a_fault_as_json() {
    let bed = up(&[]).await;
    bed.ok(&["create", "vol1", "--size", "1M"]).await;
    let (before, kept) = (bed.volumes().await, bed.kept());
    let huge = vec![b' '; 3 << 20];
    let deep = vec![b'['; 100_000];
    let long_name = format!("{{\"name\":\"{}\",\"size\":1048576}}", "a".repeat(300));
    let long_path = format!("/api/volumes/{}", "a".repeat(3000));
    let cases: &[(&str, &str, &[u8], u16, &str)] = &[
        ("POST", "/api/volumes", b"", 400, "name"),
        ("POST", "/api/volumes", b"{", 400, "body"),
        ("POST", "/api/volumes", b"\xff\xfe\x00", 400, "body"),
        ("POST", "/api/volumes", b"null", 400, "body"),
        ("POST", "/api/volumes", b"[]", 400, "body"),
        ("POST", "/api/volumes", b"\"vol2\"", 400, "body"),
        ("POST", "/api/volumes", &deep, 400, "body"),
        ("POST", "/api/volumes", &huge, 400, "body"),
        ("POST", "/api/volumes", br#"{"name":"vol2","size":1048576} {}"#, 400, "body"),
        ("POST", "/api/volumes", br#"{"name":"vol2","size":1048576,"size":1048576}"#, 400, "size"),
        ("POST", "/api/volumes", br#"{"name":"vol2","size":1048576,"colour":1}"#, 400, "colour"),
        ("POST", "/api/volumes", br#"{"name":"vol2","size":"1M"}"#, 400, "1M"),
        ("POST", "/api/volumes", br#"{"name":"vol2","size":-1}"#, 400, "-1"),
        ("POST", "/api/volumes", br#"{"name":"vol2","size":0}"#, 400, "size 0"),
        ("POST", "/api/volumes", br#"{"name":"vol2","size":1048577}"#, 400, "64 KiB"),
        ("POST", "/api/volumes", br#"{"name":"vol2","size":1e30}"#, 400, "1e+30"),
        ("POST", "/api/volumes", br#"{"name":7,"size":1048576}"#, 400, "7"),
        ("POST", "/api/volumes", br#"{"name":"../x","size":1048576}"#, 400, ".."),
        ("POST", "/api/volumes", br#"{"name":"a\u0000b","size":1048576}"#, 400, "name"),
        ("POST", "/api/volumes", long_name.as_bytes(), 400, "300 bytes"),
        ("POST", "/api/volumes", br#"{"name":"vol2"}"#, 400, "size"),
        ("POST", "/api/volumes", br#"{"name":"vol2","from":"relative.raw"}"#, 400, "absolute"),
        ("POST", "/api/volumes", br#"{"name":"vol2","from":"json:{}"}"#, 400, "absolute"),
        ("POST", "/api/volumes", br#"{"name":"vol2","from":"/nowhere/x.raw"}"#, 404, "/nowhere/x.raw"),
        ("POST", "/api/volumes", br#"{"name":"vol2","from":"/dev/zero","size":1048576}"#, 409, "/dev/zero"),
        ("POST", "/api/volumes", br#"{"name":"vol2","size":1048576,"id":"1"}"#, 400, "body"),
        ("POST", "/api/volumes", br#"{"name":"vol2","size":1048576,"timeout":0}"#, 400, "timeout"),
        ("POST", "/api/volumes", br#"{"name":"vol2","size":1048576,"timeout":99999999}"#, 400, "timeout"),
        ("POST", "/api/volumes", br#"{"name":"vol2","size":1048576,"dry_run":"no"}"#, 400, "body"),
        ("POST", "/api/volumes/vol1/map", br#"{"node":""}"#, 400, "host name"),
        ("POST", "/api/volumes/vol1/map", br#"{"node":"compute-0-0","device":"floppy"}"#, 400, "floppy"),
        ("POST", "/api/volumes/vol1/map", br#"{"node":"compute-0-0","sync":1}"#, 400, "body"),
        ("POST", "/api/volumes/vol1/map", br#"{"node":"compute-7-7"}"#, 503, "compute-7-7"),
        ("POST", "/api/volumes/vol1/map", br#"["compute-0-0"]"#, 400, "body"),
        ("POST", "/api/volumes/vol1/delete", b"[]", 400, "body"),
        ("POST", "/api/volumes/vol1/delete", br#"[null,5]"#, 400, "body"),
        ("POST", "/api/volumes/vol1/delete", br#"{"force":true}"#, 400, "force"),
        ("POST", "/api/volumes/vol1/delete", br#"{"expect":"01900000-0000-7000-8000-000000000001"}"#, 409, "vol1"),
        (
            "POST",
            "/api/volumes/nas-0-0%3Atank%2Fvol1/delete",
            br#"{"expect":"01900000-0000-7000-8000-000000000001"}"#,
            404,
            "01900000",
        ),
        ("POST", "/api/volumes/..%2F..%2Fvol1/delete", b"{}", 400, "name"),
        ("POST", "/api/volumes/vol1%27%3B--/delete", b"{}", 400, "name"),
        ("POST", "/api/volumes/nosuch/delete", b"{}", 404, "nosuch"),
        ("POST", "/api/volumes/vol1/resize", b"{}", 400, "size"),
        ("POST", "/api/volumes/vol1/resize", br#"{"size":1}"#, 400, "64 KiB"),
        ("POST", "/api/volumes/vol1/export", br#"{"file":"x.raw"}"#, 400, "absolute"),
        ("POST", "/api/volumes/vol1/export", br#"{"file":"/nowhere/x.raw"}"#, 404, "/nowhere"),
        ("POST", "/api/volumes/vol1/export", br#"{"file":"/dev/null"}"#, 409, "/dev/null"),
        ("POST", "/api/volumes/vol1/export", br#"{"file":"/tmp/x","format":"floppy"}"#, 400, "floppy"),
        ("POST", "/api/volumes/vol1/explode", b"{}", 404, "explode"),
        ("GET", "/", b"", 404, "nothing"),
        ("GET", "/api/nosuch", b"", 404, "/api/nosuch"),
        ("GET", "/api/../etc/passwd", b"", 404, "nothing"),
        ("GET", "/api/volumes/%ff", b"", 400, "path"),
        ("GET", "/api/volumes/%00", b"", 400, "name"),
        ("GET", &long_path, b"", 400, "3000 bytes"),
        ("GET", "/api/volumes?selector=a%2Fb%2Fc", b"", 400, "'/'"),
        ("GET", "/api/volumes?colour=red", b"", 400, "colour"),
        ("GET", "/api/volumes?selector=a&selector=b", b"", 400, "selector"),
        ("GET", "/api/history", b"", 400, "selector"),
        ("GET", "/api/history?selector=nosuch", b"", 404, "nosuch"),
        ("GET", "/api/transfers/x", b"", 400, "transfer"),
        ("GET", "/api/transfers/01900000-0000-7000-8000-000000000001", b"", 404, "transfer"),
        ("DELETE", "/api/volumes/vol1", b"", 400, "DELETE"),
        ("GET", "/api/volumes/vol1/delete", b"", 400, "GET"),
        ("PUT", "/api/volumes", b"{}", 400, "PUT"),
        ("PATCH", "/api/hosts", b"{}", 400, "PATCH"),
        ("OPTIONS", "/api/hosts", b"", 400, "OPTIONS"),
        ("NONSENSE", "/api/hosts", b"", 400, "NONSENSE"),
    ];
    for (method, path, body, status, named) in cases {
        let (got, fault) = bed.http(method, path, body);
        let shown = String::from_utf8_lossy(&body[..body.len().min(100)]).into_owned();
        assert_eq!(got, *status, "{method} {path} {shown}: {fault}");
        let kinds = json!(["invalid", "not_found", "refused", "unreachable"]);
        assert!(kinds.as_array().unwrap().contains(&fault["kind"]), "{method} {path} {shown}: {fault}");
        assert!(fault["message"].as_str().is_some_and(|m| m.contains(named)), "{method} {path} {shown}: {fault}");
        assert_eq!(bed.volumes().await, before, "{method} {path} {shown}");
    }
    // What is no HTTP at all ends the connection, and only that.
    for garbage in [&b"\x16\x03\x01\x02\x00\x01\x00"[..], b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", &[b'A'; 1 << 20]] {
        use std::io::{Read as _, Write as _};
        let mut stream = std::os::unix::net::UnixStream::connect(bed.state("api.sock")).unwrap();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(bed.volumes().await, before);
    assert_eq!(bed.kept(), kept);
}
