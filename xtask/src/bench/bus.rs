//! A cluster on RabbitMQ: what a request costs when the hosts' tools cost nothing.
//!
//! The daemons are the real ones, each in a process of its own, on a real broker with TLS and certificates; their hosts do every
//! step at once (`tests/examples/instant`). The numbers of the original are those its design notes give, measured in the same way on another
//! machine: they say what kind of aim this is, not by how much it is met.

use super::{Bed, Part};
use crate::{
    command, demo,
    screen::{Step, bytes, table},
};
use anyhow::{Context as _, ensure};
use img_storage_tests::{
    broker::{Broker, Until},
    processes,
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

const NAS: &str = "nas-0-0";
const FRONTEND: &str = "frontend";

/// A process that ends with this value.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A broker, a directory for the daemons' state, and the program that has them.
struct Site {
    program: PathBuf,
    dir: PathBuf,
    broker: Broker,
    pki: PathBuf,
    nodes: Vec<String>,
}

/// What `instant` told: a median or a sum, and a worst.
type Told = BTreeMap<String, (f64, f64)>;

impl Site {
    async fn new(program: &Path, dir: PathBuf, nodes: usize) -> anyhow::Result<Self> {
        fs::create_dir(&dir)?;
        let nodes: Vec<String> = (0..nodes).map(|n| format!("compute-{}-{}", n / 40, n % 40)).collect();
        let hosts: Vec<&str> = nodes.iter().map(String::as_str).chain([NAS, FRONTEND]).collect();
        let broker = Broker::start(&hosts).await?;
        let pki = dir.join("pki");
        fs::create_dir(&pki)?;
        for host in hosts {
            std::os::unix::fs::symlink(broker.authority().issue(host, Until::Later)?, pki.join(host))?;
        }
        Ok(Site { program: program.to_owned(), dir, broker, pki, nodes })
    }

    fn command(&self, role: &str) -> Command {
        let mut command = Command::new(&self.program);
        command
            .arg(role)
            .arg(&self.dir)
            .arg(self.broker.port().to_string())
            .arg(&self.pki)
            .args([NAS, FRONTEND])
            .args(&self.nodes);
        command
    }

    fn daemon(&self, role: &str) -> anyhow::Result<Daemon> {
        let mut command = self.command(role);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        Ok(Daemon(command.spawn().context("starting the bench's daemons")?))
    }
}

/// Processor time that processes have used, in milliseconds.
fn used(pids: &[u32]) -> anyhow::Result<f64> {
    let mut ticks = 0;
    for pid in pids {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let after = stat.rsplit_once(") ").context("a process's state")?.1;
        ticks += after.split(' ').skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum::<u64>();
    }
    Ok(ticks as f64 * 1e3 / rustix::param::clock_ticks_per_second() as f64)
}

/// Reads what a load tells until it ends; at each line `at` may do something.
fn follow(mut command: Command, mut at: impl FnMut(&str, u32) -> anyhow::Result<()>) -> anyhow::Result<Told> {
    let mut child = Daemon(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
    let out = child.0.stdout.take().context("its output")?;
    let mut told = Told::new();
    for line in BufReader::new(out).lines() {
        let line: Value = serde_json::from_str(&line?)?;
        let what = line["what"].as_str().context("what it is")?.to_owned();
        at(&what, child.0.id())?;
        told.insert(what, (line["median"].as_f64().unwrap_or(f64::NAN), line["worst"].as_f64().unwrap_or(f64::NAN)));
    }
    ensure!(child.0.wait()?.success(), "`{}` failed; see above", command::line(&command));
    Ok(told)
}

pub async fn measure(bed: &Bed) -> anyhow::Result<Part> {
    let status = command::cargo(&["build", "--release", "-p", "img-storage-tests", "--example", "instant"]).status()?;
    ensure!(status.success(), "the bench's daemons cannot be built; see above");
    let program = demo::target().join("release/examples/instant");
    let step = Step::new("four nodes and a NAS on RabbitMQ");
    let site = Site::new(&program, bed.dir.join("bus"), 4).await?;
    let daemons = [site.daemon("nas")?, site.daemon("nodes")?];
    tokio::time::sleep(Duration::from_secs(2)).await;
    let pids: Vec<u32> = daemons.iter().map(|d| d.0.id()).collect();
    let idle = processes::memory(pids[0])?;
    let load = site.command("load");
    let (told, spent) = tokio::task::spawn_blocking(move || {
        let mut spent = (0.0, 0.0);
        let told = follow(load, |what, front| {
            let all = [pids[0], pids[1], front];
            match what {
                "begin" => spent.0 = used(&all)?,
                "end" => spent.1 = used(&all)?,
                _ => {}
            }
            Ok(())
        })?;
        anyhow::Ok((told, spent.1 - spent.0))
    })
    .await??;
    let full = processes::memory(daemons[0].0.id())?;
    drop(daemons);
    step.done("");
    let swarm = swarm(bed, &program).await?;
    Ok(Part { title: "A cluster on RabbitMQ", text: text(&told, spent, (idle, full), swarm) })
}

/// Many nodes on a broker that is restarted: how many, until all are back, and until every volume was unmapped besides.
async fn swarm(bed: &Bed, program: &Path) -> anyhow::Result<(usize, f64, f64)> {
    let many = if bed.quick { 100 } else { 1000 };
    let step = Step::new(&format!("{many} nodes, and the broker restarted"));
    let mut site = Site::new(program, bed.dir.join("swarm"), many).await?;
    let _daemons = [site.daemon("nas")?, site.daemon("nodes")?];
    let mut child = Daemon(site.command("swarm").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?);
    let mut out = BufReader::new(child.0.stdout.take().context("its output")?);
    let mut line = String::new();
    let line = move || -> anyhow::Result<(BufReader<_>, Value)> {
        out.read_line(&mut line)?;
        Ok((out, serde_json::from_str(&line)?))
    };
    let (mut out, ready) = tokio::task::spawn_blocking(line).await??;
    ensure!(ready["what"] == "ready", "{ready}");
    site.broker.stop().await?;
    site.broker.resume().await?;
    child.0.stdin.take().context("its input")?.write_all(b"\n")?;
    let last = move || -> anyhow::Result<Value> {
        let mut line = String::new();
        out.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    };
    let back = tokio::task::spawn_blocking(last).await??;
    step.done("");
    let number = |key: &str| back[key].as_f64().context("a number").map(|ms| ms / 1e3);
    Ok((many, number("median")?, number("worst")?))
}

fn text(told: &Told, spent: f64, memory: ((u64, u64), (u64, u64)), swarm: (usize, f64, f64)) -> String {
    let get = |what: &str| told.get(what).copied().unwrap_or((f64::NAN, f64::NAN));
    let time = |what: &str, key: &str, aim: &str, original: &str| {
        let (median, worst) = get(key);
        vec![what.to_owned(), format!("{median:.1} ms"), format!("{worst:.1} ms"), aim.to_owned(), original.to_owned()]
    };
    let rate = |what: &str, key: &str, original: &str| {
        let (median, worst) = get(key);
        vec![what.to_owned(), format!("{median:.0}/s"), format!("{worst:.0}/s"), "≥ 500/s".to_owned(), original.to_owned()]
    };
    let flat = get("map of 10000").0 / get("map").0;
    let rows = [
        time("map, request → answer", "map", "≤ 9 ms", "88 ms"),
        time("map --sync, request → answer", "sync map", "≤ 20 ms", "2.1 s"),
        time("unmap from remote", "unmap", "", ""),
        rate("200 maps at once over 4 nodes", "maps a second", "12/s"),
        rate("200 unmaps at once", "unmaps a second", "6/s"),
        time("list of 1", "list 1", "≤ 5 ms", "22 ms"),
        time("list of 1,000", "list 1000", "≤ 8 ms", "39 ms"),
        time("list of 10,000", "list 10000", "≤ 40 ms", "193 ms"),
        time("map with 1,000 volumes there", "map of 1000", "", ""),
        time("map with 10,000 volumes there", "map of 10000", "", ""),
    ];
    let (many, back, done) = swarm;
    format!(
        "{}\nFrom a front end on the bus to its answer; every daemon connected by TLS with its certificate. Median of 60 (20 lists, 5 times 200 \
         at once; there the worst is the slowest of the five). With 10,000 volumes a map takes {flat:.2} × what it takes with one (aim: ±20 %).\n\n\
         Processor time of NAS, nodes and front end for one map and its unmap, of 1,000 each: {:.2} ms (aim: ≤ 1 ms for the map; the original \
         16 ms). Memory of the NAS's daemon: {} idle (resident {}; aim ≤ 20 MB), {} with 10,000 volumes (resident {}).\n\n\
         {many} nodes, each with a mapped volume, on one broker that was stopped and started: after {back:.1} s every node and the NAS were back on \
         the bus and known to the front end (aim: ≤ 30 s), after {done:.1} s every volume was unmapped besides.\n",
        table(&["what", "median", "worst", "aim", "the original"], &rows),
        spent / 1000.0,
        bytes(memory.0.0),
        bytes(memory.0.1),
        bytes(memory.1.0),
        bytes(memory.1.1),
    )
}
