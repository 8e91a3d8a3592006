//! A front end of four volumes, served by the real API server, and runs of the command.

use img_storage_daemon::frontend::{
    TransferId, TransferView,
    http::{self, Office, Reply},
};
use img_storage_model::{
    Epoch, Fault, HostName, PoolName, RequestId, Selector, Size, VolumeId, VolumeName,
    api::{Answer, AttributesOf, Event, HostView, Phase, Request, Trouble, VolumeView, WarmCopy},
    attribute::{self, Attributes, Defaults, NasAttributes},
    messages::{PoolReport, Progress, Role},
};
use jiff::{SignedDuration, Timestamp};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};
use uuid::Uuid;

pub fn ago(seconds: i64) -> Timestamp {
    Timestamp::now() - SignedDuration::from_secs(seconds)
}

pub fn volume(number: u128, name: &str, size: &str, phase: Phase) -> VolumeView {
    let selector: Selector = name.parse().unwrap();
    VolumeView {
        id: VolumeId(Uuid::from_u128(number)),
        nas: selector.nas.unwrap(),
        pool: selector.pool.unwrap(),
        name: selector.name,
        size: size.parse().unwrap(),
        allocated: Some(3 << 30),
        phase,
        node: None,
        epoch: Epoch(0),
        device: None,
        export: None,
        sync: false,
        lag: None,
        home: None,
        frequency: None,
        next_sync: None,
        dirty: None,
        progress: None,
        transfer_since: None,
        rate: None,
        last_write_back: None,
        write_backs: 0,
        stuck: None,
        notice: None,
        created: ago(5 * 86_400 + 60),
        mapped: None,
    }
}

fn mapped(mut volume: VolumeView, node: &str, sync: bool) -> VolumeView {
    volume.node = Some(node.parse().unwrap());
    volume.epoch = Epoch(3);
    volume.sync = sync;
    volume.device = Some(format!("nbd+unix:///e3?socket=/run/img-storage/{}.sock", volume.name));
    volume.mapped = Some(ago(3 * 3600));
    volume
}

pub fn volumes() -> Vec<VolumeView> {
    let mut local = mapped(volume(2, "nas-0-0:tank/vol2", "10G", Phase::Local), "compute-0-0", true);
    (local.lag, local.frequency, local.dirty, local.write_backs) = (Some(12), Some(60), Some(5 << 20), 17);
    let mut copying = mapped(volume(3, "nas-0-0:tank/vol3", "100G", Phase::Copying), "compute-0-1", true);
    copying.progress = Some(Progress { done: 42 << 30, total: 100 << 30 });
    copying.rate = Some(118 << 20);
    let mut stuck = mapped(volume(4, "nas-0-0:fast/vol1", "1.5T", Phase::Remote), "compute-0-1", false);
    stuck.stuck = Some(Trouble {
        host: "compute-0-1".parse().unwrap(),
        why: "the export refuses:\n connection reset\u{1b}[31m".into(),
        since: ago(200),
        next_try: None,
    });
    vec![stuck, volume(1, "nas-0-0:tank/vol1", "35G", Phase::Unmapped), local, copying]
}

#[derive(Default)]
pub struct Fake {
    pub volumes: Mutex<Vec<VolumeView>>,
    pub asked: Mutex<Vec<(RequestId, Request)>>,
    transfers: Mutex<HashMap<Uuid, (u64, u64, bool)>>,
    nas: Mutex<NasAttributes>,
    own: Mutex<HashMap<VolumeId, Attributes>>,
}

impl Fake {
    /// Every look at a volume that moves lets it move on.
    fn tick(v: &mut VolumeView) {
        let Some(progress) = v.progress.as_mut().filter(|_| v.id.0.as_u128() != 3) else { return };
        progress.done = (progress.done + progress.total.div_ceil(3)).min(progress.total);
        if progress.done == progress.total {
            v.progress = None;
            v.phase = if v.phase == Phase::Copying { Phase::Local } else { Phase::Unmapped };
        }
    }

    fn find(&self, selector: Option<&Selector>) -> Vec<VolumeView> {
        let mut all = self.volumes.lock().unwrap();
        let hit = |v: &VolumeView| selector.is_none_or(|s| s.matches(&v.nas, &v.pool, &v.name));
        let found = all.iter_mut().filter(|v| hit(v));
        found
            .map(|v| {
                Self::tick(v);
                v.clone()
            })
            .collect()
    }

    fn create(&self, pool: Option<PoolName>, name: VolumeName, size: Size, phase: Phase) -> Result<VolumeView, Fault> {
        let pool = pool.unwrap_or_else(|| "tank".parse().unwrap());
        let mut all = self.volumes.lock().unwrap();
        if all.iter().any(|v| v.pool == pool && v.name == name) {
            return Err(Fault::refused(format!("volume {pool}/{name} is there already")).next("choose another name"));
        }
        let number = 101 + u128::try_from(all.len()).unwrap();
        let mut made = volume(number, &format!("nas-0-0:{pool}/{name}"), "1M", phase);
        (made.size, made.created) = (size, ago(0));
        if phase == Phase::Importing {
            made.progress = Some(Progress { done: 0, total: size.bytes() });
        }
        all.push(made.clone());
        Ok(made)
    }

    fn attributes(&self, of: AttributesOf) -> Result<Answer, Fault> {
        let nas = self.nas.lock().unwrap().clone();
        let defaults = Defaults::of("60s".parse().unwrap());
        let own = match of {
            AttributesOf::Nas => None,
            AttributesOf::Volume(volume) => Some(self.own.lock().unwrap().get(&volume).copied().unwrap_or_default()),
        };
        Ok(Answer::Attributes { attributes: attribute::views(own.as_ref(), &nas, &defaults, None) })
    }

    async fn answer(&self, id: RequestId, request: Request, deadline: Duration) -> Result<Answer, Fault> {
        self.asked.lock().unwrap().push((id, request.clone()));
        let wanted = match &request {
            Request::Create { pool, name, size, .. } => {
                let volume = self.create(pool.clone(), name.clone(), *size, Phase::Unmapped)?;
                return Ok(Answer::Volume { volume: Box::new(volume) });
            }
            Request::Attributes { of } => return self.attributes(*of),
            Request::SetAttributes { of, changes, notes } => {
                let now = "2030-01-01T00:00:00Z".parse().unwrap();
                match of {
                    AttributesOf::Nas => {
                        let mut nas = self.nas.lock().unwrap();
                        *nas = nas.changed(changes, *notes, id, now)?;
                    }
                    AttributesOf::Volume(volume) => {
                        let mut own = self.own.lock().unwrap();
                        let next = own.get(volume).copied().unwrap_or_default().changed(changes, now)?;
                        own.insert(*volume, next);
                    }
                }
                return self.attributes(*of);
            }
            Request::History { .. } => {
                let event = |at, what: &str| Event { at: ago(at), what: what.into() };
                return Ok(Answer::History { events: vec![event(300, "created, 35G"), event(20, "mapped to compute-0-0")] });
            }
            Request::Map { volume, .. }
            | Request::Unmap { volume, .. }
            | Request::Sync { volume }
            | Request::BringBack { volume }
            | Request::Resize { volume, .. }
            | Request::Delete { volume } => *volume,
            other => return Err(Fault::failed(format!("not here: {other:?}"))),
        };
        if matches!(request, Request::Unmap { .. }) && wanted.0.as_u128() == 3 {
            tokio::time::sleep(deadline).await;
            return Err(Fault::unfinished(format!("not done within {} s; nas-0-0 goes on with it", deadline.as_secs()))
                .next("see how far it is: img-storage status"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut all = self.volumes.lock().unwrap();
        let at = all.iter().position(|v| v.id == wanted).ok_or_else(|| Fault::not_found("there is no such volume"))?;
        let v = &mut all[at];
        let name = format!("volume {}/{}", v.pool, v.name);
        match request {
            Request::Map { node, sync, .. } => {
                if let Some(there) = &v.node {
                    return Err(Fault::refused(format!("{name} is mapped to {there} already")).next("unmap it there first"));
                }
                *v = mapped(v.clone(), node.as_str(), sync);
                v.phase = if sync { Phase::Copying } else { Phase::Remote };
                v.progress = sync.then_some(Progress { done: 0, total: 35 << 30 });
                v.rate = sync.then_some(100 << 20);
            }
            Request::Unmap { .. } => {
                if v.node.is_none() {
                    return Err(Fault::refused(format!("{name} is not mapped")));
                }
                (v.phase, v.node, v.device, v.lag) = (Phase::Unmapped, None, None, None);
            }
            Request::Resize { size, .. } => v.size = size,
            Request::BringBack { .. } => (v.phase, v.sync) = (Phase::Remote, false),
            Request::Delete { .. } if v.node.is_some() => {
                return Err(Fault::refused(format!("{name} is mapped to compute-0-0; it cannot be deleted while mapped"))
                    .next("unmap it first"));
            }
            Request::Delete { .. } => {
                all.remove(at);
                return Ok(Answer::Deleted);
            }
            _ => {}
        }
        Ok(Answer::Volume { volume: Box::new(v.clone()) })
    }
}

fn warm(n: u128, gigabytes: u64, stays: Option<&str>) -> WarmCopy {
    WarmCopy {
        volume: VolumeId(Uuid::from_u128(n)),
        nas: "nas-0-0".parse().unwrap(),
        name: format!("tank/vol{n}"),
        used: gigabytes << 30,
        since: Timestamp::UNIX_EPOCH,
        going: None,
        stays: stays.map(str::to_owned),
    }
}

impl Office for Fake {
    fn hosts(&self) -> Reply<'_, Vec<HostView>> {
        let host = |name: &str, role, heard, volumes| HostView {
            name: name.parse().unwrap(),
            role,
            version: "0.1.0".into(),
            planes: vec!["qemu".into()],
            addresses: if role == Role::Nas { vec!["10.2.0.1".into()] } else { vec![] },
            pools: if role == Role::Nas {
                vec![PoolReport { name: "tank".into(), size: 4 << 40, free: 3 << 40, plane: Default::default() }]
            } else {
                vec![]
            },
            heard,
            away: heard > 60,
            volumes,
            warm: if name == "compute-0-0" {
                vec![warm(1, 4, None), warm(2, 3, Some("it may be the only copy"))]
            } else {
                vec![]
            },
        };
        let hosts = vec![
            host("frontend", Role::Frontend, 0, 0),
            host("nas-0-0", Role::Nas, 1, 4),
            host("compute-0-0", Role::Node, 2, 1),
            host("compute-0-1", Role::Node, 600, 2),
        ];
        Box::pin(std::future::ready(hosts))
    }

    fn volumes<'a>(&'a self, selector: Option<&'a Selector>) -> Reply<'a, Result<Vec<VolumeView>, Fault>> {
        Box::pin(std::future::ready(Ok(self.find(selector))))
    }

    fn one<'a>(&'a self, selector: &'a Selector) -> Reply<'a, Result<VolumeView, Fault>> {
        let mut found = self.find(Some(selector));
        Box::pin(std::future::ready(match found.len() {
            1 => Ok(found.swap_remove(0)),
            0 => Err(Fault::not_found(format!("there is no volume {selector}")).next("see img-storage list")),
            _ => {
                let names: Vec<_> = found.iter().map(VolumeView::full_name).collect();
                Err(Fault::invalid(format!("{selector} can be any of {}", names.join(", "))).next("name it more fully"))
            }
        }))
    }

    fn ask<'a>(
        &'a self,
        _: &'a HostName,
        id: RequestId,
        request: Request,
        deadline: Duration,
    ) -> Reply<'a, Result<Answer, Fault>> {
        Box::pin(self.answer(id, request, deadline))
    }

    fn nas_for_new<'a>(&'a self, nas: Option<&'a HostName>, _: Option<&'a PoolName>) -> Reply<'a, Result<HostName, Fault>> {
        let known: HostName = "nas-0-0".parse().unwrap();
        Box::pin(std::future::ready(match nas {
            Some(nas) if *nas != known => Err(Fault::not_found(format!("there is no NAS {nas}")).next("see img-storage hosts")),
            _ => Ok(known),
        }))
    }

    fn create_from(
        self: Arc<Self>,
        _: HostName,
        pool: Option<PoolName>,
        name: VolumeName,
        size: Option<Size>,
        source: PathBuf,
    ) -> Reply<'static, Result<VolumeView, Fault>> {
        let length = std::fs::metadata(source).map_or(0, |m| m.len());
        let made =
            size.map_or_else(|| Size::round_up(length), Ok).and_then(|size| self.create(pool, name, size, Phase::Importing));
        Box::pin(std::future::ready(made))
    }

    fn export_to(self: Arc<Self>, volume: VolumeView, _: PathBuf, _: String) -> Reply<'static, Result<TransferId, Fault>> {
        let id = Uuid::now_v7();
        self.transfers.lock().unwrap().insert(id, (0, volume.size.bytes(), volume.node.is_some()));
        Box::pin(std::future::ready(Ok(TransferId(id))))
    }

    fn transfer(&self, id: TransferId) -> Option<TransferView> {
        let mut all = self.transfers.lock().unwrap();
        let (done, total, bad) = all.get_mut(&id.0)?;
        *done = (*done + *total / 2).min(*total);
        let finished = (*done == *total).then(|| if *bad { Err(Fault::failed("the disk is full")) } else { Ok(()) });
        Some(TransferView { id, done: *done, total: *total, finished })
    }

    fn id(&self) -> RequestId {
        RequestId(Uuid::now_v7())
    }
}

/// The server, and the directory it serves.
pub struct World {
    pub dir: tempfile::TempDir,
    pub fake: Arc<Fake>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl World {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fake = Arc::new(Fake { volumes: Mutex::new(volumes()), ..Fake::default() });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(http::serve(fake.clone(), &dir.path().join("api.sock"))).unwrap();
        World { dir, fake, runtime: Some(runtime) }
    }

    pub fn run(&self, words: &[&str]) -> Ran {
        run(self.dir.path(), words)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What a run left.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ran { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
    }
}

pub fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_img-storage"));
    command.env_clear().env("IMG_STORAGE_DIR", dir).current_dir(dir).stdin(Stdio::null());
    command
}

pub fn run(dir: &Path, words: &[&str]) -> Ran {
    command(dir).args(words).output().unwrap().into()
}

/// Holds a text to the file of that name in `tests/expected`; `EXPECT=write` writes it.
pub fn expect(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/expected").join(name);
    if std::env::var_os("EXPECT").is_some_and(|v| v == "write") {
        std::fs::write(&path, text).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(expected == text, "{} differs; EXPECT=write accepts this:\n{text}", path.display());
}
