//! Power cuts, killed daemons and pulled cables in the phases that last moments: the accident comes when the daemon's log says that its phase
//! has begun.

use anyhow::Context as _;
use img_storage_tests::lab::{
    Lab,
    cluster::{Cluster, DEVICE, DONE, VOLUME, Writer, ZVOL, holds},
};
use std::{collections::BTreeMap, time::Duration};

/// What happens to a host. Which has one name as a machine and as a daemon.
#[derive(Clone, Copy, Debug)]
enum Accident {
    /// Its daemon is killed, and started again.
    Killed,
    /// It loses its power, with what was not flushed, and starts again.
    PowerCut,
    /// Nothing it says is heard for some seconds, and it hears nothing.
    Away,
}

use Accident::{Away, Killed, PowerCut};

/// How long a cable is out: longer than the kernel's and the bus's first tries to reach who is away.
const OUT: Duration = Duration::from_secs(8);

/// On the way to the node: what the log of which daemon says when the phase begins, and what happens to whom.
const THERE: [(&str, &str, &str, Accident); 4] = [
    ("node1", "a local copy is made", "nas", PowerCut),
    ("nas", "copied; node1 may switch", "node1", Killed),
    ("node1", "the guest's writes: OverRemote", "nas", PowerCut),
    ("node1", "the guest's writes: MergingLocal", "node1", Killed),
];

/// On the way there once more, with everything that was copied before at hand. What is in the overlay is on this node alone.
const AGAIN: [(&str, &str, &str, Accident); 2] = [
    ("node1", "the guest's writes: OverRemote", "node1", Away),
    ("node1", "the guest's writes: MergingLocal", "node1", PowerCut),
];

/// A write-back, while the guest works on.
const HOME: [(&str, &str, &str, Accident); 2] =
    [("nas", "write-back ordered from node1", "node1", Killed), ("node1", "a snapshot is taken", "nas", PowerCut)];

/// The last one, and what follows it.
const LAST: [(&str, &str, &str, Accident); 3] = [
    ("nas", "the last one", "nas", PowerCut),
    ("node1", "a snapshot is taken", "node1", Away),
    ("nas", "came home", "node1", Killed),
];

/// On the way back. The copy that the node keeps then was under a guest when the power went.
const BACK: [(&str, &str, &str, Accident); 3] = [
    ("nas", "to bring the guest back", "nas", Killed),
    ("node1", "the guest's writes: OverLocal", "nas", PowerCut),
    ("node1", "the guest's writes: MergingRemote", "node1", PowerCut),
];

/// A guest writes on while its volume goes to the node and back, and in each phase something happens to one of the two; the node itself loses
/// its power with the guest, in the middle of a switch each way, and more happens while writes go home, the last ones too.
pub async fn every_phase_has_its_accident(lab: &Lab) -> anyhow::Result<()> {
    let cluster = Cluster::start(lab).await?;
    cluster.ask(&format!("create {VOLUME} --size 64M")).await?;
    cluster.ask(&format!("map {VOLUME} node1")).await?;
    let writer = Writer::on(&cluster, "node1").await?;
    for host in ["nas", "node1"] {
        cluster.kill(host).await?;
        again(&cluster, host).await?;
    }
    writer.works().await?;
    let there = format!("map {VOLUME} node1 --sync");
    accidents(&cluster, &there, &THERE).await?;
    cluster.until("local").await?;
    for host in ["nas", "node1"] {
        cluster.kill(host).await?;
        again(&cluster, host).await?;
    }
    cluster.until("local").await?;
    writer.works().await?;
    accidents(&cluster, &format!("bring-back {VOLUME} --no-wait"), &BACK).await?;
    cluster.until("remote").await?;
    let known = writer.known().await?;
    holds(&cluster, "node1", DEVICE, &known).await?;

    let writer = Writer::on(&cluster, "node1").await?;
    accidents(&cluster, &there, &AGAIN).await?;
    cluster.until("local").await?;
    let known = writer.known().await?;
    holds(&cluster, "node1", DEVICE, &known).await?;

    let writer = Writer::on(&cluster, "node1").await?;
    accidents(&cluster, &format!("sync {VOLUME} --no-wait"), &HOME).await?;
    cluster.until("local").await?;
    writer.works().await?;
    writer.off().await?;
    let known = writer.known().await?;

    accidents(&cluster, &format!("unmap {VOLUME} --no-wait"), &LAST).await?;
    cluster.until("unmapped").await?;
    holds(&cluster, "nas", ZVOL, &known).await?;
    writer.forget().await?;
    cluster.end().await
}

/// Asks for something; waits for each phase of it, and lets its accident happen.
async fn accidents(cluster: &Cluster<'_>, ask: &str, all: &[(&str, &str, &str, Accident)]) -> anyhow::Result<()> {
    // What a log had before does not count. A machine without power forgets its log.
    let mut before = BTreeMap::new();
    for host in ["nas", "node1"] {
        let lines = cluster.guest(host)?.check(&format!("wc -l < /run/lab/{host}.all")).await?;
        before.insert(host, lines.trim().parse::<u64>()?);
    }
    cluster.ask(ask).await?;
    for (who, says, victim, accident) in all {
        let from = before.get(who).copied().unwrap_or(0) + 1;
        // No asking again and again: some phases last for a moment.
        let script = format!("grep -qm1 \"{says}\" < <(exec tail -n +{from} -F /run/lab/{who}.all 2> /dev/null)");
        cluster.guest(who)?.check_within(&script, DONE).await.with_context(|| format!("{who} never said {says:?}"))?;
        println!("  {accident:?} on {victim}: {says}");
        match accident {
            Killed => {
                cluster.kill(victim).await?;
                again(cluster, victim).await?;
            }
            PowerCut => {
                let guest = cluster.guest(victim)?;
                guest.cut_power().await?;
                guest.start().await?;
                cluster.after_boot(victim).await?;
                before.remove(victim);
            }
            Away => {
                let guest = cluster.guest(victim)?;
                guest.link(false).await?;
                tokio::time::sleep(OUT).await;
                guest.link(true).await?;
            }
        }
    }
    Ok(())
}

/// Starts a daemon that was killed; the front end beside the NAS goes on.
async fn again(cluster: &Cluster<'_>, host: &str) -> anyhow::Result<()> {
    let (name, role) = if host == "nas" { ("nas", "nas") } else { (host, "vm") };
    cluster.start_one(name, host, role).await
}
