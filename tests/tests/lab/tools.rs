//! The kernel's parts work together in these guests, driven by hand: before what we do with them is judged.

use anyhow::ensure;
use img_storage_tests::lab::Lab;
use std::time::Duration;

const TARGET: &str = "iqn.2024-01.img-storage.lab:tools";
const INITIATOR: &str = "iqn.1993-08.org.debian:01:node1";

/// A volume of the NAS under a device of a node: what is written there is on the volume, byte for byte.
pub async fn the_tools_work(lab: &Lab) -> anyhow::Result<()> {
    let (nas, node) = (lab.guest("nas")?, lab.guest("node1")?);
    let portal = nas.address();
    nas.check("zpool create tank /dev/disk/by-id/virtio-data; zfs create -s -V 64M -o volblocksize=16K tank/disk").await?;
    nas.wait_for("test -b /dev/zvol/tank/disk", Duration::from_secs(10)).await?;
    nas.check(&format!(
        "cd /sys/kernel/config/target; mkdir -p core/iblock_0/disk; echo udev_path=/dev/zvol/tank/disk > core/iblock_0/disk/control
         echo 1 > core/iblock_0/disk/enable; echo lab0001 > core/iblock_0/disk/wwn/vpd_unit_serial
         tpg=iscsi/{TARGET}/tpgt_1; mkdir -p $tpg/lun/lun_0; ln -s $PWD/core/iblock_0/disk $tpg/lun/lun_0/port
         mkdir -p $tpg/np/{portal}:3260 $tpg/acls/{INITIATOR}/lun_0; echo 0 > $tpg/attrib/authentication
         ln -s $PWD/$tpg/lun/lun_0 $tpg/acls/{INITIATOR}/lun_0/l; echo 1 > $tpg/enable"
    ))
    .await?;
    ensure!(nas.check("targetcli ls /iscsi").await?.contains(TARGET), "targetcli does not see the target");
    let disk = format!("/dev/disk/by-path/ip-{portal}:3260-iscsi-{TARGET}-lun-0");
    node.check(&format!(
        "iscsiadm -m node -o new -T {TARGET} -p {portal}:3260; iscsiadm -m node -T {TARGET} -p {portal}:3260 -o update -n node.startup -v manual
         iscsiadm -m node -T {TARGET} -p {portal}:3260 --login"
    ))
    .await?;
    node.wait_for(&format!("test -b {disk}"), Duration::from_secs(20)).await?;
    let serial = node.check(&format!("udevadm info -q property -n {disk} | grep -c lab0001")).await?;
    ensure!(serial != "0", "the disk's serial number is not that of the export");
    node.check(&format!("dmsetup create lab-disk --table \"0 $(blockdev --getsz {disk}) linear {disk} 0\"")).await?;
    let sum = node
        .check("head -c 8M /dev/urandom > /tmp/data; dd if=/tmp/data of=/dev/mapper/lab-disk bs=1M oflag=direct conv=fsync status=none; md5sum < /tmp/data | cut -c-32; rm /tmp/data")
        .await?;
    let found = nas.check("dd if=/dev/zvol/tank/disk bs=1M count=8 iflag=direct status=none | md5sum | cut -c-32").await?;
    ensure!(found == sum && sum.len() == 32, "the volume has {found}, the node wrote {sum}");

    ensure!(node.check("img-storage --version").await?.starts_with("img-storage"), "the program does not run in the guest");
    Ok(())
}
