//! A guest: writes and reads all the time, and comes back when its device does.

use img_storage_host::sim::{GuestError, World};
use img_storage_model::{HostName, VolumeId};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{task::JoinHandle, time::sleep};

/// A running guest. It writes fast for a while after each [`Guest::excite`], and slowly later.
pub struct Guest {
    world: World,
    node: HostName,
    volume: VolumeId,
    stop: Arc<AtomicBool>,
    calm: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Guest {
    /// Starts it on a node.
    pub fn start(world: &World, node: &HostName, volume: VolumeId, blocks: usize, seed: u64) -> Self {
        let (stop, calm) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let work =
            live(world.clone(), node.clone(), volume, blocks, StdRng::seed_from_u64(seed), Arc::clone(&stop), Arc::clone(&calm));
        let task = tokio::spawn(work);
        Guest { world: world.clone(), node: node.clone(), volume, stop, calm, task }
    }

    /// Something is about to happen.
    pub fn excite(&self) {
        self.calm.store(0, Ordering::Relaxed);
    }

    /// Shuts it down: it ends what it is doing and lets go of its device.
    pub async fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = (&mut self.task).await;
        self.world.guest_disconnect(&self.node, self.volume);
        self.world.note(format!("the guest on {} is off", self.node));
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[allow(clippy::too_many_arguments, reason = "the parts of one guest")]
async fn live(
    world: World,
    node: HostName,
    volume: VolumeId,
    blocks: usize,
    mut random: StdRng,
    stop: Arc<AtomicBool>,
    calm: Arc<AtomicU64>,
) {
    let mut connected = None;
    while !stop.load(Ordering::Relaxed) {
        if connected.is_none() {
            connected = world.guest_connect(&node, volume);
            if connected.is_none() {
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        }
        let block = random.random_range(0..blocks);
        let result = if random.random_bool(0.8) {
            world.guest_write(&node, volume, block).await
        } else {
            world.guest_read(&node, volume, block).await
        };
        if result == Err(GuestError::Gone) {
            connected = None;
        }
        let calm = calm.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_micros(random.random_range(2000..8000) + (calm * 100).min(400_000))).await;
    }
}
