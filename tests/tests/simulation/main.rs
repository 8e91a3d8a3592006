//! The guarantees, under every single fault and many at once: the real daemons on simulated hosts and a simulated bus, in
//! virtual time, with faults wherever one can be.
//!
//! [`site`] starts and restarts the daemons and asks them things; [`guest`] writes and verifies all the while; [`act`] is what an
//! operator can do with a volume, [`scenario`] in which order; [`plan`] says what goes wrong in one run, [`mail`] what becomes of its messages; [`campaign`] makes all the runs. A run depends on its plan alone: the
//! same plan gives the same trace.
//!
//! `IMG_STORAGE_SIM=SCENARIO:EFFECT:FAULT[:SEED]` repeats one run with its trace; `IMG_STORAGE_SIM_ONLY` picks a scenario,
//! `IMG_STORAGE_SIM_SEED` another seed, `IMG_STORAGE_SIM_RANDOM` the number of random runs per scenario; with
//! `IMG_STORAGE_SIM_SINGLES=0` there are only those. On the kernel plane one in seven of the runs with a single fault is made, by
//! the seed; with `IMG_STORAGE_SIM_EVERY=1` all.

mod act;
mod attributes;
mod backup;
mod campaign;
mod guest;
mod kernel;
mod mail;
mod plan;
mod run;
mod scenario;
mod site;

use campaign::{campaign, replay};
use plan::Plan;
use run::run;

#[test]
fn the_guarantees_hold_whatever_fails() {
    if let Ok(text) = std::env::var("IMG_STORAGE_SIM") {
        let plan: Plan = text.parse().expect("a plan");
        let outcome = run(&plan);
        println!("{}", outcome.trace.join("\n"));
        println!("{} effects, {} messages, {:?}", outcome.effects.len(), outcome.messages, outcome.took);
        assert!(outcome.wrong.is_empty(), "{plan}: {:#?}", outcome.wrong);
        return;
    }
    let began = std::time::Instant::now();
    let tally = campaign();
    println!(
        "{} runs in {} s: {} with a fault in a verb, {} with a mishap of a message, {} random; guests held {} ms at most without troubles",
        tally.runs,
        began.elapsed().as_secs(),
        tally.effects,
        tally.messages,
        tally.random,
        tally.held.as_millis()
    );
    for failure in tally.failures.iter().take(2) {
        println!("\n=== {}: {:#?}", failure.plan, failure.wrong);
        let from = failure.trace.len().saturating_sub(120);
        println!("{}", failure.trace[from..].join("\n"));
    }
    for failure in &tally.failures {
        println!("{}\n    {}", failure.wrong.first().map_or("", String::as_str), replay(&failure.plan));
    }
    assert!(tally.failures.is_empty(), "{} of {} runs went wrong", tally.failures.len(), tally.runs);
}

#[test]
fn a_run_depends_on_its_plan_alone() {
    let plan: Plan = "turn:-:random:4".parse().expect("a plan");
    let (first, second) = (run(&plan), run(&plan));
    let differ = first.trace.iter().zip(&second.trace).find(|(a, b)| a != b);
    assert!(differ.is_none() && first.trace.len() == second.trace.len(), "{differ:?}");
}
