//! Who uses the volume: writes blocks one after another, each flushed and then noted on a disk that keeps it, and is compared
//! with what is found afterwards.

use super::{Cluster, VOLUME, device};
use anyhow::{Context as _, ensure};
use std::{collections::BTreeMap, time::Duration};

/// So many blocks are written, at this distance, in 64 KiB.
const BLOCKS: u32 = 48;
const APART: u32 = 20;

/// A writer on a node.
pub struct Writer<'c> {
    cluster: &'c Cluster<'c>,
    node: &'static str,
    /// Where it notes what it did, on a disk that a power cut does not empty.
    notes: String,
    /// Where it looks whether it is to stop.
    stop: String,
}

/// A disk that loses its power in the middle of a write may have any of its pieces of this size, in bytes, and not the others.
const PIECE: u32 = 4096;

/// What was tried for each block.
pub type Known = BTreeMap<u32, Tries>;

/// What was tried for one block: the checksums of its pieces.
#[derive(Clone, Debug, Default)]
pub struct Tries {
    /// A write was answered: until then it may have what it had before all of them, which nobody looked at.
    answered: bool,
    /// The last write that is known to have been answered first, then what was tried since.
    valid: Vec<Vec<String>>,
    /// What it had before.
    older: Vec<Vec<String>>,
}

impl Tries {
    /// A write that nobody was answered is there in part.
    fn torn(&self, found: &[&str]) -> bool {
        self.answered && !self.valid.iter().any(|write| write.iter().eq(found))
    }

    /// What is wrong with a block that was found to have these pieces.
    fn wrong(&self, found: &[&str]) -> Option<String> {
        let among =
            |writes: &[Vec<String>], n: usize, piece: &str| writes.iter().any(|write| write.get(n).is_some_and(|p| p == piece));
        let wrong = |(n, piece): (usize, &&str)| match () {
            () if among(&self.valid, n, piece) => None,
            () if among(&self.older, n, piece) => Some(format!("piece {n} is an older one")),
            () => Some(format!("piece {n} was never written")),
        };
        if !self.answered {
            return None;
        }
        if found.len() != self.valid.first().map_or(0, Vec::len) {
            return Some(format!("it has {} pieces", found.len()));
        }
        let wrong: Vec<_> = found.iter().enumerate().filter_map(wrong).collect();
        (!wrong.is_empty()).then(|| format!("{}, after {} tries since the last answer", wrong.join(", "), self.valid.len() - 1))
    }
}

impl<'c> Writer<'c> {
    /// Begins to write to the volume.
    pub async fn on(cluster: &'c Cluster<'c>, node: &'static str) -> anyhow::Result<Self> {
        Self::to(cluster, node, VOLUME).await
    }

    /// Begins to write to any volume.
    pub async fn to(cluster: &'c Cluster<'c>, node: &'static str, volume: &str) -> anyhow::Result<Self> {
        let guest = cluster.guest(node)?;
        let (dir, device) = (format!("/run/lab/writer-{}", volume.replace('/', ".")), device(volume));
        let (notes, stop) = (format!("/var/lib/writer-{}.notes", volume.replace('/', ".")), format!("{dir}/stop"));
        // A note of a try is on the disk before the write is, and a note of its success after it.
        let script = format!(
            "mkdir -p {dir}; cat > {dir}/write.sh <<'END'
             while [ ! -e {stop} ]; do
               b=$((RANDOM % {BLOCKS})); head -c 65536 /dev/urandom > {dir}/block; {}
               echo try $b $s >> {notes}; sync -d {notes}
               if dd if={dir}/block of={device} bs=64k seek=$((b * {APART})) conv=notrunc,fsync oflag=direct status=none
               then echo ok $b $s; else echo bad $b $s; sleep 1; fi >> {notes}; sync -d {notes}
               sleep 0.2 # the machines are emulated, and have other things to do
             done
             echo over >> {notes}; sync -d {notes}
END
             rm -f {stop}",
            sums(&dir)
        );
        guest.check(&script).await?;
        guest.spawn(&format!("writer-{}", volume.replace('/', ".")), &format!("bash {dir}/write.sh")).await?;
        let writer = Writer { cluster, node, notes, stop };
        writer.works().await?;
        Ok(writer)
    }

    async fn notes(&self) -> anyhow::Result<String> {
        self.cluster.guest(self.node)?.check(&format!("cat {}", self.notes)).await
    }

    /// It writes on, and nothing was refused to it.
    pub async fn works(&self) -> anyhow::Result<()> {
        let guest = self.cluster.guest(self.node)?;
        let count = format!("grep -c ^ok {} || true", self.notes);
        let before = guest.check(&count).await?.trim().parse::<u32>().unwrap_or(0);
        let more = format!("test $({count}) -ge {}", before + 3);
        guest.wait_for(&more, super::DONE).await.context("the guest cannot write")?;
        let notes = self.notes().await?;
        let bad = notes.lines().find(|line| line.starts_with("bad"));
        ensure!(bad.is_none(), "the guest got an error: {bad:?}");
        Ok(())
    }

    /// Tells it to stop once the write is answered that it has under way, and does not wait for that.
    pub async fn stop(&self) -> anyhow::Result<()> {
        self.cluster.guest(self.node)?.check(&format!("touch {}", self.stop)).await?;
        Ok(())
    }

    /// Stops writing.
    pub async fn off(&self) -> anyhow::Result<()> {
        self.stop().await?;
        let guest = self.cluster.guest(self.node)?;
        guest.wait_for(&format!("tail -n 1 {} | grep -q over", self.notes), Duration::from_secs(60)).await?;
        Ok(())
    }

    /// What must be found: it was off, or its node lost its power.
    pub async fn known(&self) -> anyhow::Result<Known> {
        let mut known = Known::new();
        for line in self.notes().await?.lines() {
            let mut words = line.split(' ');
            let (Some(what), Some(Ok(block)), Some(sum)) = (words.next(), words.next().map(str::parse), words.next()) else {
                continue;
            };
            let tries: &mut Tries = known.entry(block).or_default();
            if what == "ok" {
                tries.answered = true;
                tries.older.append(&mut tries.valid);
            }
            tries.valid.push(sum.split('.').map(str::to_owned).collect());
        }
        ensure!(known.len() > 3, "hardly anything was written");
        Ok(known)
    }

    /// Forgets what was written so far: the next writer begins anew on the same volume, which `known` was compared with.
    pub async fn forget(&self) -> anyhow::Result<()> {
        self.cluster.guest(self.node)?.check(&format!("rm -f {}", self.notes)).await?;
        Ok(())
    }
}

/// Everything that is known to have been answered is on a device of a guest.
pub async fn holds(cluster: &Cluster<'_>, guest: &str, device: &str, known: &Known) -> anyhow::Result<()> {
    // A device that is not there yet has lost nothing; one that cannot be read is no answer.
    let script = format!(
        "for try in $(seq 120); do test -b {device} && break; sleep 0.5; done; dir=$(mktemp -d)
         for b in $(seq 0 {}); do
           dd if={device} of=$dir/block bs=64k skip=$((b * {APART})) count=1 iflag=direct status=none || exit 1
           {}
           echo $b $s
         done; rm -r $dir",
        BLOCKS - 1,
        sums("$dir")
    );
    let found = cluster.guest(guest)?.check_within(&script, super::DONE).await?;
    let mut lost = Vec::new();
    for line in found.lines() {
        let (block, sums) = line.split_once(' ').context("a sum")?;
        let block: u32 = block.parse()?;
        let sums: Vec<_> = sums.split('.').collect();
        match known.get(&block).map(|tries| (tries.wrong(&sums), tries.torn(&sums))) {
            Some((Some(wrong), _)) => lost.push(format!("block {block}: {wrong}")),
            Some((None, true)) => println!("  block {block} on {guest} is torn: its write was under way"),
            Some((None, false)) | None => {}
        }
    }
    ensure!(
        lost.is_empty(),
        "{device} on {guest} lacks what was answered, {} of {} blocks: {}",
        lost.len(),
        known.len(),
        lost.join("; ")
    );
    Ok(())
}

/// Commands that set `s` to the checksums of the pieces of the block in a directory.
fn sums(dir: &str) -> String {
    format!("split -b {PIECE} {dir}/block {dir}/piece.; s=$(md5sum {dir}/piece.* | cut -c-8 | paste -sd.)")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(sums: &str) -> Vec<String> {
        sums.split('.').map(str::to_owned).collect()
    }

    #[test]
    fn a_torn_write_is_none_that_was_lost_and_an_older_one_is() {
        let tries = Tries { answered: true, valid: vec![write("a.b"), write("c.d")], older: vec![write("x.y")] };
        assert_eq!(tries.wrong(&["a", "b"]), None, "what was answered");
        assert_eq!(tries.wrong(&["c", "b"]), None, "half of what was not answered");
        assert_eq!(tries.wrong(&["c", "d"]), None);
        assert!(tries.torn(&["c", "b"]) && !tries.torn(&["c", "d"]));
        assert_eq!(tries.wrong(&["x", "b"]).unwrap(), "piece 0 is an older one, after 1 tries since the last answer");
        assert_eq!(tries.wrong(&["a"]).unwrap(), "it has 1 pieces");
        let first = Tries { valid: vec![write("a.b")], ..Tries::default() };
        assert!(first.wrong(&["0", "0"]).is_none() && !first.torn(&["0", "0"]), "its first write was not answered");
        assert_eq!(tries.wrong(&["b", "a"]).unwrap().matches("never written").count(), 2, "the place counts");
    }
}
