//! What somebody did by hand, on the NAS and on a node, with the daemons dead: doctor names it and who holds it, changes nothing, and
//! what it says to do is what helps.

use anyhow::ensure;
use img_storage_model::{Epoch, VolumeId, nas::kernel::iqn};
use img_storage_tests::lab::{
    Lab,
    cluster::{Cluster, DEVICE, DIR, DONE, VOLUME, ZVOL},
};
use serde_json::Value;

/// Everything that doctor could have changed on a guest, in one text.
const EVERYTHING: &str = "\
    find /var/lib/img-storage-state-* -printf '%p %y %m %s %T@ %i\\n' | sort | md5sum
    find /var/lib/img-storage-state-* -type f -exec md5sum {} + | sort | md5sum
    dmsetup info --columns --noheadings -o name,uuid,open,suspended,tables_loaded; dmsetup table
    zfs list -Hp -t all -o name,guid,written,userrefs,receive_resume_token; zfs allow $(zfs list -H -o name | tail -n 1 | cut -d/ -f1-2)
    (find /sys/kernel/config/target /etc/img-storage /etc/rtslib-fb-target /etc/iscsi /var/lib/iscsi -printf '%p %y %l\\n' 2> /dev/null || true) | sort
    ls /sys/class/iscsi_session 2> /dev/null || true; ls /dev/mapper; ps -e -o pid=,comm= | grep '[i]mg-storage' || true";

/// What doctor says on a host, with its exit code; and that it changed nothing.
async fn examine(cluster: &Cluster<'_>, host: &str, more: &str) -> anyhow::Result<(i32, Value)> {
    let guest = cluster.guest(host)?;
    let still = cluster_is_still(cluster, host).await?;
    let before = if still { guest.check(EVERYTHING).await? } else { String::new() };
    let command = format!("img-storage doctor --dir {DIR}-{host} --config /etc/img-storage/{host}.toml {more} -o json");
    let ran = guest.run_within(&command, DONE).await?;
    if still {
        let after = guest.check(EVERYTHING).await?;
        ensure!(before == after, "doctor changed something on {host}:\n--- before\n{before}\n--- after\n{after}");
    }
    let said = serde_json::from_str(&ran.stdout);
    ensure!(
        said.is_ok() && [0, 1, 6].contains(&ran.code),
        "doctor on {host} ends with {}: {} {}",
        ran.code,
        ran.stdout,
        ran.stderr
    );
    Ok((ran.code, said?))
}

/// No daemon runs there that could change something meanwhile.
async fn cluster_is_still(cluster: &Cluster<'_>, host: &str) -> anyhow::Result<bool> {
    let running = cluster.guest(host)?.run(&format!("pgrep -f -- '[-]-name {host} '")).await?;
    Ok(running.code != 0)
}

/// The finding about a thing, which says these words.
fn finding<'v>(said: &'v Value, thing: &str, words: &[&str]) -> anyhow::Result<&'v Value> {
    let all = said["findings"].as_array();
    let found = all.into_iter().flatten().find(|finding| {
        finding["thing"].as_str().is_some_and(|t| t.contains(thing)) && words.iter().all(|w| finding.to_string().contains(w))
    });
    found.ok_or_else(|| anyhow::anyhow!("doctor says nothing of {thing} with {words:?}, but {said:#}"))
}

/// Waits until nothing differs.
async fn well(cluster: &Cluster<'_>, host: &str) -> anyhow::Result<()> {
    let command = format!("img-storage doctor --dir {DIR}-{host} --config /etc/img-storage/{host}.toml");
    cluster.guest(host)?.wait_for(&command, DONE).await.map(drop)
}

pub async fn the_doctor_names_the_culprit(lab: &Lab) -> anyhow::Result<()> {
    let cluster = Cluster::start(lab).await?;
    let (nas, node) = (cluster.guest("nas")?, cluster.guest("node1")?);
    cluster.ask(&format!("create {VOLUME} --size 64M")).await?;
    cluster.ask(&format!("map {VOLUME} node1")).await?;
    // Mapped, in use, and in order: who uses it is no fault.
    let sleeper = node.spawn("sleeper", &format!("sleep 1000 < {DEVICE}")).await?;
    for host in ["nas", "node1"] {
        well(&cluster, host).await?;
    }
    let (code, said) = examine(&cluster, "node1", VOLUME).await?;
    let used = finding(&said, DEVICE, &["note", "in use", "linear", &format!("process {sleeper} (sleep)")])?;
    ensure!(code == 0 && used["volume"] == "nas:tank/vol1", "{code}: {said:#}");

    node.check(&format!("kill {sleeper}")).await?;
    stacked(&cluster).await?;

    cluster.ask(&format!("map {VOLUME} node1 --sync --wait local --timeout 230s")).await?;
    cluster.ask(&format!("sync {VOLUME}")).await?;
    let view = cluster.view().await?;
    let id = if view["id"].is_null() { &view["volume"]["id"] } else { &view["id"] };
    let volume: VolumeId = serde_json::from_value(id.clone())?;
    for host in ["nas", "node1"] {
        well(&cluster, host).await?;
        cluster.kill(host).await?;
    }

    // The node: its daemon is dead, a table was left loaded, the device was removed by hand, and somebody took a permission away.
    let (code, said) = examine(&cluster, "node1", "").await?;
    finding(&said, "the node daemon", &["does not run"])?;
    ensure!(code == 6 && said["findings"].as_array().is_some_and(|all| all.len() == 1), "{code}: {said:#}");
    node.check("dmsetup table nas.tank.vol1 | dmsetup load nas.tank.vol1").await?;
    let (_, said) = examine(&cluster, "node1", "").await?;
    finding(&said, DEVICE, &["a table is loaded that is not in use", "dmsetup clear nas.tank.vol1"])?;
    node.check("dmsetup clear nas.tank.vol1").await?;
    let (_, said) = examine(&cluster, "node1", "").await?;
    ensure!(finding(&said, DEVICE, &[]).is_err(), "the table is dropped: {said:#}");
    node.check("dmsetup remove --retry nas.tank.vol1; zfs unallow -u img-storage send vmpool/images").await?;
    node.check("zfs create -V 16M -s vmpool/images/stray; zfs set img-storage:volume=00000000-0000-0000-0000-000000000007 vmpool/images/stray")
        .await?;
    let stray = node.spawn("stray", "sleep 1000 < /dev/zvol/vmpool/images/stray").await?;
    let (_, said) = examine(&cluster, "node1", "").await?;
    finding(&said, DEVICE, &["it is not there", "linear over the local zvol", "never by hand"])?;
    finding(&said, "vmpool/images", &["img-storage may not send", "zfs allow -u img-storage send vmpool/images"])?;
    let lone = finding(&said, "vmpool/images/stray", &["only copy", "left alone", &format!("process {stray} (sleep)")])?;
    ensure!(!lone["next"].as_str().unwrap_or_default().contains("destroy"), "{lone:#}");
    let (_, said) = examine(&cluster, "node1", "vol1").await?;
    ensure!(finding(&said, "stray", &[]).is_err(), "of another volume: {said:#}");

    // The NAS: a snapshot and writes by hand, and a target of an older mapping that targetcli made and saved.
    let target = iqn("nas", volume, Epoch(77));
    nas.check(&format!(
        "zfs snapshot {VOLUME}@by-hand; dd if=/dev/urandom of={ZVOL} bs=64k count=4 conv=fsync status=none; zpool sync tank"
    ))
    .await?;
    nas.check_within(&format!("targetcli /iscsi create {target} > /dev/null; targetcli saveconfig > /dev/null"), DONE).await?;
    let reader = nas.spawn("reader", &format!("sleep 1000 < {ZVOL}")).await?;
    let (code, said) = examine(&cluster, "nas", VOLUME).await?;
    ensure!(code == 6, "{said:#}");
    finding(&said, "the NAS daemon", &["does not run"])?;
    finding(&said, "tank/vol1@by-hand", &["somebody else's", "newer than ours", "zfs destroy tank/vol1@by-hand"])?;
    finding(&said, "zvol tank/vol1", &["written to it while node1", "zfs rollback", &format!("process {reader} (sleep)")])?;
    finding(&said, &format!("export {target}"), &["older mapping"])?;
    finding(&said, &format!("target {target}"), &["targetcli saved it"])?;

    // What it says to do helps.
    let newest = "$(zfs list -Hd 1 -t snapshot -o name -s createtxg tank/vol1 | grep IMG-STORAGE | tail -n 1)";
    nas.check(&format!("kill {reader}; sleep 2; zfs destroy {VOLUME}@by-hand; zfs rollback {newest}")).await?;
    nas.check_within(
        &format!(
            "targetcli /iscsi delete {target} > /dev/null; targetcli saveconfig > /dev/null; rm -rf /etc/rtslib-fb-target/*"
        ),
        DONE,
    )
    .await?;
    node.check(&format!("kill {stray}; sleep 2; zfs destroy vmpool/images/stray; zfs allow -u img-storage send vmpool/images"))
        .await?;
    cluster.start_one("nas", "nas", "nas").await?;
    cluster.start_one("node1", "node1", "vm").await?;
    for host in ["nas", "node1"] {
        well(&cluster, host).await?;
    }
    cluster.until("local").await?;
    cluster.ask(&format!("unmap {VOLUME}")).await?;
    well(&cluster, "node1").await?;
    let (_, said) = examine(&cluster, "node1", "").await?;
    finding(&said, "vmpool/images/nas.tank.vol1", &["note", "a warm copy"])?;
    cluster.end().await
}

/// Whoever else can have a disk is named, by doctor and to who wants to unmap it, and is left alone: LVM, a device that somebody put on it, a
/// mount. When that is over, the volume is unmapped.
async fn stacked(cluster: &Cluster<'_>) -> anyhow::Result<()> {
    let node = cluster.guest("node1")?;
    // The guest's disk is seen by both its names; who really wants it uses the one.
    let filter = "c='--config=devices/global_filter=[\"r|^/dev/sd|\"]'";
    let lvm = format!(
        "{filter}; pvcreate \"$c\" -qqy {DEVICE}; vgcreate \"$c\" -qq guest {DEVICE}; lvcreate \"$c\" -qq -y -l 2 -n root guest"
    );
    let no_lvm = format!("{filter}; vgchange \"$c\" -qq -an guest; vgremove \"$c\" -qq -f guest; pvremove \"$c\" -qq {DEVICE}");
    let by_hand = format!("echo 0 2048 linear {DEVICE} 0 | dmsetup create by-hand");
    let mount = format!("mkfs.ext4 -q -F {DEVICE}; mount {DEVICE} /mnt");
    for (take, shown, release) in [
        (lvm.as_str(), "LVM's guest-root", no_lvm.as_str()),
        (&by_hand, "(by-hand)", "dmsetup remove --retry by-hand"),
        (&mount, "the mount at /mnt", "true"),
    ] {
        node.check(take).await?;
        let (code, said) = examine(cluster, "node1", VOLUME).await?;
        finding(&said, DEVICE, &["note", "in use", shown])?;
        ensure!(code == 0, "it is no fault that {shown}: {said:#}");
        node.check(release).await?;
    }
    let refused = cluster.try_ask(&format!("unmap {VOLUME}")).await?;
    ensure!(
        refused.code != 0 && refused.stderr.contains("the mount at /mnt"),
        "it is mounted, and who wants to unmap it is told {refused:?}"
    );
    node.check("touch /mnt/file; sync /mnt/file; umount /mnt").await?;
    cluster.ask(&format!("unmap {VOLUME}")).await.map(drop)
}
