//! What is promised of a device that gets another layer while a guest uses it, on the real device-mapper.
//!
//! The daemon's own swaps are too quick to be met at the moment that counts. So this program is copied into a node and run there: what it
//! has of `img-storage-host` does the swaps, on a device of its own, with something else than the kernel's good will at each step.

use anyhow::{Context as _, bail, ensure};
use img_storage_host::kernel::{
    block::{self, Number},
    dm::{Count, Dm, Layer, Table},
};
use img_storage_tests::lab::{Lab, ship};
use std::{
    fs::{self, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

/// Says that this program is in a guest, and there for the swaps.
pub const INSIDE: &str = "IMG_STORAGE_LAB_SWAPS";

const NAME: &str = "lab-swap";
const PREFIX: &str = "LAB-";
const SIZE: u64 = 64 << 20;
const BLOCK: usize = 16 << 10;

/// A device is moved where nothing was written, stays where something was, and goes on whatever fails.
pub async fn a_swap_keeps_its_word(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.guest("node1")?;
    node.check(
        "zpool create vmpool /dev/disk/by-id/virtio-data
         for name in one two; do zfs create -s -V 64M -o volblocksize=16K -o volmode=dev vmpool/$name; done; udevadm settle",
    )
    .await?;
    let copy = lab.dir().join("swaps");
    ship::strip(&std::env::current_exe()?, &copy)?;
    node.put(&copy, "/run/swaps").await?;
    let said = node.run_within(&format!("{INSIDE}=1 /run/swaps"), Duration::from_secs(240)).await?;
    node.check("rm /run/swaps").await?;
    fs::remove_file(copy)?;
    ensure!(said.code == 0, "{}{}", said.stdout, said.stderr);
    Ok(())
}

/// In the guest.
pub fn inside() -> ExitCode {
    let done = tokio::runtime::Runtime::new().context("a runtime").and_then(|runtime| runtime.block_on(swaps()));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn swaps() -> anyhow::Result<()> {
    let device = Device::make().await?;
    device.moves_where_nothing_was_written().await?;
    device.stays_where_something_was_written().await?;
    device.stays_while_somebody_writes().await?;
    device.goes_on_when_the_table_cannot_be_loaded().await?;
    device.forgets_what_was_pending().await?;
    device.dm.remove(NAME).await?;
    Ok(())
}

/// The device, over one of two zvols.
struct Device {
    dm: Dm,
    one: Layer,
    two: Layer,
    path: PathBuf,
}

impl Device {
    async fn make() -> anyhow::Result<Self> {
        let over = |name: &str| -> anyhow::Result<Layer> {
            let path = Path::new("/dev/zvol/vmpool").join(name);
            Ok(Layer::Linear { device: block::number(&path)?.with_context(|| format!("{} is not there", path.display()))? })
        };
        let (dm, one, two) = (Dm::new(PREFIX), over("one")?, over("two")?);
        dm.create(NAME, &format!("{PREFIX}swap"), SIZE, &one).await?;
        Ok(Self { dm, one, two, path: Dm::path(NAME) })
    }

    async fn count(&self) -> anyhow::Result<Count> {
        let spot = self.dm.spot(NAME).await?.context("the device is gone")?;
        let count = spot.count.context("this kernel does not count what is written")?;
        ensure!(count.under_way == 0, "something is under way on a device that nobody uses");
        Ok(count)
    }

    /// It is over `layer`, runs, and waits for nothing.
    async fn is_over(&self, layer: Layer) -> anyhow::Result<()> {
        let table = self.dm.table(NAME).await?;
        ensure!(table == Some(Table::Layer { layer, size: SIZE }), "the device is over {table:?}, not {layer:?}");
        let state = self.dm.find(NAME).await?.context("the device is gone")?;
        ensure!(state.live && !state.suspended && !state.pending, "{state:?}");
        Ok(())
    }

    /// Writes a block through the device, onto stable storage.
    fn write(&self, block: u64, byte: u8) -> anyhow::Result<()> {
        let mut file = OpenOptions::new().write(true).open(&self.path)?;
        file.seek(SeekFrom::Start(block * BLOCK as u64))?;
        file.write_all(&[byte; BLOCK])?;
        Ok(file.sync_all()?)
    }

    async fn moves_where_nothing_was_written(&self) -> anyhow::Result<()> {
        self.write(0, 1)?;
        let count = self.count().await?;
        ensure!(count.writes > 0, "a write was not counted");
        let moved = self.dm.swap_if_still(NAME, SIZE, &self.two, count).await?;
        ensure!(moved.is_some(), "nothing was written, and it was not moved");
        self.is_over(self.two).await?;
        self.write(1, 2)?;
        ensure!(read("one", 0)? == 1 && read("one", 1)? == 0 && read("two", 1)? == 2, "a write went elsewhere");
        Ok(())
    }

    async fn stays_where_something_was_written(&self) -> anyhow::Result<()> {
        let before = self.count().await?;
        self.write(2, 3)?;
        ensure!(self.dm.swap_if_still(NAME, SIZE, &self.one, before).await?.is_none(), "it was moved over a write");
        self.is_over(self.two).await?;
        let another = Count { device: before.device + 1, ..self.count().await? };
        ensure!(self.dm.swap_if_still(NAME, SIZE, &self.one, another).await?.is_none(), "it was moved by another's count");
        self.is_over(self.two).await?;
        ensure!(read("two", 2)? == 3, "a write was lost");
        Ok(())
    }

    async fn stays_while_somebody_writes(&self) -> anyhow::Result<()> {
        let (over, path) = (Arc::new(AtomicBool::new(false)), self.path.clone());
        let stop = Arc::clone(&over);
        let writer = std::thread::spawn(move || -> anyhow::Result<u64> {
            let mut file = OpenOptions::new().write(true).open(path)?;
            let mut rounds = 0;
            while !stop.load(Ordering::Relaxed) {
                rounds += 1;
                file.seek(SeekFrom::Start(rounds % 100 * BLOCK as u64))?;
                file.write_all(&[(rounds / 100 % 250) as u8 + 1; BLOCK])?;
                file.sync_data()?;
            }
            Ok(rounds)
        });
        let mut tried = 0;
        while tried < 10 && !writer.is_finished() {
            let spot = self.dm.spot(NAME).await?.and_then(|spot| spot.count).context("nothing is counted")?;
            // What is under way now has ended when the device is suspended, and something else has begun before that.
            tokio::time::sleep(Duration::from_millis(200)).await;
            ensure!(
                self.dm.swap_if_still(NAME, SIZE, &self.one, spot).await?.is_none(),
                "it was moved under somebody who writes"
            );
            self.is_over(self.two).await?;
            tried += 1;
        }
        over.store(true, Ordering::Relaxed);
        let Ok(rounds) = writer.join() else { bail!("the writer fell over") };
        let rounds = rounds.context("a write failed while the device was tried")?;
        ensure!(tried == 10 && rounds > 10, "only {rounds} writes at {tried} tries");
        for round in rounds.saturating_sub(99).max(1)..=rounds {
            let (found, wanted) = (read("two", round % 100)?, (round / 100 % 250) as u8 + 1);
            ensure!(found == wanted, "write {round} is {found}, not {wanted}");
        }
        Ok(())
    }

    async fn goes_on_when_the_table_cannot_be_loaded(&self) -> anyhow::Result<()> {
        let nothing = Layer::Linear { device: Number { major: 4000, minor: 1 } };
        let count = self.count().await?;
        let said = self.dm.swap_if_still(NAME, SIZE, &nothing, count).await;
        let said = said.err().context("it was moved onto nothing")?.to_string();
        ensure!(said.contains(NAME) && said.contains("goes on"), "{said}");
        self.is_over(self.two).await?;
        self.write(200, 7)?;
        ensure!(read("two", 200)? == 7, "a write was lost");
        Ok(())
    }

    /// As of a daemon that was killed between load and resume: what it would have put in is not put in by a move that is refused.
    async fn forgets_what_was_pending(&self) -> anyhow::Result<()> {
        let before = self.count().await?;
        self.write(201, 8)?;
        self.dm.load(NAME, SIZE, &self.one).await?;
        ensure!(self.dm.find(NAME).await?.is_some_and(|state| state.pending), "nothing is pending");
        ensure!(self.dm.swap_if_still(NAME, SIZE, &self.one, before).await?.is_none(), "it was moved over a write");
        self.is_over(self.two).await?;
        let count = self.count().await?;
        self.dm.load(NAME, SIZE, &self.two).await?;
        ensure!(self.dm.swap_if_still(NAME, SIZE, &self.one, count).await?.is_some(), "it was not moved");
        self.is_over(self.one).await
    }
}

/// The byte that a block of a zvol is full of; past what the kernel keeps of the zvol, which the device is written behind.
fn read(zvol: &str, block: u64) -> anyhow::Result<u8> {
    let path = Path::new("/dev/zvol/vmpool").join(zvol);
    let mut file = OpenOptions::new().read(true).custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed()).open(path)?;
    file.seek(SeekFrom::Start(block * BLOCK as u64))?;
    let mut room = vec![0; 2 * BLOCK];
    let at = room.as_ptr().align_offset(BLOCK);
    let found = &mut room[at..at + BLOCK];
    file.read_exact(found)?;
    ensure!(found.iter().all(|byte| *byte == found[0]), "block {block} of {zvol} is torn");
    Ok(found[0])
}
