//! A power cut takes what a disk had not been told to flush, and nothing else.

use anyhow::ensure;
use img_storage_tests::lab::{Guest, Lab};

/// Where the disk of the pool is.
const DISK: &str = "/dev/disk/by-id/virtio-data";

/// Writes a word at an offset of the disk, straight to it.
async fn write(guest: &Guest, word: &str, block: u32, how: &str) -> anyhow::Result<()> {
    let script = format!("printf %-4096s {word} | dd of={DISK} bs=4096 seek={block} oflag=direct conv=notrunc{how} status=none");
    guest.check(&script).await?;
    Ok(())
}

async fn read(guest: &Guest, block: u32) -> anyhow::Result<String> {
    guest.check(&format!("dd if={DISK} bs=4096 count=1 skip={block} iflag=direct status=none | tr -d '\\0 '")).await
}

/// What was written and not flushed is read before the cut and gone after it; what was flushed is there. So it is with the root's files, as a
/// machine's; and a reboot keeps all of them.
pub async fn what_was_not_flushed_is_lost(lab: &Lab) -> anyhow::Result<()> {
    let guest = lab.guest("node1")?;
    write(guest, "first", 100, ",fsync").await?;
    write(guest, "flushed", 200, ",fsync").await?;
    guest.check("echo kept > /var/lib/kept && sync && echo unsynced > /var/lib/unsynced").await?;
    // Behind the last flush: the disk has it, and the guest reads it from there.
    write(guest, "second", 100, "").await?;
    write(guest, "lost", 300_000, "").await?;
    for (block, word) in [(100, "second"), (200, "flushed"), (300_000, "lost")] {
        let found = read(guest, block).await?;
        ensure!(found == word, "before the cut block {block} is {found:?}, not {word:?}");
    }
    guest.cut_power().await?;
    ensure!(!guest.runs().await, "{} runs without power", guest.name());
    guest.start().await?;
    for (block, word) in [(100, "first"), (200, "flushed"), (300_000, "")] {
        let found = read(guest, block).await?;
        ensure!(found == word, "after the cut block {block} is {found:?}, not {word:?}");
    }
    let found = guest.check("cat /var/lib/kept; ls /var/lib/unsynced 2> /dev/null || true").await?;
    ensure!(found == "kept", "after the cut: {found:?}");
    guest.check("echo again > /var/lib/unsynced").await?;
    let before = guest.check("cat /proc/sys/kernel/random/boot_id").await?;
    guest.reboot().await?;
    let found = guest.check("cat /var/lib/kept /var/lib/unsynced").await?;
    ensure!(found == "kept\nagain", "after the reboot: {found:?}");
    ensure!(guest.check("cat /proc/sys/kernel/random/boot_id").await? != before, "{} did not start again", guest.name());
    Ok(())
}
