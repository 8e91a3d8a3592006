//! The qemu plane: volumes are files, and `qemu-storage-daemon` processes are the data path. Runs on any Linux, without root.
//!
//! [`node::QemuNode`] and [`nas::QemuNas`] carry out the steps of the model. Each looks at the block graph first
//! ([`graph::Graph`]) and does what is missing, so that any step may be repeated; nothing is remembered between steps.
//!
//! Names in the graph say what a thing is *for*, so that a look at it is enough: the node `nas.e7` is the connection to the
//! export `e7`, the bitmap `wb.pivot` records since the pivot, the job `push-UUID` makes that snapshot.

pub mod graph;
pub mod lend;
pub mod nas;
pub mod node;
pub mod pool;
pub mod see;
mod session;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use img_storage_model::{HostName, VolumeId, messages::Endpoint, messages::PoolReport, size::human_bytes};
use rustix::fs::OFlags;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::exec;
use crate::nbd;
use crate::qsd::Qsd;
use crate::{HostError, Work};

/// For tools that work on metadata.
const QUICK: Duration = Duration::from_secs(60);
/// How long a daemon may take to end by itself: it puts everything on stable storage first.
const GRACE: Duration = Duration::from_secs(30);
/// How long connecting to a NAS may take. QEMU would wait for minutes, and its monitor with it, so we knock first.
const KNOCK: Duration = Duration::from_secs(3);

/// What both sides need to know about their host.
#[derive(Debug, Clone)]
pub struct Daemons {
    /// The storage daemon's program.
    pub program: PathBuf,
    /// `qemu-img`.
    pub qemu_img: PathBuf,
    /// Where the processes have their directories; short, for the sake of socket paths, and gone after a reboot.
    pub run: PathBuf,
    /// Our certificate: `ca-cert.pem`, `server-cert.pem`, `server-key.pem`, `client-cert.pem`, `client-key.pem`.
    pub certificates: PathBuf,
    /// The `O` of every certificate; with the host's name as `CN` it is who somebody is.
    pub organization: String,
}

impl Daemons {
    /// The plane with Debian's programs.
    pub fn new(run: impl Into<PathBuf>, certificates: impl Into<PathBuf>, organization: impl Into<String>) -> Self {
        Self {
            program: "qemu-storage-daemon".into(),
            qemu_img: "qemu-img".into(),
            run: run.into(),
            certificates: certificates.into(),
            organization: organization.into(),
        }
    }

    fn qsd(&self, volume: VolumeId, suffix: &str) -> Qsd {
        Qsd::new(&self.program, self.run.join(format!("{volume}{suffix}")))
    }

    /// The name in a host's certificate, as GnuTLS writes it.
    fn distinguished_name(&self, host: &HostName) -> String {
        format!("O={},CN={host}", self.organization)
    }

    /// Our credentials for a client's side as an object for QEMU.
    fn client(&self, id: &str) -> Value {
        json!({"qom-type": "tls-creds-x509", "id": id, "endpoint": "client", "dir": self.certificates, "verify-peer": true})
    }

    /// Our credentials for a server's side as an object for QEMU; whoever comes must have a certificate of our authority.
    fn server(&self, id: &str) -> Result<Value, HostError> {
        let dir = self.server_certificates().map_err(during(format!("prepare certificates in {}", self.run.display())))?;
        Ok(json!({"qom-type": "tls-creds-x509", "id": id, "endpoint": "server", "dir": dir, "verify-peer": true}))
    }

    /// A directory with our certificate for a server. QEMU makes Diffie-Hellman parameters of its own at every start when it finds
    /// none there, which takes up to a second; these are the well-known ones of RFC 7919.
    fn server_certificates(&self) -> io::Result<PathBuf> {
        let dir = self.run.join("tls");
        fs::create_dir_all(&dir)?;
        for name in ["ca-cert.pem", "ca-crl.pem", "server-cert.pem", "server-key.pem"] {
            let (link, target) = (dir.join(name), self.certificates.join(name));
            let wanted = target.exists();
            if wanted && fs::read_link(&link).ok().as_ref() != Some(&target) {
                remove(&link)?;
                std::os::unix::fs::symlink(&target, &link)?;
            } else if !wanted {
                remove(&link)?;
            }
        }
        let parameters = dir.join("dh-params.pem");
        if !parameters.exists() {
            let new = dir.join("dh-params.new");
            fs::write(&new, include_str!("ffdhe2048.pem"))?;
            fs::rename(&new, &parameters)?;
        }
        Ok(dir)
    }

    /// Whether files can be had through io_uring here: a kernel or a container may forbid it. Tried on a file of ours.
    async fn asynchronous_io(&self) -> &'static str {
        let attempt = async {
            fs::create_dir_all(&self.run).ok()?;
            let probe = Removed(self.run.join(format!("probe.{}", std::process::id())));
            File::create(&probe.0).and_then(|file| file.set_len(1 << 20)).ok()?;
            let options = format!("driver=raw,file.driver=file,file.aio=io_uring,file.filename={}", crate::qsd::commas(&probe.0));
            exec::run(&self.qemu_img, &["info", "--image-opts", &options], QUICK).await.ok()
        };
        if attempt.await.is_some() { "io_uring" } else { "threads" }
    }
}

struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A file as a protocol node: asynchronous, past the page cache where the file system can do that.
fn file_node(path: &Path, aio: &str, writable: bool) -> Value {
    let direct = OpenOptions::new().read(true).custom_flags(OFlags::DIRECT.bits().cast_signed()).open(path).is_ok();
    json!({
        "driver": "file", "filename": path, "aio": aio, "discard": "unmap", "read-only": !writable,
        "cache": {"direct": direct},
    })
}

/// Turns errors of all kinds into the one of the traits, saying what was being done.
fn during<E: std::fmt::Display>(what: impl std::fmt::Display) -> impl FnOnce(E) -> HostError {
    move |error| HostError(format!("cannot {what}: {error}"))
}

/// Makes sure that a NAS greets at an endpoint, in bounded time: a connection alone proves little, the kernel makes it for a
/// process that is stopped as well.
async fn knock(endpoint: &Endpoint) -> Result<(), HostError> {
    let at = format!("{} at {}:{}", endpoint.server, endpoint.host, endpoint.port);
    let hint = "see whether it is up and the network leads there";
    let greeted = async {
        let connect = tokio::net::TcpStream::connect((endpoint.host.as_str(), endpoint.port));
        let mut stream = connect.await.map_err(|error| error.to_string())?;
        nbd::greeting(&mut stream).await.map_err(|error| error.to_string())
    };
    match tokio::time::timeout(KNOCK, greeted).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(HostError(format!("cannot reach {at}: {error}; {hint}"))),
        Err(_) => Err(HostError(format!("no answer from {at} within {KNOCK:?}; {hint}"))),
    }
}

/// Reads one of our marks; `None` when there is none.
fn read_mark<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(io::Error::other),
    }
}

/// Writes a mark so that it is there whole or not at all.
fn write_mark(path: &Path, mark: &impl Serialize) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, serde_json::to_vec(mark).map_err(io::Error::other)?)?;
    File::open(&new)?.sync_all()?;
    fs::rename(&new, path)?;
    sync_parent(path)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// Removes a file that may be gone already.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Length of a regular file and the bytes it takes; `None` when there is nothing.
fn look_at(path: &Path) -> io::Result<Option<(u64, u64)>> {
    use std::os::unix::fs::MetadataExt;
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
        Ok(meta) if meta.is_file() => Ok(Some((meta.len(), meta.blocks() * 512))),
        Ok(_) => Err(io::Error::other(format!("{} is no regular file", path.display()))),
    }
}

fn room(path: &Path) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(path)?;
    Ok((stat.f_blocks * stat.f_frsize, stat.f_bavail * stat.f_frsize))
}

/// A pool's report; one that cannot be looked at has no room.
fn pool_report(name: &str, path: &Path) -> PoolReport {
    let (size, free) = room(path).unwrap_or_else(|error| {
        tracing::warn!(%error, pool = name, path = %path.display(), "cannot look at the pool");
        (0, 0)
    });
    PoolReport { name: name.to_owned(), size, free, plane: Default::default() }
}

fn enough_room(pool: &Path, size: u64) -> Result<(), HostError> {
    let (_, free) = room(pool).map_err(during(format!("look at the pool {}", pool.display())))?;
    if free < size {
        let (pool, free, size) = (pool.display(), human_bytes(free), human_bytes(size));
        return Err(HostError(format!("the pool {pool} has {free} free and {size} are needed; make room there")));
    }
    Ok(())
}

fn listening(host: &str, port: u16) -> Result<SocketAddr, HostError> {
    let address = host.parse().map_err(during(format!("understand the listen address {host:?} (an IP address is needed)")))?;
    Ok(SocketAddr::new(address, port))
}

fn boxed<'a, T>(work: impl Future<Output = T> + Send + 'a) -> Work<'a, T> {
    Box::pin(work)
}
