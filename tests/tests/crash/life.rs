//! One life of a volume: what an operator asks for, part by part, who is killed meanwhile, and what must hold afterwards.

mod checks;

use crate::{
    plan::{Crash, Part, Plan, Victim},
    site::{Asked, Ear, NODES, Site, VOLUME},
};
use anyhow::{Context as _, bail, ensure};
use img_storage_model::{
    Extent,
    api::{Phase, VolumeView},
};
use img_storage_tests::writer::{Trouble, Writer};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use std::{
    fmt,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;

const SIZE: u64 = 64 << 20;
const BLOCK: u32 = 4096;
/// Where the guest writes; the rest must stay as it was.
const AREAS: [Extent; 3] = [
    Extent { offset: 0, length: 8 << 20 },
    Extent { offset: 31 << 20, length: 6 << 20 },
    Extent { offset: 58 << 20, length: 6 << 20 },
];
/// How long everything may take to be as it was asked, from the restart of the last daemon on. When the NAS's storage daemon
/// dies at the pivot, the node's closes its connection to it only after the minute that it waits for a NAS.
const CONVERGE: Duration = Duration::from_secs(90);
/// How long a moment is waited for, and how long when what was asked is done.
const MOMENT: Duration = Duration::from_secs(70);
const MOMENT_AFTER: Duration = Duration::from_millis(1500);

/// What a life came to.
#[derive(Clone, Debug, Default)]
pub struct Account {
    pub seed: u64,
    /// Moments that came, and who was killed.
    pub hit: Vec<(String, String)>,
    pub missed: Vec<String>,
    pub took: Duration,
    /// The longest it took to come right again.
    pub longest: Duration,
    pub writes: u64,
    pub reads: u64,
    /// How often the NAS's copy was looked at.
    pub looks: u32,
    /// Errors that the guest got where it may.
    pub refused: u64,
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "life {}: {} crashes in {:.1} s, right again after {:.1} s at most; {} writes, {} reads, the NAS's copy looked at {} times",
            self.seed,
            self.hit.len(),
            self.took.as_secs_f64(),
            self.longest.as_secs_f64(),
            self.writes,
            self.reads,
            self.looks
        )?;
        if self.refused > 0 {
            write!(f, "; the guest got {} errors", self.refused)?;
        }
        Ok(())
    }
}

/// Where a part is to lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Phase(Phase),
    /// In this phase, and the command must have succeeded.
    Answered(Phase),
    Gone,
}

/// A life being lived.
pub struct Life {
    plan: Plan,
    site: Site,
    rng: StdRng,
    writer: Arc<Writer>,
    load: Option<JoinHandle<Result<(), Trouble>>>,
    /// What the volume was before anybody wrote.
    base: PathBuf,
    /// The node it is on now.
    node: usize,
    errors_allowed: bool,
    id: String,
    begun: Instant,
    story: Vec<String>,
    account: Account,
}

impl Life {
    /// Starts the processes.
    pub fn begin(plan: Plan) -> anyhow::Result<Self> {
        let seed = plan.seed;
        let site = Site::start(seed)?;
        let base = site.scratch().join("base.raw");
        Ok(Life {
            rng: StdRng::seed_from_u64(!seed),
            writer: Writer::new(seed, BLOCK, &AREAS),
            account: Account { seed, ..Account::default() },
            plan,
            site,
            load: None,
            base,
            node: 0,
            errors_allowed: false,
            id: String::new(),
            begun: Instant::now(),
            story: Vec::new(),
        })
    }

    pub fn account(&self) -> Account {
        let figures = self.writer.figures();
        Account { took: self.begun.elapsed(), writes: figures.writes, reads: figures.reads, ..self.account.clone() }
    }

    /// What happened, a line each.
    pub fn story(&self) -> String {
        self.story.join("\n")
    }

    pub fn keep_logs(&self, to: &Path) -> anyhow::Result<()> {
        self.site.keep_logs(to)
    }

    fn tell(&mut self, what: impl fmt::Display) {
        let line = format!("    {:.3} +{:.2} s: {what}", jiff::Timestamp::now(), self.begun.elapsed().as_secs_f64());
        if self
            .story
            .last()
            .is_none_or(|last| last.split_once(" s: ").map(|(_, told)| told) != line.split_once(" s: ").map(|(_, t)| t))
        {
            self.story.push(line);
        }
    }

    /// From the creation to the end.
    pub async fn live(&mut self) -> anyhow::Result<()> {
        self.site.ready().await?;
        for (part, crash) in self.plan.parts.clone() {
            self.tell(format!("{part:?}"));
            self.part(part, crash.as_ref()).await.with_context(|| format!("{part:?}"))?;
        }
        Ok(())
    }

    async fn part(&mut self, part: Part, crash: Option<&Crash>) -> anyhow::Result<()> {
        match part {
            Part::Create => {
                File::create(&self.base)?.set_len(SIZE)?;
                self.go(&["create", VOLUME, "--size", "64M"], Goal::Phase(Phase::Unmapped), crash).await?;
                self.compare_with_base()
            }
            Part::Import => {
                self.make_image()?;
                let image = self.base.to_string_lossy().into_owned();
                self.go(&["create", VOLUME, "--from", &image], Goal::Phase(Phase::Unmapped), crash).await?;
                self.compare_with_base()
            }
            Part::Attach => {
                self.go(&["map", VOLUME, NODES[0]], Goal::Phase(Phase::Remote), crash).await?;
                self.check_device().await?;
                self.guest_on().await
            }
            Part::Remote => self.go(&[], Goal::Phase(Phase::Remote), crash).await.map(drop),
            Part::Copy => {
                self.go(&["map", VOLUME, NODES[0], "--sync"], Goal::Phase(Phase::Local), crash).await?;
                self.look_at_nas(0).await
            }
            Part::WriteBack => {
                let before = self.writer.now();
                self.go(&["sync", VOLUME], Goal::Answered(Phase::Local), crash).await?;
                self.look_at_nas(before).await?;
                // And at any time of the write-backs that go on.
                let later = self.rng.random_range(0..1500);
                tokio::time::sleep(Duration::from_millis(later)).await;
                self.look_at_nas(before).await
            }
            Part::BringBack => {
                // Between the pivot and its move to a connection that waits, the guest is on one that does not.
                self.errors_allowed = crash.is_some_and(|crash| crash.victims.contains(&Victim::NasQsd));
                self.go(&["bring-back", VOLUME], Goal::Phase(Phase::Remote), crash).await?;
                self.errors_allowed = false;
                self.tidied("what was for the way back is gone", |life| Ok(life.strangers())).await?;
                self.guest_off().await?;
                self.check_device().await?;
                self.guest_on().await
            }
            Part::Return | Part::Leave => {
                self.guest_off().await?;
                self.check_device().await?;
                self.unmap(crash).await
            }
            Part::Elsewhere => {
                self.node = 1;
                self.go(&["map", VOLUME, NODES[1]], Goal::Phase(Phase::Remote), crash).await?;
                self.check_device().await?;
                self.unmap(None).await
            }
            Part::Delete => {
                self.go(&["delete", VOLUME, "--yes"], Goal::Gone, crash).await?;
                self.tidied("nothing is left", |life| {
                    let mut left = life.site.all_storage_daemons()?;
                    left.extend(life.strangers());
                    Ok(left)
                })
                .await
            }
        }
    }

    async fn unmap(&mut self, crash: Option<&Crash>) -> anyhow::Result<()> {
        let all = self.writer.now();
        self.go(&["unmap", VOLUME], Goal::Phase(Phase::Unmapped), crash).await?;
        self.tidied("nothing runs and nothing is left on the node", |life| {
            let mut left = life.site.all_storage_daemons()?;
            left.extend(life.strangers());
            Ok(left)
        })
        .await?;
        let disk = File::open(self.site.home().join("disk.raw"))?;
        let cut = self.writer.cut(&disk)??;
        ensure!(cut.has_all_before(all), "the NAS lacks writes that were acknowledged before the guest was off ({cut:?})");
        self.account.looks += 1;
        self.compare_with_base()
    }

    /// Asks for something, has the crash happen, and waits until what was asked is so. What a dead daemon did not hear is
    /// asked again, as an operator would.
    async fn go(&mut self, words: &[&str], goal: Goal, crash: Option<&Crash>) -> anyhow::Result<()> {
        let mut ear = crash.map(|crash| self.site.listen(crash.moment, self.node));
        let mut asked = (!words.is_empty()).then(|| self.site.ask(words));
        if let (Some(crash), Some(ear)) = (crash, &mut ear) {
            if self.comes(ear, asked.as_ref()).await? {
                tokio::time::sleep(crash.after).await;
                self.crash(crash).await?;
            } else {
                self.tell(format!("missed: {crash}"));
                self.account.missed.push(crash.moment.says.to_owned());
            }
        }
        let begun = Instant::now();
        let written = self.writer.figures().writes;
        let mut answered = words.is_empty();
        let mut said = String::new();
        let mut last = Instant::now();
        loop {
            self.well().await?;
            if asked.as_ref().is_some_and(Asked::is_over)
                && let Some(over) = asked.take()
            {
                match over.answer().await {
                    Ok(_) => answered = true,
                    Err(why) => {
                        said = format!("{why:#}");
                        self.tell(&said);
                    }
                }
                last = Instant::now();
            }
            let writes = self.load.is_none() || self.writer.figures().writes > written;
            let seen = self.site.volume().await;
            if let Ok(seen) = &seen
                && self.is_met(goal, seen.as_ref(), answered)
                && writes
            {
                break;
            }
            if asked.is_none() && !answered && last.elapsed() > Duration::from_millis(400) {
                asked = Some(self.site.ask(words));
            }
            ensure!(
                begun.elapsed() < CONVERGE,
                "{goal:?} is not reached after {CONVERGE:?}; the guest {}; the volume is {seen:?}; the command said {said:?}",
                if writes { "works" } else { "cannot write" },
            );
            tokio::time::sleep(Duration::from_millis(80)).await;
        }
        let took = begun.elapsed();
        if crash.is_some() {
            self.account.longest = self.account.longest.max(took);
        }
        self.tell(format!("{goal:?} {:.2} s later", took.as_secs_f64()));
        let refused = self.writer.figures().refused - self.account.refused;
        ensure!(refused == 0 || self.errors_allowed, "the guest got {refused} errors from its device");
        self.account.refused += refused;
        Ok(())
    }

    fn is_met(&mut self, goal: Goal, seen: Option<&VolumeView>, answered: bool) -> bool {
        let at = |view: &VolumeView, phase| {
            let mapped = view.node.as_ref().is_none_or(|node| node.as_str() == NODES[self.node] && view.device.is_some());
            view.phase == phase && view.stuck.is_none() && mapped
        };
        let met = match (goal, seen) {
            (Goal::Gone, None) => !self.site.home().exists(),
            (Goal::Phase(phase), Some(view)) => at(view, phase),
            (Goal::Answered(phase), Some(view)) => answered && at(view, phase),
            _ => false,
        };
        if let Some(view) = seen {
            self.id = view.id.to_string();
        }
        met
    }

    /// Waits for a moment; false when it does not come.
    async fn comes(&mut self, ear: &mut Ear, asked: Option<&Asked>) -> anyhow::Result<bool> {
        let begun = Instant::now();
        let mut over = None;
        while !ear.hears()? {
            self.well().await?;
            if over.is_none() && asked.is_some_and(Asked::is_over) {
                over = Some(Instant::now());
            }
            if begun.elapsed() > MOMENT || over.is_some_and(|at| at.elapsed() > MOMENT_AFTER) {
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(true)
    }

    async fn crash(&mut self, crash: &Crash) -> anyhow::Result<()> {
        self.site.kill(&crash.victims, self.node)?;
        self.tell(format!("killed {crash}"));
        self.account.hit.push((crash.moment.says.to_owned(), crash.who()));
        if crash.victims.contains(&Victim::Nas) {
            self.look_at_nas(0).await?;
        }
        tokio::time::sleep(crash.pause).await;
        self.site.restart(&crash.victims, self.node)
    }

    /// Whether the guest finds everything as it must, and the daemons live.
    async fn well(&mut self) -> anyhow::Result<()> {
        self.site.all_daemons_run()?;
        if let Some(load) = self.load.take_if(|load| load.is_finished()) {
            load.await?.context("the guest")?;
            bail!("the guest ended by itself");
        }
        Ok(())
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.writer.stop();
        if let Some(load) = &self.load {
            load.abort();
        }
    }
}
