//! `img-storage doctor`: what should be on a host, by its ledger and configuration, compared with what is.
//!
//! Pure, as all decisions: the facts were looked at by `img-storage-host`, which changes nothing for it, and what comes out is for
//! people. A planner asks what to do next about one volume that is its own; here the question is what is odd on the whole host,
//! also about what no ledger knows. Nothing is decided by a finding, and nothing is carried out.

pub mod files;
pub mod nas;
pub mod node;
pub mod shown;

use crate::{Fact, HostName, Selector};
use serde::Serialize;
pub use shown::Zvol;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Something is not as it should be.
    Differs,
    /// In order, and good to know when something else is not.
    Note,
}

/// Who is to be asked for by name, because the thing cannot be had or be taken away while it is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Of a block device, by its path.
    Device(String),
    /// Of the guest's sockets in this directory of a storage daemon.
    Sockets(String),
}

/// One thing that an operator should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// On which host.
    pub host: HostName,
    /// The volume, as `NAS:POOL/NAME`; none of what concerns the host, or of what no ledger knows.
    pub volume: Option<String>,
    /// What it is about, by the name its own tools know it by.
    pub thing: String,
    /// What was seen.
    pub is: String,
    /// What the ledger or the configuration says.
    pub should_be: String,
    /// Who has it, as far as that could be seen.
    pub held_by: Vec<String>,
    /// What the operator can do.
    pub next: String,
    /// Whose holders are to be looked for; they end up in `held_by`.
    #[serde(skip)]
    pub ask: Option<Ask>,
    /// No ledger here knows it: it is no part of a look at one volume.
    #[serde(skip)]
    pub stranger: bool,
}

/// Something that could not be looked at: what is there is not known, and it is not taken for absent.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Unseen {
    /// On which host.
    pub host: HostName,
    /// What.
    pub what: String,
    /// Why not.
    pub why: String,
}

/// Everything that was found, and what could not be looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// What differs first.
    pub findings: Vec<Finding>,
    /// What could not be seen.
    pub unseen: Vec<Unseen>,
}

impl Finding {
    /// Says who is to be asked for.
    fn ask(&mut self, ask: Ask) -> &mut Self {
        self.ask = Some(ask);
        self
    }

    /// Says who has it.
    fn held_by(&mut self, who: impl IntoIterator<Item = String>) -> &mut Self {
        self.held_by.extend(who);
        self
    }

    /// Whether it is the same one in a second look: numbers in what was seen may have moved on.
    fn is_again(&self, other: &Self) -> bool {
        (&self.host, &self.volume, &self.thing, &self.should_be) == (&other.host, &other.volume, &other.thing, &other.should_be)
    }
}

impl Diagnosis {
    /// How many things differ.
    pub fn differing(&self) -> usize {
        self.findings.iter().filter(|finding| finding.level == Level::Differs).count()
    }

    /// What two looks have in common: while a daemon works, much is in between for a moment. What the second says counts.
    pub fn confirmed_by(mut self, later: Self) -> Self {
        let first = std::mem::take(&mut self.findings);
        let lasting = |f: &Finding| f.level == Level::Note || first.iter().any(|before| before.is_again(f));
        Diagnosis { findings: later.findings.into_iter().filter(lasting).collect(), unseen: later.unseen }
    }

    /// Leaves what concerns one volume, and its hosts as a whole.
    pub fn limit_to(&mut self, volume: &Selector) {
        self.findings.retain(|finding| match &finding.volume {
            Some(name) => is_meant(volume, name),
            None => !finding.stranger,
        });
    }

    /// Puts the worst first, and what belongs together beside each other.
    pub fn sort(&mut self) {
        self.findings.sort_by(|a, b| (a.level, &a.volume, &a.host, &a.thing).cmp(&(b.level, &b.volume, &b.host, &b.thing)));
        self.unseen.sort();
        self.unseen.dedup();
    }
}

/// Whether `NAS:POOL/NAME` is what was named.
pub fn is_meant(wanted: &Selector, full: &str) -> bool {
    let full = full.parse::<Selector>().ok();
    full.is_some_and(|f| matches!((&f.nas, &f.pool), (Some(nas), Some(pool)) if wanted.matches(nas, pool, &f.name)))
}

/// What is found on one host, in the making.
pub(super) struct Notes<'a> {
    host: &'a HostName,
    all: Diagnosis,
}

/// What a finding is about.
#[derive(Clone, Copy)]
pub(super) enum About<'a> {
    /// The host.
    Host,
    /// A volume of the ledger.
    Volume(&'a str),
    /// What no ledger here knows.
    Stranger,
}

impl<'a> Notes<'a> {
    fn on(host: &'a HostName) -> Self {
        Notes { host, all: Diagnosis::default() }
    }

    fn add(&mut self, level: Level, about: About<'_>, thing: impl Into<String>, is: impl Into<String>) -> &mut Finding {
        let volume = if let About::Volume(name) = about { Some(name.to_owned()) } else { None };
        self.all.findings.push(Finding {
            level,
            host: self.host.clone(),
            volume,
            thing: thing.into(),
            is: is.into(),
            should_be: String::new(),
            held_by: Vec::new(),
            next: String::new(),
            ask: None,
            stranger: matches!(about, About::Stranger),
        });
        let last = self.all.findings.len() - 1;
        &mut self.all.findings[last]
    }

    fn differs(
        &mut self,
        about: About<'_>,
        thing: impl Into<String>,
        is: impl Into<String>,
        should_be: impl Into<String>,
        next: impl Into<String>,
    ) -> &mut Finding {
        let finding = self.add(Level::Differs, about, thing, is);
        finding.should_be = should_be.into();
        finding.next = next.into();
        finding
    }

    fn note(&mut self, about: About<'_>, thing: impl Into<String>, is: impl Into<String>) -> &mut Finding {
        self.add(Level::Note, about, thing, is)
    }

    /// The value, or a word that it could not be had.
    fn see<'f, T>(&mut self, what: impl Into<String>, fact: &'f Fact<T>) -> Option<&'f T> {
        match fact {
            Fact::Known(value) => Some(value),
            Fact::Unknown(why) => {
                self.all.unseen.push(Unseen { host: self.host.clone(), what: what.into(), why: why.clone() });
                None
            }
        }
    }
}

/// What is known of a role's daemon.
pub fn daemon(host: &HostName, role: &str, running: &Fact<Option<u32>>, unit: &str) -> Diagnosis {
    let mut notes = Notes::on(host);
    if let Some(None) = notes.see(format!("the {role} daemon"), running) {
        notes.differs(
            About::Host,
            format!("the {role} daemon"),
            "it does not run; devices and guests go on without it, and nothing is mapped, copied or brought home",
            "it runs",
            format!("look at why it ended (journalctl -u {unit}), and start it: it takes everything up again by itself"),
        );
    }
    notes.all
}
