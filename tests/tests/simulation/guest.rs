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

/// For how long troubles may keep a device from answering; they are over long before.
const PATIENCE: Duration = Duration::from_secs(1200);

/// What a guest is told, and has to tell.
#[derive(Default)]
struct Mood {
    stop: AtomicBool,
    idle: AtomicBool,
    calm: AtomicU64,
    /// How many of its requests were done.
    answered: AtomicU64,
}

/// A running guest. It writes fast for a while after each [`Guest::excite`], and slowly later.
pub struct Guest {
    world: World,
    node: HostName,
    volume: VolumeId,
    mood: Arc<Mood>,
    task: JoinHandle<()>,
}

impl Guest {
    /// Starts it on a node.
    pub fn start(world: &World, node: &HostName, volume: VolumeId, blocks: usize, seed: u64) -> Self {
        let mood = Arc::new(Mood::default());
        let work = live(world.clone(), node.clone(), volume, blocks, StdRng::seed_from_u64(seed), Arc::clone(&mood));
        let task = tokio::spawn(work);
        Guest { world: world.clone(), node: node.clone(), volume, mood, task }
    }

    /// From now on it only keeps its device, or works again.
    pub fn idle(&self, idle: bool) {
        self.mood.idle.store(idle, Ordering::Relaxed);
    }

    /// Something is about to happen.
    pub fn excite(&self) {
        self.mood.calm.store(0, Ordering::Relaxed);
    }

    /// Its device does what it asks for, at last: two requests, as the first may have been under way.
    pub async fn is_answered(&self) -> Result<(), String> {
        let before = self.mood.answered.load(Ordering::Relaxed);
        for _ in 0..PATIENCE.as_secs() * 20 {
            if self.mood.idle.load(Ordering::Relaxed) || self.mood.answered.load(Ordering::Relaxed) >= before + 2 {
                return Ok(());
            }
            sleep(Duration::from_millis(50)).await;
        }
        Err(format!("the guest's device on {} answers nothing for {} s", self.node, PATIENCE.as_secs()))
    }

    /// Shuts it down: it ends what it is doing and lets go of its device.
    pub async fn stop(mut self) {
        self.mood.stop.store(true, Ordering::Relaxed);
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

async fn live(world: World, node: HostName, volume: VolumeId, blocks: usize, mut random: StdRng, mood: Arc<Mood>) {
    let mut connected = None;
    while !mood.stop.load(Ordering::Relaxed) {
        if connected.is_none() {
            connected = world.guest_connect(&node, volume);
            if connected.is_none() {
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        }
        if mood.idle.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(2)).await;
            continue;
        }
        let block = random.random_range(0..blocks);
        let result = if random.random_bool(0.8) {
            world.guest_write(&node, volume, block).await
        } else {
            world.guest_read(&node, volume, block).await
        };
        match result {
            Ok(_) => {
                mood.answered.fetch_add(1, Ordering::Relaxed);
            }
            Err(GuestError::Gone) => connected = None,
            Err(GuestError::Io) => {}
        }
        let calm = mood.calm.fetch_add(1, Ordering::Relaxed);
        sleep(Duration::from_micros(random.random_range(2000..8000) + (calm * 100).min(400_000))).await;
    }
}
