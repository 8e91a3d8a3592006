//! The kernel plane, in the virtual machines of the tests: what its steps take next to the tools that an operator has for them, and
//! what a switch and a start on a warm copy cost.

use super::{LIMIT as LONG, Part, longest, median_time, overlay};
use crate::{
    command, demo,
    screen::{Step, bytes, seconds, table},
};
use anyhow::{Context as _, ensure};
use img_storage_tests::lab::{
    Guest, Lab, Options,
    cluster::{Cluster, DEVICE, VOLUME},
};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// Where the targets listen.
const PORTAL: &str = "10.77.0.2";
/// Who may log in.
const INITIATOR: &str = "iqn.1993-08.org.debian:01:node1";
/// So many MiB are changed elsewhere before a start on a warm copy.
const CHANGED: u64 = 64;
/// A target made by hand.
const TARGET: &str = "iqn.2024-01.test.bench:hand";

pub async fn measure(program: &Path, quick: bool) -> anyhow::Result<Vec<Part>> {
    let verbs = verbs()?;
    let logs = command::root().join("target/lab/bench");
    let step = Step::new("starting the virtual machines");
    let lab = Lab::up(&Options { program: Some(program.to_owned()), logs, stay: false }).await?;
    step.done(&lab.accelerator().to_string());
    lab.guest("nas")?.put(&verbs, "/usr/local/bin/verbs").await?;
    let parts = async {
        let exports = exports(&lab, if quick { 20 } else { 250 }).await?;
        // What takes so long is told at once: who stops the rest has it.
        println!("\n{}", exports.text);
        clean(&lab).await?;
        let life = life(&lab, if quick { 2 } else { 5 }).await?;
        println!("\n{}", life.text);
        clean(&lab).await?;
        let overlay = overlay::measure(&lab).await?;
        Ok(vec![exports, life, overlay])
    };
    let parts: anyhow::Result<Vec<Part>> = parts.await;
    lab.down()?;
    parts
}

async fn clean(lab: &Lab) -> anyhow::Result<()> {
    for guest in lab.guests().iter().rev() {
        guest.check("/opt/lab/clean").await?;
    }
    Ok(())
}

/// The program that does one verb of the kernel plane a call.
fn verbs() -> anyhow::Result<std::path::PathBuf> {
    let words = ["build", "--release", "--package", "img-storage-host", "--example", "verbs"];
    ensure!(command::cargo(&words).status()?.success(), "the example `verbs` does not build");
    Ok(demo::target().join("release/examples/verbs"))
}

/// Runs a script in a guest; how long it took there.
async fn timed(guest: &Guest, script: &str) -> anyhow::Result<Duration> {
    let said = guest
        .check_within(&format!("begun=$(date +%s%N); {{ {script}; }} > /dev/null; echo $(($(date +%s%N) - begun))"), LONG)
        .await?;
    Ok(Duration::from_nanos(said.trim().parse().with_context(|| format!("a time: {said}"))?))
}

/// A target with one LUN, one initiator and its secret, by targetcli, all in one call of it.
fn by_targetcli(zvol: &str) -> String {
    format!(
        "targetcli <<'END'
/backstores/block create name=hand dev=/dev/zvol/{zvol}
/iscsi create {TARGET}
/iscsi/{TARGET}/tpg1/luns create /backstores/block/hand
/iscsi/{TARGET}/tpg1/acls create {INITIATOR}
/iscsi/{TARGET}/tpg1/acls/{INITIATOR} set auth userid=user password=password-of-14
exit
END
test -d /sys/kernel/config/target/iscsi/{TARGET}/tpgt_1/acls/{INITIATOR}/lun_0"
    )
}

const HAND_AWAY: &str =
    "targetcli /iscsi delete iqn.2024-01.test.bench:hand > /dev/null; targetcli /backstores/block delete hand > /dev/null";

async fn exports(lab: &Lab, count: usize) -> anyhow::Result<Part> {
    let step = Step::new("exports");
    let nas = lab.guest("nas")?;
    nas.check("zpool create tank /dev/disk/by-id/virtio-data; zfs create tank/bench; zfs create -V 8M -s tank/hand").await?;
    nas.check_within(&format!("for n in $(seq {count}); do zfs create -V 8M -s tank/bench/v$n; done; udevadm settle"), LONG)
        .await?;
    let hand = async || {
        let mut times = Vec::new();
        for _ in 0..3 {
            times.push(timed(nas, &by_targetcli("tank/hand")).await?);
            nas.check_within(HAND_AWAY, LONG).await?;
        }
        anyhow::Ok(times)
    };
    let alone = hand().await?;
    let said = nas.check_within(&format!("verbs lio many tank/bench {count} {PORTAL}:3260 {INITIATOR}"), LONG).await?;
    let ours: Vec<Duration> = said
        .lines()
        .filter_map(|line| line.split_once('\t'))
        .filter_map(|(_, time)| time.trim().parse().ok().map(Duration::from_secs_f64))
        .collect();
    ensure!(ours.len() == count, "{count} exports were to be made: {said}");
    let among = hand().await?;
    nas.check_within(&format!("verbs lio none {count}"), LONG).await?;
    step.done(&format!("{count}"));
    let (first, last) = (&ours[..5.min(count)], &ours[count - 5.min(count)..]);
    let ratio = |hand: &[Duration], ours: &[Duration]| {
        format!("{:.0}×", median_time(hand).as_secs_f64() / median_time(ours).as_secs_f64())
    };
    let rows = [
        vec![
            "the first 5".to_owned(),
            seconds(median_time(first)),
            seconds(median_time(&alone)),
            ratio(&alone, first),
            "≥ 10×".to_owned(),
        ],
        vec![
            format!("with {count} there"),
            seconds(median_time(last)),
            seconds(median_time(&among)),
            ratio(&among, last),
            "≥ 10×".to_owned(),
        ],
    ];
    let text = format!(
        "{}\nMedians. Backstore, target, LUN, one initiator and its secret. targetcli is called once for all of it, with its commands on its input, which \
         is its best case; ours is the same configfs, written directly. The last 5 of ours next to the first 5: {:.2}×.\n",
        table(&["exports", "img-storage", "targetcli", "ratio", "aim"], &rows),
        median_time(last).as_secs_f64() / median_time(first).as_secs_f64()
    );
    Ok(Part { title: "Exports on the kernel plane", text })
}

async fn life(lab: &Lab, rounds: usize) -> anyhow::Result<Part> {
    let step = Step::new("maps, switches and warm starts");
    let cluster = Cluster::start(lab).await?;
    let (nas, node) = (cluster.guest("nas")?, cluster.guest("node1")?);
    cluster.ask(&format!("create {VOLUME} --size 256M")).await?;
    let (mut ours, mut hand) = (Vec::new(), Vec::new());
    let (mut empty, mut again) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let begun = Instant::now();
        cluster.ask(&format!("map {VOLUME} node1")).await?;
        ours.push(begun.elapsed());
        cluster.ask(&format!("unmap {VOLUME}")).await?;
        hand.push(by_hand(nas, node).await?);
    }
    // Nothing was ever written to them: all that is left is the steps.
    for round in 0..rounds.max(3) {
        let name = format!("{VOLUME}-empty{round}");
        cluster.ask(&format!("create {name} --size 256M")).await?;
        cluster.ask(&format!("map {name} node2")).await?;
        empty.push(to_local(&cluster, &name).await?);
        cluster.ask(&format!("unmap {name}")).await?;
        // Its copy has everything now.
        cluster.ask(&format!("map {name} node2")).await?;
        again.push(to_local(&cluster, &name).await?);
        cluster.ask(&format!("unmap {name}")).await?;
    }
    let (changed, moved) = warm(&cluster).await?;
    let mut pauses = Vec::new();
    for name in ["node1", "node2"] {
        let said =
            cluster.guest(name)?.check(&format!("grep -o 'pause_us=[0-9]*' /run/lab/{name}.all | cut -d= -f2 || true")).await?;
        pauses.extend(said.lines().filter_map(|line| line.trim().parse().ok()).map(Duration::from_micros));
    }
    ensure!(!pauses.is_empty(), "no switch told how long it took");
    cluster.end().await?;
    step.done("");
    let share = median_time(&ours).as_secs_f64() / median_time(&hand).as_secs_f64();
    let rows = [
        vec![
            "`map` → device, next to the original's commands".to_owned(),
            seconds(median_time(&ours)),
            format!("{}, {share:.2} of it", seconds(median_time(&hand))),
            "≤ 0.2".to_owned(),
        ],
        vec![
            "remote → local, an empty volume".to_owned(),
            seconds(median_time(&empty)),
            format!("original 24.6 s; the first, with a new ssh connection, {}", seconds(empty[0])),
            "≤ 3 s".to_owned(),
        ],
        vec![
            "remote → local, nothing written since it was there".to_owned(),
            seconds(median_time(&again)),
            String::new(),
            "≤ 3 s".to_owned(),
        ],
        vec![
            "guest's pause at a swap of its device, longest".to_owned(),
            seconds(longest(&pauses)),
            format!("median {}, {} swaps", seconds(median_time(&pauses)), pauses.len()),
            "≤ 100 ms outside emulation".to_owned(),
        ],
        vec![
            "start on a warm copy: everything that came over the node's network".to_owned(),
            bytes(moved),
            format!("{} changed, {:.2}×", bytes(changed), moved as f64 / changed as f64),
            "≤ 1.1×".to_owned(),
        ],
    ];
    let text = format!(
        "{}\nThe machines are {}. The original's commands are `zfs list`, four \
         calls of targetcli, discovery, login and a look for the disk every second, in its order. Pauses are measured in the guest around suspend and resume.\n",
        table(&["what", "img-storage", "next to", "aim"], &rows),
        lab.accelerator()
    );
    Ok(Part { title: "Maps and copies on the kernel plane", text })
}

/// How long it takes from the guest's device on the NAS to the one on its node.
async fn to_local(cluster: &Cluster<'_>, volume: &str) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    cluster.ask(&format!("map {volume} node2 --sync --wait local --timeout 140s")).await?;
    Ok(begun.elapsed())
}

/// The commands of the original's map, in its order and with its pause: the zvol is looked for, backstore, target, LUN and initiator are a
/// call of targetcli each (`tgt-setup-lun-lock`), then discovery, login, and a look every second until the disk is there (`imgstoragevm.py`).
async fn by_hand(nas: &Guest, node: &Guest) -> anyhow::Result<Duration> {
    nas.check("zfs list tank/hand > /dev/null 2>&1 || zfs create -V 256M -s tank/hand; udevadm settle").await?;
    let export = timed(
        nas,
        &format!(
            "set -e; zfs list tank/hand; targetcli backstores/block create hand /dev/zvol/tank/hand; targetcli iscsi/ create {TARGET}; \
             targetcli iscsi/{TARGET}/tpg1/luns create /backstores/block/hand; targetcli iscsi/{TARGET}/tpg1/acls create {INITIATOR}"
        ),
    )
    .await?;
    let login = timed(
        node,
        &format!(
            "set -e; iscsiadm -m discovery -t sendtargets -p {PORTAL}; iscsiadm -m node -T {TARGET} -p {PORTAL} -l; \
             until iscsiadm -m session -P3 | grep -q 'Attached scsi disk'; do sleep 1; done"
        ),
    )
    .await?;
    node.check(&format!(
        "iscsiadm -m node -T {TARGET} -p {PORTAL} -u > /dev/null; iscsiadm -m node -T {TARGET} -p {PORTAL} -o delete"
    ))
    .await?;
    nas.check_within(&format!("{HAND_AWAY}; zfs destroy tank/hand"), LONG).await?;
    Ok(export + login)
}

/// What goes to a node that has a warm copy, and what had changed.
async fn warm(cluster: &Cluster<'_>) -> anyhow::Result<(u64, u64)> {
    let write = |at: u64, megabytes: u64| {
        format!(
            "dd if=/dev/urandom of={DEVICE} bs=1M seek={at} count={megabytes} conv=notrunc,fsync oflag=direct iflag=fullblock status=none"
        )
    };
    let node = cluster.guest("node1")?;
    cluster.ask(&format!("map {VOLUME} node1 --sync --wait local --timeout 140s")).await?;
    node.check_within(&write(0, 64), LONG).await?;
    cluster.ask(&format!("unmap {VOLUME}")).await?;
    cluster.ask(&format!("map {VOLUME} node2")).await?;
    cluster.guest("node2")?.check_within(&write(100, CHANGED), LONG).await?;
    cluster.ask(&format!("unmap {VOLUME}")).await?;
    let received = async || {
        let said = node.check("cat /sys/class/net/eth0/statistics/rx_bytes").await?;
        anyhow::Ok(said.trim().parse::<u64>()?)
    };
    let before = received().await?;
    cluster.ask(&format!("map {VOLUME} node1 --sync --wait local --timeout 140s")).await?;
    let moved = received().await? - before;
    cluster.ask(&format!("unmap {VOLUME}")).await?;
    Ok((CHANGED << 20, moved))
}
