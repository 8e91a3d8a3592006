//! How long a list of 10,000 volumes takes: `cargo test --release -p img-storage --test it -- --ignored --nocapture speed`.

use crate::support::{command, volume};
use img_storage_daemon::frontend::http::wire::Volumes;
use img_storage_model::{Epoch, api::Phase};
use std::{
    io::{Read, Write},
    os::unix::net::UnixListener,
    process::Stdio,
    time::{Duration, Instant},
};

#[test]
#[ignore = "a measurement; release build"]
fn ten_thousand_volumes() {
    let mut volumes = Vec::new();
    for n in 0..10_000_u128 {
        let mut v = volume(n, &format!("nas-0-{}:tank/vm-{n}-disk", n % 4), "35G", Phase::Local);
        (v.node, v.epoch, v.sync, v.lag) = (Some(format!("compute-0-{}", n % 64).parse().unwrap()), Epoch(3), true, Some(17));
        (v.frequency, v.dirty, v.mapped) = (Some(60), Some(5 << 20), Some(v.created));
        v.device = Some(format!("nbd+unix:///e3?socket=/var/lib/img-storage/compute-0-{}/run/vm-{n}-disk.sock", n % 64));
        volumes.push(v);
    }
    let body = serde_json::to_vec(&Volumes { volumes }).unwrap();
    println!("answer: {} bytes", body.len());
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("api.sock")).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(&body);
        }
    });
    for words in
        [vec!["list"], vec!["list", "-o", "wide"], vec!["list", "-o", "json"], vec!["list", "-o", "csv"], vec!["--version"]]
    {
        let mut times: Vec<Duration> = (0..21)
            .map(|_| {
                let begun = Instant::now();
                let status = command(dir.path()).args(&words).stdout(Stdio::null()).status().unwrap();
                assert!(status.success());
                begun.elapsed()
            })
            .collect();
        times.sort();
        println!("{words:?}: median {:?}, best {:?}, worst {:?}", times[10], times[0], times[20]);
        if words == ["list"] && !cfg!(debug_assertions) {
            assert!(times[10] <= Duration::from_millis(40), "too slow: {:?}", times[10]);
        }
    }
}
