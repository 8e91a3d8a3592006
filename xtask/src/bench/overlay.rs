//! When the guest's writes go to an overlay: while everything is copied, as the original has it, or for the last difference only.
//!
//! The first is done by hand on the second node, with the same tools, the same guest and the same volume.

use super::{LIMIT, Part};
use crate::screen::{Step, bytes, seconds, table};
use anyhow::{Context as _, ensure};
use img_storage_tests::lab::{
    Guest, Lab,
    cluster::{Cluster, DEVICE, VOLUME},
};
use std::time::{Duration, Instant};

/// The device's name.
const NAME: &str = "nas.tank.vol1";
/// What the guest writes at a time.
const WRITE: u64 = 64 << 10;

/// What was seen of an overlay, from when it took the guest's writes until they were all where they belong.
struct Seen {
    took: Duration,
    held: Duration,
    most: u64,
    merged: u64,
    /// What the guest wrote between the overlay and the merge.
    written: u64,
}

pub async fn measure(lab: &Lab) -> anyhow::Result<Part> {
    let step = Step::new("early and late overlay");
    let cluster = Cluster::start(lab).await?;
    let (nas, first, second) = (cluster.guest("nas")?, cluster.guest("node1")?, cluster.guest("node2")?);
    cluster.ask(&format!("create {VOLUME} --size 256M")).await?;

    cluster.ask(&format!("map {VOLUME} node1")).await?;
    first
        .check_within(
            &format!(
                "dd if=/dev/urandom of={DEVICE} bs=1M count=160 oflag=direct iflag=fullblock conv=notrunc,fsync status=none"
            ),
            LIMIT,
        )
        .await?;
    watch(first).await?;
    let begun = Instant::now();
    cluster.ask(&format!("map {VOLUME} node1 --sync --wait local --timeout 140s")).await?;
    let late = seen(first, begun.elapsed()).await?;
    cluster.ask(&format!("unmap {VOLUME}")).await?;

    cluster.ask(&format!("map {VOLUME} node2")).await?;
    // From here on it is done by hand.
    cluster.kill("node2").await?;
    watch(second).await?;
    let begun = Instant::now();
    by_hand(nas, second).await?;
    let early = seen(second, begun.elapsed()).await?;
    cluster.end().await?;
    step.done("");

    let row = |what: &str, of: &dyn Fn(&Seen) -> String| vec![what.to_owned(), of(&late), of(&early)];
    let rows = [
        row("until the guest is on its local copy", &|s| seconds(s.took)),
        row("the overlay is in place for", &|s| seconds(s.held)),
        row("most in the overlay", &|s| bytes(s.most)),
        row("merged", &|s| bytes(s.merged)),
        row("written by the guest between overlay and merge", &|s| bytes(s.written)),
        row("merged, of what was written meanwhile", &|s| format!("{:.2}×", s.merged as f64 / s.written.max(1) as f64)),
    ];
    let text = format!(
        "{}\nA volume of 256 MiB with 160 MiB in it; a guest writes {} at a random place ten times a second. The late overlay is img-storage's \
         whole switch, the early one only the commands of it: overlay, snapshot, stream over plain TCP, merge.\n",
        table(&["overlay", "late", "early, by hand"], &rows),
        bytes(WRITE)
    );
    Ok(Part { title: "Early and late overlay", text })
}

/// Starts a guest that writes steadily, and one who looks at the overlay.
async fn watch(node: &Guest) -> anyhow::Result<()> {
    node.check(&format!(
        "mkdir -p /run/lab; rm -f /run/lab/enough /run/lab/writes /run/lab/samples
         cat > /run/lab/guest.sh <<'END'
         head -c {WRITE} /dev/urandom > /run/lab/block
         while [ ! -e /run/lab/enough ]; do
           dd if=/run/lab/block of={DEVICE} bs={WRITE} count=1 seek=$((RANDOM % 2560)) conv=notrunc,fsync oflag=direct status=none
           date +%s%N >> /run/lab/writes; sleep 0.1
         done
END
         cat > /run/lab/look.sh <<'END'
         while [ ! -e /run/lab/enough ]; do
           echo $(date +%s%N) $(dmsetup status --noflush {NAME}) >> /run/lab/samples; sleep 0.05
         done
END"
    ))
    .await?;
    node.spawn("guest", "bash /run/lab/guest.sh").await?;
    node.spawn("look", "bash /run/lab/look.sh").await?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    Ok(())
}

/// The overlay while everything is copied.
async fn by_hand(nas: &Guest, node: &Guest) -> anyhow::Result<()> {
    let swap = |table: &str| {
        format!("dmsetup suspend {NAME}; dmsetup load {NAME} --table \"0 $sectors {table}\"; dmsetup resume {NAME}")
    };
    let sectors = format!("sectors=$(blockdev --getsz {DEVICE})");
    let disk = node.check(&format!("dmsetup table {NAME} | cut -d' ' -f4")).await?;
    let ready = "for try in $(seq 100); do test -b /dev/zvol/vmpool/$zvol && break; sleep 0.05; done";
    node.check(&format!(
        "set -e; {sectors}; zvol=cow; zfs create -s -V 300M -o volblocksize=16K vmpool/$zvol; {ready}
         {}",
        swap(&format!("snapshot {} /dev/zvol/vmpool/cow P 32", disk.trim()))
    ))
    .await?;
    tokio::try_join!(
        node.check_within(
            "set -o pipefail; busybox nc -l -p 9999 < <(exec sleep 600 2> /dev/null) | zfs receive -u -o volmode=dev vmpool/hand",
            LIMIT
        ),
        async {
            nas.check("zfs snapshot tank/vol1@hand").await?;
            nas.check_within("set -o pipefail; sleep 0.5; zfs send -L -c -e tank/vol1@hand | busybox nc 10.77.0.4 9999", LIMIT)
                .await
        }
    )?;
    let merged = format!("dmsetup status --noflush {NAME} | awk '{{ split($4, a, \"/\"); exit !(a[1] == $5) }}'");
    node.check_within(
        &format!(
            "set -e; {sectors}; zvol=hand; {ready}
             {}
             until {merged}; do sleep 0.05; done
             {}",
            swap("snapshot-merge /dev/zvol/vmpool/hand /dev/zvol/vmpool/cow P 32"),
            swap("linear /dev/zvol/vmpool/hand 0")
        ),
        LIMIT,
    )
    .await
    .map(drop)
}

/// Ends who writes and who looks, and tells what there was.
async fn seen(node: &Guest, took: Duration) -> anyhow::Result<Seen> {
    node.check("touch /run/lab/enough; sleep 1").await?;
    let writes = node.check("cat /run/lab/writes").await?;
    let writes: Vec<u64> = writes.lines().filter_map(|line| line.trim().parse().ok()).collect();
    // Time, and what is in it; of a merge what is left.
    let mut overlay = Vec::new();
    let mut merge = Vec::new();
    for line in node.check("cat /run/lab/samples").await?.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [at, _, _, kind @ ("snapshot" | "snapshot-merge"), used, bookkeeping] = words[..] else { continue };
        let number = |text: &str| text.parse::<u64>().with_context(|| format!("a sample: {line}"));
        let (used, _) = used.split_once('/').with_context(|| format!("a sample: {line}"))?;
        let left = number(used)?.saturating_sub(number(bookkeeping)?) * 512;
        if kind == "snapshot" { &mut overlay } else { &mut merge }.push((number(at)?, left));
    }
    let all: Vec<(u64, u64)> = overlay.iter().chain(&merge).copied().collect();
    let (first, last) = (all.first().context("no overlay was seen")?.0, all.last().context("no overlay was seen")?.0);
    ensure!(!overlay.is_empty(), "the overlay was too short to be seen");
    let began = merge.first().map_or(last, |(at, _)| *at);
    let written = writes.iter().filter(|at| (first..began).contains(*at)).count() as u64 * WRITE;
    Ok(Seen {
        took,
        held: Duration::from_nanos(last - first),
        most: all.iter().map(|(_, left)| *left).max().unwrap_or(0),
        merged: merge.iter().map(|(_, left)| *left).max().unwrap_or(0),
        written,
    })
}
