//! A whole volume onto a node's disk: by us, and by the tools that do only that.

use super::{Bed, LIMIT, Part, forget, median};
use crate::{
    command,
    screen::{Step, table},
};
use anyhow::Context as _;
use img_storage_model::api::Phase;
use std::{
    fs::File,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

const WAYS: [&str; 5] =
    ["img-storage", "qemu-img convert, TLS", "qemu-img convert, no TLS", "nbdcopy, no TLS", "cp, file to file"];
/// The first two do the same work: bytes of a disk that arrive encrypted from another daemon. (nbdcopy cannot be told whose
/// name the NAS's certificate has.)
const ALIKE: usize = 2;

/// An NBD server of one file.
pub struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Serves `file` on a TCP port of this machine, opened as the product opens volumes; with TLS as the host whose
    /// certificates are in `tls`.
    pub async fn start(file: &Path, writable: bool, tls: Option<&Path>) -> anyhow::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let blockdev = format!(
            "driver=raw,node-name=v,discard=unmap,file.driver=file,file.filename={},file.cache.direct=on,file.aio=io_uring",
            file.display()
        );
        let mut server = format!("addr.type=inet,addr.host=127.0.0.1,addr.port={port},max-connections=0");
        let mut command = Command::new("qemu-storage-daemon");
        if let Some(dir) = tls {
            server.push_str(",tls-creds=tls");
            command.args(["--object", &format!("tls-creds-x509,id=tls,endpoint=server,verify-peer=on,dir={}", dir.display())]);
        }
        let child = command
            .args(["--blockdev", &blockdev])
            .args(["--nbd-server", &server])
            .args(["--export", &format!("type=nbd,id=e,node-name=v,name=v,writable={}", if writable { "on" } else { "off" })])
            .stdin(Stdio::null())
            .spawn()
            .context("starting qemu-storage-daemon")?;
        let server = Server { child, port };
        let begun = Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            anyhow::ensure!(begun.elapsed() < Duration::from_secs(10), "the NBD server for the comparison does not come up");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(server)
    }

    /// How to reach it without TLS.
    pub fn uri(&self) -> String {
        format!("nbd://127.0.0.1:{}/v", self.port)
    }
}

pub async fn measure(bed: &Bed) -> anyhow::Result<Part> {
    bed.volume("c").await?;
    let volume = bed.service.dir().join("pools/nas-0-0/tank/c/disk.raw");
    let pki = bed.service.dir().join("pki");
    let plain = Server::start(&bed.image, false, None).await?;
    let encrypted = Server::start(&bed.image, false, Some(&pki.join("nas-0-0"))).await?;
    let client = pki.join("compute-0-0");
    let target = bed.dir.join("copy.raw");
    let mut times = vec![Vec::new(); WAYS.len()];
    for round in 0..bed.rounds(5) {
        let step = Step::new("copies, in turns");
        for turn in 0..WAYS.len() {
            // Each comes first once.
            let way = (turn + round) % WAYS.len();
            step.note(WAYS[way]);
            let took = match WAYS[way] {
                "img-storage" => ours(bed, &volume).await?,
                other => {
                    let (server, tls) = if other.ends_with(", TLS") { (&encrypted, Some(&*client)) } else { (&plain, None) };
                    theirs(other, &bed.image, server, tls, &target).await?
                }
            };
            times[way].push(took.as_secs_f64());
        }
        step.done(&format!("round {}", round + 1));
    }
    bed.cli(&["delete", "c", "--yes"]).await?;
    let best = |times: &[Vec<f64>]| times.iter().map(|t| median(t)).fold(f64::INFINITY, f64::min);
    let (alike, all) = (best(&times[1..ALIKE]), best(&times[1..]));
    let mib = bed.size as f64 / f64::from(1 << 20);
    let rows: Vec<Vec<String>> = WAYS
        .iter()
        .zip(&times)
        .map(|(way, times)| {
            let time = median(times);
            let (fast, slow) = (times.iter().copied().fold(f64::INFINITY, f64::min), times.iter().copied().fold(0.0, f64::max));
            vec![
                (*way).to_owned(),
                format!("{time:.2} s"),
                format!("{:.0} MiB/s", mib / time),
                format!("{:.0} to {:.0}", mib / slow, mib / fast),
                format!("{:.2}", alike / time),
                format!("{:.2}", all / time),
            ]
        })
        .collect();
    let text = format!(
        "{}\n{mib:.0} MiB of random bytes, {} rounds, the source thrown out of the page cache before each, the target on stable storage \
         at the end. img-storage: from `map --sync` to `local`, over TCP with TLS, attaching and switching included. qemu-img and \
         nbdcopy: from an NBD server of the same kind over TCP. Aim: ≥ 0.9 × \
         what does the same, encrypted; in the last column the best of all.\n",
        table(&["way", "median time", "rate", "range, MiB/s", "× the other with TLS", "× the best other"], &rows),
        bed.rounds(5)
    );
    Ok(Part { title: "Copy to the node", text })
}

async fn ours(bed: &Bed, volume: &Path) -> anyhow::Result<Duration> {
    forget(volume)?;
    let begun = Instant::now();
    bed.cli(&["map", "c", "compute-0-0", "--sync"]).await?;
    while bed.service.glance("c").await != Some(Phase::Local) {
        anyhow::ensure!(begun.elapsed() < LIMIT, "it does not become local:\n{}", bed.service.log_tail());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let took = begun.elapsed();
    bed.cli(&["unmap", "c"]).await?;
    Ok(took)
}

async fn theirs(way: &str, source: &Path, server: &Server, tls: Option<&Path>, target: &Path) -> anyhow::Result<Duration> {
    let _ = std::fs::remove_file(target);
    forget(source)?;
    let port = server.port;
    let target = target.to_owned();
    let mut copy = if way.starts_with("cp") {
        let mut copy = Command::new("cp");
        // A copy of the bytes, not a reference to them.
        copy.arg("--reflink=never").arg(source).arg(&target);
        copy
    } else if way.starts_with("nbdcopy") {
        let mut copy = Command::new("nbdcopy");
        copy.args(["--flush", &server.uri()]).arg(&target);
        copy
    } else {
        let mut copy = Command::new("qemu-img");
        copy.args(["convert", "-O", "raw", "-t", "writeback", "-W", "-m", "8", "--image-opts"]);
        let mut options = format!("driver=nbd,host=127.0.0.1,port={port},export=v");
        if let Some(dir) = tls {
            copy.args(["--object", &format!("tls-creds-x509,id=tls,endpoint=client,verify-peer=on,dir={}", dir.display())]);
            options.push_str(",tls-creds=tls,tls-hostname=nas-0-0");
        }
        copy.arg(options).arg(&target);
        copy
    };
    tokio::task::spawn_blocking(move || -> anyhow::Result<Duration> {
        let begun = Instant::now();
        command::output(&mut copy)?;
        File::open(&target)?.sync_all()?;
        let took = begun.elapsed();
        std::fs::remove_file(PathBuf::from(&target))?;
        Ok(took)
    })
    .await?
}
