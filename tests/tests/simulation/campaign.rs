//! All the runs: every effect of every scenario with every fault, every message with every mishap, and random ones.

use super::{
    plan::{Mishap, Plan, Trouble},
    run::{Outcome, run},
    scenario::SCENARIOS,
    site::KERNEL,
};
use img_storage_host::sim::{Effect, Fault};
use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// A run that takes longer than this on the clock on the wall is lost in a loop.
const STUCK: Duration = Duration::from_secs(120);

/// Steps of the kernel plane that are no program's: the kernel answers for them, or a task of the daemon.
const OWN: [&str; 6] = ["FlushRemote", "SyncZvol", "Send", "Receive", "SetSpeed", "EndStream"];

/// What the runs came to.
#[derive(Default)]
pub struct Tally {
    /// How many runs.
    pub runs: usize,
    /// How many of them had a fault in a verb.
    pub effects: usize,
    /// How many of them had a mishap of a message.
    pub messages: usize,
    /// How many of them were random.
    pub random: usize,
    /// The runs that went wrong.
    pub failures: Vec<Outcome>,
    /// The longest hold of a guest in a run without troubles.
    pub held: Duration,
}

/// A number from the environment.
fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

fn faults(effect: &Effect, kernel: bool) -> Vec<Fault> {
    let mut faults = vec![
        Fault::ErrorBefore,
        Fault::ErrorAfter,
        Fault::Hang,
        Fault::HangAfter,
        Fault::CrashBefore,
        Fault::CrashAfter,
        Fault::Blind(7),
        if kernel { Fault::RebootNodes } else { Fault::KillNode },
        Fault::LoseExport,
        Fault::KillExport,
        Fault::FailJobs,
        Fault::Cut(4),
        Fault::Cut(70),
    ];
    if kernel {
        faults.push(Fault::RebootNases);
        if !OWN.iter().any(|own| effect.step.starts_with(own)) {
            faults.push(Fault::Lie);
        }
    }
    for parts in 1..effect.parts {
        faults.extend([Fault::ErrorMid(parts), Fault::CrashMid(parts)]);
    }
    if !kernel && (effect.step.contains("Incoming") || effect.step.contains("Push")) {
        faults.push(Fault::KillIncoming);
    }
    faults
}

/// Every run of a scenario with one thing going wrong, by the scenario's clean run.
fn singles(clean: &Outcome) -> Vec<Plan> {
    let plan = |trouble| Plan { scenario: clean.plan.scenario.clone(), trouble, seed: clean.plan.seed };
    let kernel = clean.plan.scenario.starts_with(KERNEL);
    let mut plans = Vec::new();
    for (number, effect) in clean.effects.iter().enumerate() {
        plans.extend(faults(effect, kernel).into_iter().map(|fault| plan(Trouble::Effect(number, fault))));
    }
    for number in 0..clean.messages {
        for mishap in [Mishap::Double, Mishap::Lost, Mishap::Late(2500)] {
            plans.push(plan(Trouble::Message(number, mishap)));
        }
    }
    // Of the kernel plane's many runs one in some is made each time, other ones by every seed.
    let every = if kernel { number("IMG_STORAGE_SIM_EVERY", 7).max(1) } else { 1 };
    let first = usize::try_from(clean.plan.seed).unwrap_or(0) % every;
    plans.into_iter().skip(first).step_by(every).collect()
}

/// Makes all the runs and tells how they went.
pub fn campaign() -> Tally {
    let seed = number("IMG_STORAGE_SIM_SEED", 1) as u64;
    let only = std::env::var("IMG_STORAGE_SIM_ONLY").ok();
    let mut tally = Tally::default();
    let mut plans = Vec::new();
    let wanted = SCENARIOS.iter().filter(|(n, _)| only.as_ref().is_none_or(|o| o == n));
    let clean = wanted.map(|(name, _)| Plan { scenario: (*name).to_owned(), trouble: Trouble::None, seed }).collect();
    for clean in all(clean, |_| true) {
        let name = clean.plan.scenario.clone();
        println!(
            "{name}: {} effects, {} messages, {} s of virtual time, guests held {} ms at most",
            clean.effects.len(),
            clean.messages,
            clean.took.as_secs(),
            clean.held.as_millis()
        );
        tally.held = tally.held.max(clean.held);
        tally.runs += 1;
        if clean.wrong.is_empty() {
            if number("IMG_STORAGE_SIM_SINGLES", 1) > 0 {
                plans.extend(singles(&clean));
            }
            let random = number("IMG_STORAGE_SIM_RANDOM", if name.starts_with(KERNEL) { 25 } else { 60 }) as u64;
            plans.extend((0..random).map(|n| Plan {
                scenario: name.clone(),
                trouble: Trouble::Random,
                seed: seed * 100_000 + n,
            }));
        } else {
            tally.failures.push(clean);
        }
    }
    for plan in &plans {
        match plan.trouble {
            Trouble::None => {}
            Trouble::Effect(..) => tally.effects += 1,
            Trouble::Message(..) => tally.messages += 1,
            Trouble::Random => tally.random += 1,
        }
    }
    tally.runs += plans.len();
    tally.failures.extend(all(plans, |outcome| !outcome.wrong.is_empty()));
    tally
}

/// Makes runs on all processors; the ones to keep, in the order of the plans. Ends early when too many went wrong, and
/// ends the program when one of them does not end.
fn all(plans: Vec<Plan>, keep: fn(&Outcome) -> bool) -> Vec<Outcome> {
    let most = number("IMG_STORAGE_SIM_FAILURES", 20);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let plans = Mutex::new(plans.into_iter().enumerate().collect::<VecDeque<_>>());
    let (kept, wrong, working) = (Mutex::new(Vec::new()), AtomicUsize::new(0), AtomicUsize::new(threads));
    let busy: Vec<Mutex<Option<(Plan, Instant)>>> = (0..threads).map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for mine in &busy {
            let (plans, kept, wrong, working) = (&plans, &kept, &wrong, &working);
            scope.spawn(move || {
                while wrong.load(Ordering::Relaxed) < most {
                    let Some((place, plan)) = locked(plans).pop_front() else { break };
                    *locked(mine) = Some((plan.clone(), Instant::now()));
                    let outcome = run(&plan);
                    *locked(mine) = None;
                    if let Some(first) = outcome.wrong.first() {
                        println!("FAILED {}: {first}", outcome.plan);
                        wrong.fetch_add(1, Ordering::Relaxed);
                    }
                    if keep(&outcome) {
                        locked(kept).push((place, outcome));
                    }
                }
                working.fetch_sub(1, Ordering::Relaxed);
            });
        }
        scope.spawn(|| {
            while working.load(Ordering::Relaxed) > 0 {
                std::thread::sleep(Duration::from_millis(20));
                for worker in &busy {
                    if let Some((plan, since)) = &*locked(worker)
                        && since.elapsed() > STUCK
                    {
                        println!("{plan} does not get anywhere; {}", replay(plan));
                        std::process::exit(1);
                    }
                }
            }
        });
    });
    let mut kept = kept.into_inner().unwrap_or_else(PoisonError::into_inner);
    kept.sort_by_key(|(place, _)| *place);
    kept.into_iter().map(|(_, outcome)| outcome).collect()
}

fn locked<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How to repeat a run.
pub fn replay(plan: &Plan) -> String {
    format!("IMG_STORAGE_SIM={plan} cargo test -p img-storage-tests --test simulation -- --nocapture")
}
