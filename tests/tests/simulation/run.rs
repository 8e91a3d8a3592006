//! One run: a plan played from beginning to end on its own runtime, and what came of it.

use super::{
    plan::{Plan, Trouble},
    scenario,
    site::Site,
};
use img_storage_host::sim::{Effect, Fault};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout};

/// Virtual time after which random troubles end.
const TROUBLED: Duration = Duration::from_secs(90);
/// Virtual time after which a run has failed.
const LONGEST: Duration = Duration::from_secs(4 * 3600);

/// What came of a run.
pub struct Outcome {
    /// The run.
    pub plan: Plan,
    /// Every verb that was begun.
    pub effects: Vec<Effect>,
    /// How many messages were sent.
    pub messages: usize,
    /// What was wrong; nothing when all was well.
    pub wrong: Vec<String>,
    /// What happened.
    pub trace: Vec<String>,
    /// How long a guest was held by a pivot at most.
    pub held: Duration,
    /// Virtual time it took.
    pub took: Duration,
}

/// Plays a plan.
///
/// # Panics
/// When the machine cannot give a runtime or a temporary directory.
pub fn run(plan: &Plan) -> Outcome {
    let shm = Path::new("/dev/shm");
    let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
    let dir = dir.expect("a temporary directory");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime");
    runtime.block_on(play(plan, dir.path()))
}

async fn play(plan: &Plan, dir: &Path) -> Outcome {
    let began = Instant::now();
    let (site, mut crashes) = match Site::new(plan, dir.to_owned()) {
        Ok(made) => made,
        Err(fault) => panic!("the site cannot be made: {fault}"),
    };
    let crashing = {
        let site = Arc::clone(&site);
        tokio::spawn(async move {
            while let Some(crash) = crashes.recv().await {
                let site = Arc::clone(&site);
                tokio::spawn(async move {
                    if crash.machine {
                        site.reboot(&crash.host).await;
                    } else {
                        site.restart(&crash.host).await;
                    }
                });
            }
        })
    };
    let troubling = (plan.trouble == Trouble::Random).then(|| tokio::spawn(trouble(Arc::clone(&site), plan.seed)));
    let played = timeout(LONGEST, scenario::play(&site, &plan.scenario, plan.seed)).await;
    let mut wrong = site.world.violations();
    match played {
        Ok(Ok(())) => {}
        Ok(Err(why)) => wrong.push(why),
        Err(_) => wrong.push(format!("it does not end within {} s", LONGEST.as_secs())),
    }
    wrong.extend(site.storm());
    crashing.abort();
    if let Some(task) = troubling {
        task.abort();
    }
    Outcome {
        plan: plan.clone(),
        effects: site.faults.effects(),
        messages: site.messages(),
        wrong,
        trace: site.world.trace(),
        held: site.world.longest_hold(),
        took: began.elapsed(),
    }
}

/// The faults of verbs of a random run.
fn random_fault(random: &mut StdRng) -> Fault {
    match random.random_range(0..10) {
        0 => Fault::ErrorBefore,
        1 => Fault::ErrorAfter,
        2 => Fault::ErrorMid(random.random_range(1..4)),
        3 => Fault::Hang,
        4 => Fault::HangAfter,
        5 => Fault::CrashBefore,
        6 | 7 => Fault::CrashMid(random.random_range(1..4)),
        8 => Fault::Blind(random.random_range(1..20)),
        _ => Fault::CrashAfter,
    }
}

/// Random troubles for a while, and then no more.
async fn trouble(site: Arc<Site>, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed ^ 0x7011);
    let began = Instant::now();
    let pace = random.random_range(300..8000);
    for _ in 0..random.random_range(1..6) {
        site.faults.plan(random.random_range(0..120), random_fault(&mut random));
    }
    while began.elapsed() < TROUBLED {
        sleep(Duration::from_millis(random.random_range(50..pace))).await;
        let node = site.nodes[random.random_range(0..site.nodes.len())].clone();
        let cut = Duration::from_millis(random.random_range(100..75_000));
        match random.random_range(0..12) {
            0 => site.world.kill_node_daemons(&node),
            1 => site.world.kill_exports(),
            2 | 3 => site.world.kill_incomings(),
            4 => {
                site.world.cut(&node, true);
                let world = site.world.clone();
                tokio::spawn(async move {
                    sleep(cut).await;
                    world.cut(&node, false);
                });
            }
            5 => site.restart(&node).await,
            6 => {
                let nas = site.nas.clone();
                site.restart(&nas).await;
            }
            7 => site.reboot(&node).await,
            8 => {
                let nas = site.nas.clone();
                site.reboot(&nas).await;
            }
            9 => {
                site.world.fill_disk(&node, true);
                let world = site.world.clone();
                tokio::spawn(async move {
                    sleep(cut).await;
                    world.fill_disk(&node, false);
                });
            }
            _ => {}
        }
    }
    site.quiet();
}
