//! The kernel's own storage, in virtual machines: three guests start once, and the scenarios run in them one after another.
//!
//! Only with `IMG_STORAGE_LAB=1`, as `cargo xtask test` and `cargo xtask lab run` set it: guests take minutes, memory and root, and
//! nobody who types `cargo test` asked for them. Without it every scenario is reported as ignored, none as passed.

mod bus;
mod cluster;
mod left;
mod link;
mod power;
mod scenario;
mod swaps;
mod tools;

use anyhow::Context as _;
use img_storage_tests::{
    lab::{self, Lab, Options},
    service,
};
use scenario::Scenario;
use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

/// What the machines are started for.
const SCENARIOS: &[Scenario] = &[
    scenario::of("the_tools_work", 600, |lab| Box::pin(tools::the_tools_work(lab))),
    scenario::of("a_power_cut_loses_what_was_not_flushed", 600, |lab| Box::pin(power::what_was_not_flushed_is_lost(lab))),
    scenario::of("a_link_goes_and_comes", 300, |lab| Box::pin(link::goes_and_comes(lab))),
    scenario::of("the_broker_serves_the_guests", 600, |lab| Box::pin(bus::the_broker_serves_the_guests(lab))),
    scenario::of("a_swap_keeps_its_word", 300, |lab| Box::pin(swaps::a_swap_keeps_its_word(lab))),
    scenario::of("a_volume_lives", 1200, |lab| Box::pin(cluster::a_volume_lives(lab))),
    scenario::of("every_phase_has_its_accident", 1200, |lab| Box::pin(cluster::every_phase_has_its_accident(lab))),
    scenario::of("an_old_session_is_locked_out", 1200, |lab| Box::pin(cluster::an_old_session_is_locked_out(lab))),
    scenario::of("an_old_ledger_destroys_nothing", 1200, |lab| Box::pin(cluster::an_old_ledger_destroys_nothing(lab))),
    scenario::of("hands_meddle", 1200, |lab| Box::pin(cluster::hands_meddle(lab))),
    scenario::of("machines_lose_power", 1200, |lab| Box::pin(cluster::machines_lose_power(lab))),
    scenario::of("both_planes_and_minutes_without_network", 1200, |lab| {
        Box::pin(cluster::both_planes_and_minutes_without_network(lab))
    }),
    scenario::of("copies_are_cut_and_cancelled", 1200, |lab| Box::pin(cluster::copies_are_cut_and_cancelled(lab))),
    scenario::of("a_nas_is_rebooted_under_its_guests", 1200, |lab| Box::pin(cluster::a_nas_is_rebooted_under_its_guests(lab))),
    scenario::of("the_doctor_names_the_culprit", 1200, |lab| Box::pin(cluster::the_doctor_names_the_culprit(lab))),
    scenario::of("a_killed_owner_leaves_nothing", 300, |_| Box::pin(left::a_killed_owner_leaves_nothing())),
    scenario::of("nothing_is_left_in_the_guests", 60, |lab| Box::pin(left::nothing_is_left_in_the_guests(lab))),
];

fn main() -> ExitCode {
    if let Some(dir) = std::env::var_os(left::OWNER) {
        return left::own(Path::new(&dir));
    }
    if std::env::var_os(swaps::INSIDE).is_some() {
        return swaps::inside();
    }
    let words: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let exact = words.iter().any(|word| word == "--exact");
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|f| if exact { name == *f } else { name.contains(*f) });
    let chosen: Vec<&Scenario> = SCENARIOS.iter().filter(|scenario| wanted(scenario.name)).collect();
    if words.iter().any(|word| word == "--list") {
        for scenario in &chosen {
            println!("{}: test", scenario.name);
        }
        return ExitCode::SUCCESS;
    }
    println!("\nrunning {} tests", chosen.len());
    if std::env::var_os("IMG_STORAGE_LAB").is_none_or(|value| value != "1") {
        for scenario in &chosen {
            println!("test {} ... ignored, needs virtual machines: cargo xtask lab run", scenario.name);
        }
        println!("\ntest result: ok. 0 passed; 0 failed; {} ignored; 0 measured; 0 filtered out\n", chosen.len());
        return ExitCode::SUCCESS;
    }
    let failed = if chosen.is_empty() { 0 } else { run(&chosen) };
    let (passed, out) = (chosen.len() - failed, SCENARIOS.len() - chosen.len());
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored; 0 measured; {out} filtered out\n");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs them all; how many failed.
fn run(chosen: &[&Scenario]) -> usize {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            println!("there is no runtime: {error}");
            return chosen.len();
        }
    };
    runtime.block_on(async {
        let begun = Instant::now();
        let lab = match up().await {
            Ok(lab) => lab,
            Err(error) => {
                println!("the virtual machines do not start: {error:#}");
                return chosen.len();
            }
        };
        println!("the machines run after {:.1} s, {}", begun.elapsed().as_secs_f64(), lab.accelerator());
        let mut failed = 0;
        for scenario in chosen {
            failed += usize::from(!scenario.run(&lab).await);
        }
        let begun = Instant::now();
        if std::env::var_os(HERE).is_some() {
            return failed;
        }
        if let Err(error) = lab.down() {
            println!("the machines do not end: {error:#}");
            return chosen.len();
        }
        println!("the machines are gone after {:.1} s", begun.elapsed().as_secs_f64());
        failed
    })
}

/// Names the directory of a lab that is up, to run in that one and leave it; `cargo xtask lab run --here` sets it.
const HERE: &str = "IMG_STORAGE_LAB_DIR";

async fn up() -> anyhow::Result<Lab> {
    if let Some(dir) = std::env::var_os(HERE) {
        return Lab::attach(Path::new(&dir));
    }
    lab::possible()?;
    let options = Options { program: Some(service::program()?), logs: logs(), stay: false };
    tokio::time::timeout(Duration::from_secs(25 * 60), Lab::up(&options)).await.context("it takes too long")?
}

/// Where this run writes. Another one in this checkout has its own place, since how far a guest is, is read from its console; what is found of runs
/// that are over goes.
fn logs() -> PathBuf {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/scenarios");
    for entry in fs::read_dir(&all).into_iter().flatten().flatten() {
        if !Path::new("/proc").join(entry.file_name()).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    all.join(std::process::id().to_string())
}
