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
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// A run that takes longer than this on the clock on the wall is lost in a loop.
const STUCK: Duration = Duration::from_secs(120);

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
        Fault::KillExport,
        Fault::FailJobs,
        Fault::Cut(4),
        Fault::Cut(70),
    ];
    if kernel {
        faults.push(Fault::RebootNases);
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
    // Planes differ in what is done, not in how it fails: of the kernel plane's many runs one in some is made each time.
    let every = if kernel { number("IMG_STORAGE_SIM_EVERY", 499).max(1) } else { 1 };
    let first = usize::try_from(clean.plan.seed).unwrap_or(0) % every;
    plans.into_iter().skip(first).step_by(every).collect()
}

/// Makes all the runs and tells how they went.
pub fn campaign() -> Tally {
    let seed = number("IMG_STORAGE_SIM_SEED", 1) as u64;
    let only = std::env::var("IMG_STORAGE_SIM_ONLY").ok();
    let mut tally = Tally::default();
    let mut plans = VecDeque::new();
    for (name, _) in SCENARIOS.iter().filter(|(n, _)| only.as_ref().is_none_or(|o| o == n)) {
        let clean = run(&Plan { scenario: (*name).to_owned(), trouble: Trouble::None, seed });
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
            let kernel = name.starts_with(KERNEL);
            let random = number("IMG_STORAGE_SIM_RANDOM", if kernel { 0 } else { 60 }) as u64;
            plans.extend((0..random).map(|n| Plan {
                scenario: (*name).to_owned(),
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
    tally.failures.extend(all(plans));
    tally
}

/// Makes runs on all processors; the ones that went wrong.
fn all(plans: VecDeque<Plan>) -> Vec<Outcome> {
    let total = plans.len();
    let (plans, failures, done) = (Mutex::new(plans), Mutex::new(Vec::new()), AtomicUsize::new(0));
    let most = number("IMG_STORAGE_SIM_FAILURES", 20);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let working: Vec<Mutex<Option<(Plan, Instant)>>> = (0..threads).map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for mine in &working {
            let (plans, failures, done) = (&plans, &failures, &done);
            scope.spawn(move || {
                while failures.lock().unwrap_or_else(PoisonError::into_inner).len() < most {
                    let Some(plan) = plans.lock().unwrap_or_else(PoisonError::into_inner).pop_front() else { break };
                    *mine.lock().unwrap_or_else(PoisonError::into_inner) = Some((plan.clone(), Instant::now()));
                    let outcome = run(&plan);
                    *mine.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    done.fetch_add(1, Ordering::Relaxed);
                    if !outcome.wrong.is_empty() {
                        println!("FAILED {}: {}", outcome.plan, outcome.wrong.first().map_or("", String::as_str));
                        failures.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                    }
                }
                *mine.lock().unwrap_or_else(PoisonError::into_inner) = None;
                done.fetch_add(total, Ordering::Relaxed);
            });
        }
        scope.spawn(|| {
            while done.load(Ordering::Relaxed) < total * threads {
                std::thread::sleep(Duration::from_millis(200));
                for worker in &working {
                    let busy = worker.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    if let Some((plan, since)) = busy
                        && since.elapsed() > STUCK
                    {
                        println!("{plan} does not get anywhere; {}", replay(&plan));
                        std::process::exit(1);
                    }
                }
            }
        });
    });
    failures.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// How to repeat a run.
pub fn replay(plan: &Plan) -> String {
    format!("IMG_STORAGE_SIM={plan} cargo test -p img-storage-tests --test simulation -- --nocapture")
}
