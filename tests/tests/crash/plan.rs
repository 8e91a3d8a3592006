//! What a life is, and when who is killed in it: all of it from one number.

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};
use std::{fmt, time::Duration};

/// A process, or the storage daemons of one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Victim {
    Frontend,
    Nas,
    Node,
    NasQsd,
    NodeQsd,
}

use Victim::{Frontend, Nas, NasQsd, Node, NodeQsd};

/// Who may die together; a host's daemon with its storage daemons is what its death would be.
const VICTIMS: [&[Victim]; 14] = [
    &[Nas],
    &[Node],
    &[NasQsd],
    &[NodeQsd],
    &[Frontend],
    &[Nas, NasQsd],
    &[Node, NodeQsd],
    &[Nas],
    &[Node],
    &[Nas, Node],
    &[NasQsd, NodeQsd],
    &[Nas, NodeQsd],
    &[Node, NasQsd],
    &[Frontend, Nas, Node, NasQsd, NodeQsd],
];

/// A part of a life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Create,
    Import,
    Attach,
    Remote,
    Copy,
    WriteBack,
    BringBack,
    /// Unmapped from the local copy.
    Return,
    /// Unmapped from the NAS's.
    Leave,
    Elsewhere,
    Delete,
}

/// Who tells of a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Teller {
    Nas,
    Node,
}

/// A moment: what a daemon's log says, and how long after it at most.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub teller: Teller,
    /// A step's name, or words; nothing for any time.
    pub says: &'static str,
    pub within_ms: u64,
}

const fn nas(says: &'static str, within_ms: u64) -> Moment {
    Moment { teller: Teller::Nas, says, within_ms }
}

const fn node(says: &'static str, within_ms: u64) -> Moment {
    Moment { teller: Teller::Node, says, within_ms }
}

const ANY_TIME: Moment = nas("", 800);

impl Part {
    fn moments(self) -> &'static [Moment] {
        match self {
            Part::Create => const { &[nas("step=CreateDisk", 5), nas("step=SyncDisk", 5), nas("created", 5)] },
            Part::Import => {
                const {
                    &[
                        nas("step=CreateDisk", 5),
                        nas("step=StartExport", 50),
                        nas("step=StartExport", 300),
                        nas("step=StopExport", 10),
                        nas("step=SyncDisk", 5),
                    ]
                }
            }
            Part::Attach | Part::Elsewhere => {
                const {
                    &[
                        nas("step=StartExport", 40),
                        node("step=Start", 40),
                        node("step=AddGuest", 10),
                        nas("step=StartExport", 150),
                    ]
                }
            }
            Part::Remote => const { &[ANY_TIME] },
            Part::Copy => {
                const {
                    &[
                        node("a local copy is made", 5),
                        node("step=CreateLocal", 10),
                        node("step=OpenLocal", 10),
                        node("step=StartCopy", 20),
                        node("step=StartCopy", 150),
                        node("step=ReserveLocal", 20),
                        nas("may switch to its local copy", 10),
                        node("step=CompleteCopy", 10),
                        node("step=AddBitmap", 5),
                        node("the local copy is the truth", 5),
                        node("step=FinalizeCopy", 10),
                        node("step=DetachRemote", 10),
                        nas("has the newest writes", 10),
                        nas("step=StopExport", 20),
                    ]
                }
            }
            Part::WriteBack => {
                const {
                    &[
                        ANY_TIME,
                        nas("write-back ordered", 5),
                        nas("step=CreateIncoming", 20),
                        nas("step=ServeIncoming", 40),
                        node("step=FreezeBitmap", 5),
                        node("step=InsertFleece", 20),
                        node("step=OpenSource", 10),
                        node("step=OpenIncoming", 10),
                        node("step=StartPush", 20),
                        node("step=StartPush", 150),
                        node("step=DigestPush", 60),
                        node("bytes sent", 5),
                        node("step=EndPush", 10),
                        nas("step=VerifyIncoming", 60),
                        nas("write-back verified", 5),
                        nas("step=SealIncoming", 20),
                        nas("step=CommitPending", 5),
                        nas("step=CommitPending", 60),
                        nas("came home", 5),
                        nas("step=RemovePending", 5),
                        node("step=DropBitmap", 10),
                    ]
                }
            }
            Part::BringBack => {
                const {
                    &[
                        nas("step=CreateOverlay", 20),
                        nas("step=StartExport", 40),
                        node("step=OpenBack", 20),
                        node("step=StartBack", 20),
                        node("step=StartBack", 150),
                        nas("may switch back", 5),
                        node("step=CompleteBack", 10),
                        node("the NAS is the truth", 5),
                        node("step=FinalizeBack", 20),
                        nas("the newest writes are here", 5),
                        nas("step=StartCommit", 10),
                        nas("step=StartCommit", 80),
                        nas("step=CompleteCommit", 10),
                        nas("is folded into", 5),
                        nas("step=FinalizeCommit", 10),
                        nas("step=AddExport", 10),
                        node("step=Reattach", 20),
                        nas("step=RemoveExport", 10),
                        nas("step=RemoveOverlay", 10),
                        node("step=RemoveLocal", 10),
                    ]
                }
            }
            Part::Return => {
                const {
                    &[
                        node("step=RemoveGuest", 10),
                        nas("write-back ordered", 5),
                        node("step=OpenIncoming", 10),
                        node("step=StartPush", 60),
                        node("step=DigestPush", 30),
                        nas("step=VerifyIncoming", 30),
                        nas("step=SealIncoming", 20),
                        nas("step=CommitPending", 40),
                        nas("came home", 5),
                        nas("step=RemovePending", 5),
                        node("step=Stop", 20),
                        node("step=RemoveLocal", 10),
                        node("the mapping is over", 5),
                        nas("unmapped from", 5),
                        nas("step=StopExport", 20),
                    ]
                }
            }
            Part::Leave => {
                const {
                    &[
                        node("step=RemoveGuest", 10),
                        node("step=Stop", 20),
                        node("the mapping is over", 5),
                        nas("step=StopExport", 20),
                        nas("unmapped from", 5),
                    ]
                }
            }
            Part::Delete => const { &[nas("step=RemoveDisk", 5), ANY_TIME] },
        }
    }

    /// Who can die there at all.
    fn victims(self) -> Vec<&'static [Victim]> {
        let there = |victim: &Victim| match self {
            Part::Create | Part::Delete => matches!(victim, Frontend | Nas),
            Part::Import => matches!(victim, Frontend | Nas | NasQsd),
            _ => true,
        };
        let mut all: Vec<_> = VICTIMS.into_iter().filter(|group| group.iter().all(there)).collect();
        if matches!(self, Part::Create | Part::Import | Part::Delete) {
            all.push(&[Frontend, Nas]);
        }
        all
    }
}

/// One crash.
#[derive(Clone, Debug)]
pub struct Crash {
    pub moment: Moment,
    pub after: Duration,
    pub victims: Vec<Victim>,
    /// The dead daemons are started again after this.
    pub pause: Duration,
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let says = if self.moment.says.is_empty() { "any time" } else { self.moment.says };
        let (after, pause) = (self.after.as_millis(), self.pause.as_millis());
        write!(f, "{} {after} ms after {:?} of the {:?}, back after {pause} ms", self.who(), says, self.moment.teller)
    }
}

impl Crash {
    /// Who dies.
    pub fn who(&self) -> String {
        self.victims.iter().map(|victim| format!("{victim:?}")).collect::<Vec<_>>().join("+")
    }

    fn draw(part: Part, nth: usize, rng: &mut StdRng) -> Self {
        let moments = part.moments();
        let moment = moments[nth % moments.len()];
        let after = if rng.random_range(0..3) == 0 { 0 } else { rng.random_range(0..=moment.within_ms) };
        let victims = part.victims().choose(rng).map(|group| group.to_vec()).unwrap_or_default();
        let pause = if rng.random_range(0..3) == 0 { 0 } else { rng.random_range(0..1500) };
        Crash { moment, after: Duration::from_millis(after), victims, pause: Duration::from_millis(pause) }
    }
}

/// A life.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub parts: Vec<(Part, Option<Crash>)>,
}

impl Plan {
    /// The life of a seed. Consecutive seeds go through the moments of each part in turn.
    pub fn of(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut parts = vec![if seed.is_multiple_of(3) { Part::Import } else { Part::Create }, Part::Attach, Part::Remote];
        parts.extend([Part::Copy, Part::WriteBack, Part::WriteBack]);
        match seed % 4 {
            0 | 2 => parts.extend([Part::BringBack, Part::Copy, Part::Return]),
            1 => parts.extend([Part::BringBack, Part::Leave]),
            _ => parts.extend([Part::WriteBack, Part::Return]),
        }
        parts.extend([Part::Elsewhere, Part::Delete]);
        let nth = usize::try_from(seed).unwrap_or(0);
        let mut before = Vec::new();
        let parts = parts.into_iter().map(|part| {
            // A part that comes again in a life has its next crash elsewhere.
            let again = before.iter().filter(|p| **p == part).count() * part.moments().len().div_ceil(3);
            before.push(part);
            // An undisturbed part now and then, so that what follows begins well.
            let calm = rng.random_range(0..5) == 0;
            let crash = Crash::draw(part, nth + again, &mut rng);
            (part, (!calm).then_some(crash))
        });
        Plan { seed, parts: parts.collect() }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "life {}", self.seed)?;
        for (part, crash) in &self.parts {
            match crash {
                Some(crash) => write!(f, "\n    {part:?}: {crash}")?,
                None => write!(f, "\n    {part:?}")?,
            }
        }
        Ok(())
    }
}
