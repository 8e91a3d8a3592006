//! The program itself, killed: its roles as processes of their own, each life of a volume from its creation to its end, and
//! `kill -9` at seeded moments in every part of it, while a guest writes and verifies.
//!
//! [`plan`] says what a life is and when who is killed; [`site`] has the processes; [`life`] lives it and checks that nothing is
//! lost, that the NAS's copy is a point in time, that what was asked for is reached, and that nothing is left over.
//!
//! A life follows from its seed, as far as the machine's timing allows. `IMG_STORAGE_CRASH_SEED` repeats one life,
//! `IMG_STORAGE_CRASH_LIVES` says how many there are, `IMG_STORAGE_CRASH_FIRST` the first seed, `IMG_STORAGE_CRASH_JOBS` how many
//! at once. The logs of a life that went wrong are kept below cargo's target directory.

mod life;
mod plan;
mod site;

use life::{Account, Life};
use plan::Plan;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::JoinSet,
};

/// How many lives there are, and how many of them at once: two cores do that in less than three minutes.
const LIVES: u64 = 20;
const QUICK: u64 = 6;
const JOBS: usize = 4;
/// The most one life may take.
const LIFE: Duration = Duration::from_secs(300);

fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

struct Failure {
    seed: u64,
    why: String,
}

/// Lives one life; its directory and every process in it are gone afterwards.
async fn live(seed: u64) -> Result<Account, Failure> {
    let plan = Plan::of(seed);
    let shown = plan.to_string();
    let mut life = Life::begin(plan).map_err(|why| Failure { seed, why: format!("{why:#}") })?;
    let lived = tokio::time::timeout(LIFE, life.live()).await;
    let why = match lived {
        Ok(Ok(())) => return Ok(life.account()),
        Ok(Err(why)) => format!("{why:#}"),
        Err(_) => format!("not over after {LIFE:?}"),
    };
    let logs = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("crash-{seed}"));
    let kept = life.keep_logs(&logs).map_or_else(|e| format!("the logs are lost: {e}"), |()| format!("logs: {}", logs.display()));
    Err(Failure { seed, why: format!("{shown}\n{}\n    {why}\n    {kept}", life.story()) })
}

async fn campaign(seeds: Vec<u64>, jobs: usize) -> (Vec<Account>, Vec<Failure>) {
    let mut ahead = seeds.into_iter();
    let mut lives = JoinSet::new();
    let (mut accounts, mut failures) = (Vec::new(), Vec::new());
    loop {
        while lives.len() < jobs
            && let Some(seed) = ahead.next()
        {
            lives.spawn(live(seed));
        }
        let Some(done) = lives.join_next().await else { return (accounts, failures) };
        match done {
            Ok(Ok(account)) => {
                println!("{account}");
                accounts.push(account);
            }
            Ok(Err(failure)) => {
                println!("life {} FAILED: {}", failure.seed, failure.why);
                failures.push(failure);
            }
            Err(panic) => failures.push(Failure { seed: 0, why: panic.to_string() }),
        }
    }
}

/// Ends with the process's own cleaning up, not at once, when somebody loses patience.
async fn interrupted() {
    let (Ok(mut int), Ok(mut term)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) else {
        return std::future::pending().await;
    };
    tokio::select! { _ = int.recv() => {}, _ = term.recv() => {} }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_whoever_is_killed() {
    let begun = Instant::now();
    let seeds: Vec<u64> = match number("IMG_STORAGE_CRASH_SEED") {
        Some(seed) => vec![seed],
        None => {
            let first = number("IMG_STORAGE_CRASH_FIRST").unwrap_or(1);
            let quick = std::env::var_os("IMG_STORAGE_QUICK").is_some();
            let default = if quick { QUICK } else { LIVES };
            (first..first + number("IMG_STORAGE_CRASH_LIVES").unwrap_or(default)).collect()
        }
    };
    if let [seed] = seeds[..] {
        println!("{}", Plan::of(seed));
    }
    let count = seeds.len();
    let jobs = number("IMG_STORAGE_CRASH_JOBS").unwrap_or(JOBS).max(1);
    let limit = LIFE * u32::try_from(count.div_ceil(jobs)).unwrap_or(u32::MAX);
    let (accounts, failures) = tokio::select! {
        done = campaign(seeds, jobs) => done,
        () = tokio::time::sleep(limit) => panic!("not over after {limit:?}"),
        () = interrupted() => panic!("interrupted"),
    };
    let mut kills: BTreeMap<String, u32> = BTreeMap::new();
    let (mut crashes, mut missed) = (0, Vec::new());
    for account in &accounts {
        crashes += account.hit.len();
        for (_, victims) in &account.hit {
            *kills.entry(victims.clone()).or_default() += 1;
        }
        missed.extend(account.missed.iter().map(|moment| format!("{}: {moment}", account.seed)));
    }
    println!("{count} lives in {} s, {crashes} crashes: {kills:?}", begun.elapsed().as_secs());
    if !missed.is_empty() {
        println!("moments that did not come: {}", missed.join(", "));
    }
    for failure in &failures {
        println!("\nlife {}: {}", failure.seed, failure.why);
        println!("    IMG_STORAGE_CRASH_SEED={} cargo test -p img-storage-tests --test crash -- --nocapture", failure.seed);
    }
    assert!(failures.is_empty(), "{} of {count} lives went wrong", failures.len());
}
