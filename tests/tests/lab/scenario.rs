//! What all scenarios have: a name, a limit, a clean start, and what is shown when one goes wrong.

use anyhow::Context as _;
use img_storage_tests::lab::{Guest, Lab};
use std::{
    future::Future,
    pin::Pin,
    time::{Duration, Instant},
};

type Work = for<'a> fn(&'a Lab) -> Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

/// One scenario.
pub struct Scenario {
    pub name: &'static str,
    limit: Duration,
    work: Work,
}

/// A scenario that may take so many seconds.
pub const fn of(name: &'static str, seconds: u64, work: Work) -> Scenario {
    Scenario { name, limit: Duration::from_secs(seconds), work }
}

impl Scenario {
    /// Runs it in guests that it finds clean, and says how it went.
    pub async fn run(&self, lab: &Lab) -> bool {
        println!("test {} ...", self.name);
        let begun = Instant::now();
        let whole = async {
            clean(lab).await.context("clearing away what an earlier scenario left")?;
            (self.work)(lab).await
        };
        let done = tokio::time::timeout(self.limit, whole).await;
        let done =
            done.unwrap_or_else(|_| Err(anyhow::anyhow!("it takes longer than {} s and is given up", self.limit.as_secs())));
        let took = begun.elapsed().as_secs_f64();
        match done {
            Ok(()) => {
                println!("test {} ... ok ({took:.1} s)", self.name);
                true
            }
            Err(error) => {
                println!("test {} ... FAILED ({took:.1} s)\n{error:#}", self.name);
                for guest in lab.guests() {
                    keep_logs(guest, self.name).await;
                    println!("--- the end of {}, as in {}\n{}", guest.name(), guest.console().display(), guest.console_end());
                }
                false
            }
        }
    }
}

/// Puts what the daemons of a guest said beside its console.
async fn keep_logs(guest: &Guest, scenario: &str) {
    let said = match guest.run("tail -n +1 /run/lab/*.all /run/lab/*.log").await {
        Ok(said) => said.stdout,
        Err(why) => format!("{why:#}"),
    };
    let path = guest.console().with_file_name(format!("{scenario}.{}.log", guest.name()));
    match std::fs::write(&path, said) {
        Ok(()) => println!("--- what ran on {} said: {}", guest.name(), path.display()),
        Err(why) => println!("--- {} cannot be written: {why}", path.display()),
    }
}

/// Every guest is on and linked, with nothing exported, nothing logged in, no device and no pool.
async fn clean(lab: &Lab) -> anyhow::Result<()> {
    for guest in lab.guests() {
        if !guest.runs().await {
            guest.start().await?;
        }
        guest.ssh().open(lab.namespace()).await?;
        guest.link(true).await?;
    }
    // The nodes first: a target whose sessions are gone is easily taken down.
    for guest in lab.guests().iter().rev() {
        guest.check("/opt/lab/clean").await?;
    }
    Ok(())
}
