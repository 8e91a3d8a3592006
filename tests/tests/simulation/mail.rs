//! The messages of a run: how many there were, what becomes of them, and that hosts do not talk to each other without end.

use super::{
    plan::{Mishap, Plan, Trouble},
    site::lock,
};
use img_storage_host::sim::World;
use img_storage_model::messages::{Body, Envelope, KernelReport};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// How long a message takes.
const POSTAGE: Duration = Duration::from_millis(1);
/// So many messages in [`WINDOW`] are too many: in no run that goes well are there a quarter of them.
const STORM: u64 = 2000;
/// The time in which they are counted.
const WINDOW: Duration = Duration::from_secs(10);
/// How long each takes once there were too many, so that such a run ends.
const SLOW: Duration = Duration::from_secs(1);

/// The messages of a run.
pub struct Mail {
    sent: AtomicU64,
    quiet: AtomicBool,
    at: Option<(usize, Mishap)>,
    random: Mutex<Option<StdRng>>,
    counted: Mutex<Counted>,
}

/// How many there were lately, and at most.
struct Counted {
    since: Instant,
    now: u64,
    most: u64,
}

impl Mail {
    /// No messages yet.
    pub fn new(plan: &Plan) -> Self {
        Mail {
            sent: AtomicU64::new(0),
            quiet: AtomicBool::new(false),
            at: if let Trouble::Message(number, mishap) = &plan.trouble { Some((*number, *mishap)) } else { None },
            random: Mutex::new((plan.trouble == Trouble::Random).then(|| StdRng::seed_from_u64(plan.seed))),
            counted: Mutex::new(Counted { since: Instant::now(), now: 0, most: 0 }),
        }
    }

    /// How many were sent.
    pub fn sent(&self) -> usize {
        usize::try_from(self.sent.load(Ordering::Relaxed)).unwrap_or(usize::MAX)
    }

    /// From now on nothing becomes of them any more but that they arrive.
    pub fn quiet(&self) {
        self.quiet.store(true, Ordering::Relaxed);
    }

    /// What was wrong with how many there were at once.
    pub fn storm(&self) -> Option<String> {
        let most = lock(&self.counted).most;
        (most > STORM)
            .then(|| format!("{most} messages were sent within {} s: hosts answer each other without end", WINDOW.as_secs()))
    }

    /// Counts one more; how long it takes when nothing happens to it.
    fn postage(&self) -> Duration {
        let mut counted = lock(&self.counted);
        if counted.since.elapsed() >= WINDOW {
            (counted.since, counted.now) = (Instant::now(), 0);
        }
        counted.now += 1;
        counted.most = counted.most.max(counted.now);
        if counted.most > STORM { SLOW } else { POSTAGE }
    }
}

/// What the bus asks about each message: how long it takes, once for each time that it arrives.
pub fn tap(mail: Arc<Mail>, world: World) -> img_storage_daemon::bus::Tap {
    Box::new(move |message: &Envelope| {
        let number = usize::try_from(mail.sent.fetch_add(1, Ordering::Relaxed)).unwrap_or(usize::MAX);
        let postage = mail.postage();
        let quiet = mail.quiet.load(Ordering::Relaxed);
        let mut delays = match (&mail.at, lock(&mail.random).as_mut()) {
            _ if quiet => vec![postage],
            (Some((n, mishap)), _) if *n == number => match mishap {
                Mishap::Double => vec![POSTAGE, POSTAGE + Duration::from_millis(700)],
                Mishap::Lost => Vec::new(),
                Mishap::Late(by) => vec![Duration::from_millis(*by)],
            },
            (_, Some(random)) => match random.random_range(0..20) {
                0 => Vec::new(),
                1 => vec![POSTAGE, Duration::from_millis(random.random_range(1..5000))],
                2 => vec![Duration::from_millis(random.random_range(1..5000))],
                _ => vec![Duration::from_millis(random.random_range(1..10))],
            },
            _ => vec![postage],
        };
        delays.sort();
        if !matches!(message.body, Body::Hello(_)) {
            let text = match &message.body {
                Body::Assign(a) => format!(
                    "assign e{} r{} want {:?} export {:?} granted {} push {:?} accepted {:?} release {} back {:?} base {:?}",
                    a.epoch,
                    a.revision,
                    a.want,
                    a.export.as_ref().map(|e| (&e.export, e.port)),
                    a.granted,
                    a.push.as_ref().map(|p| (short(&p.push), p.endpoint.is_some(), p.last)),
                    a.accepted.as_ref().map(short),
                    a.release,
                    a.back.as_ref().map(|b| b.granted),
                    a.kernel.as_ref().and_then(|k| k.base).map(|b| short(&b.id)),
                ),
                Body::Report(r) => format!(
                    "report e{} r{} {:?} pivoted {} detached {} attached {:?} pushed {:?} dirty {:?} stuck {:?} {}",
                    r.epoch,
                    r.revision,
                    r.phase,
                    r.pivoted,
                    r.detached,
                    r.attached,
                    r.pushed.as_ref().map(|p| short(&p.push)),
                    r.dirty,
                    r.stuck,
                    r.kernel.as_ref().map_or_else(String::new, in_short),
                ),
                body => {
                    let mut text = format!("{body:?}");
                    text.truncate(160);
                    text
                }
            };
            let mishap =
                if delays.len() == 1 && delays[0] <= POSTAGE * 10 { String::new() } else { format!(" MISHAP {delays:?}") };
            world.note(format!("m{number} {}→{} {text}{mishap}", message.from, message.to));
        }
        delays
    })
}

fn in_short(k: &KernelReport) -> String {
    let points: Vec<String> = k.snapshots.iter().map(|s| short(&s.id)).collect();
    format!("receives {} {points:?} resume {:?} overlaid {}", k.receives, k.resume, k.overlaid)
}

fn short(id: &img_storage_model::SnapshotId) -> String {
    id.0.simple().to_string()[24..].to_owned()
}
