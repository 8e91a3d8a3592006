//! The bus between hosts: a RabbitMQ broker, as the original uses it.
//!
//! One task a daemon ([`stay`]) owns the connection: it connects, declares, consumes, tells the daemon that it is back, and begins
//! anew when anything of that ends. [`dial`] gets through to a broker, [`session`] is one connection's life, [`letter`] says what a
//! message looks like and whom it is taken from. What is sent while there is no broker comes back at once.

mod dial;
mod letter;
mod session;

use super::{Delivery, Member, Post, ReplyTo, Wire};
use dial::Trouble;
use img_storage_model::{Fault, HostName, messages::Envelope};
use letter::Writer;
use rand::RngExt as _;
use session::Session;
use std::{fmt, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep},
};

/// The first pause before the broker is tried again, and the longest.
const PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A connection that lasted so long was a good one, and is made again soon when it is lost.
const LASTED: Duration = Duration::from_secs(2);
/// Others count as so many failures at most: the broker does work.
const BRIEF: u32 = 3;
/// So many messages may wait to be written; what is sent beyond that comes back.
const WAITING: usize = 1 << 16;
/// How often the log says again that there is no broker.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// Where a broker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broker {
    /// Its name, which its certificate has, or its address.
    pub host: String,
    /// Its port.
    pub port: u16,
}

impl fmt::Display for Broker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// How a daemon says who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// By its certificate, whose common name is its own; the broker then vouches for every sender.
    External,
    /// By a user and password that hosts share; nobody vouches for anybody.
    Plain {
        /// The broker's user.
        user: String,
        /// A file with the password.
        password_file: PathBuf,
    },
}

/// The certificates for a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// Who signs brokers' certificates.
    pub ca: PathBuf,
    /// Our own certificate and key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// Where the broker is and how to speak to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The brokers, of which one is enough.
    pub brokers: Vec<Broker>,
    /// The virtual host.
    pub vhost: String,
    /// Who we are.
    pub login: Login,
    /// Without it, plain TCP.
    pub tls: Option<Tls>,
    /// How often each side says that it is there; two that are missing end a connection.
    pub heartbeat: Duration,
    /// A daemon ends after so long without a broker.
    pub quit_without_broker: Option<Duration>,
}

impl Settings {
    /// How long a refusal is borne at the start: the broker needs a little more than two heartbeats to notice that a connection of
    /// ours is dead, and keeps our name for it until then.
    fn patience(&self) -> Duration {
        self.heartbeat * 5 / 2
    }

    /// Whether the files that are needed can be used.
    ///
    /// # Errors
    /// [`img_storage_model::FaultKind::Invalid`], naming the one that cannot.
    pub fn check(&self) -> Result<(), Fault> {
        let bad = |trouble: Trouble| {
            Fault::invalid(trouble.to_string()).next("nothing was started; see [bus] and [pki] in the configuration")
        };
        if let Login::Plain { password_file, .. } = &self.login {
            dial::password(password_file).map_err(bad)?;
        }
        self.tls.as_ref().map_or(Ok(()), |tls| dial::client(tls).map(drop).map_err(bad))
    }
}

/// A message on its way out.
enum Outgoing {
    Ours(Envelope),
    Answer(ReplyTo, Vec<u8>),
}

/// The way out of a daemon.
#[derive(Clone)]
pub(super) struct Outbox {
    waiting: mpsc::Sender<Outgoing>,
    back: mpsc::UnboundedSender<Delivery>,
}

impl Outbox {
    pub(super) fn send(&self, message: Envelope) {
        if let Err(mpsc::error::TrySendError::Full(Outgoing::Ours(message))) = self.waiting.try_send(Outgoing::Ours(message)) {
            let _ = self.back.send(Delivery::Unsent { message, why: "the broker takes messages too slowly".to_owned() });
        }
    }

    pub(super) fn answer(&self, to: &ReplyTo, body: Vec<u8>) {
        if self.waiting.try_send(Outgoing::Answer(to.clone(), body)).is_err() {
            tracing::warn!(queue = to.queue, "an answer could not be sent: the broker takes messages too slowly");
        }
    }
}

/// A place on the bus, and what makes an end of it.
pub struct Joined {
    /// The place.
    pub member: Member,
    /// Why the daemon is to end, once it is: it has been without a broker for too long.
    pub over: oneshot::Receiver<Fault>,
}

/// Takes a place under a name. A broker that is not there is tried on and on, and the daemon does without it meanwhile: a NAS
/// that was rebooted must bring its exports up, broker or no broker.
///
/// # Errors
/// When the broker refuses this host, or another daemon has its name, for a little longer than a connection of ours that died can
/// be the reason.
pub async fn join(settings: Settings, name: &HostName) -> Result<Joined, Fault> {
    let (waiting, to_send) = mpsc::channel(WAITING);
    let (deliver, inbox) = mpsc::unbounded_channel();
    let (quit, over) = oneshot::channel();
    let user = match &settings.login {
        Login::External => name.to_string(),
        Login::Plain { user, .. } => user.clone(),
    };
    let writer = Writer::new(name.clone(), user);
    let next = rand::rng().random_range(0..settings.brokers.len().max(1));
    let mut line = Supervisor { settings: Arc::new(settings), name: name.clone(), writer: Arc::new(writer), next, failures: 0 };
    let session = line.first().await?;
    let outbox = Outbox { waiting, back: deliver.clone() };
    tokio::spawn(line.stay(session, to_send, deliver, quit));
    Ok(Joined { member: Member { post: Post { name: name.clone(), wire: Wire::Amqp(outbox) }, inbox }, over })
}

struct Supervisor {
    settings: Arc<Settings>,
    name: HostName,
    writer: Arc<Writer>,
    /// Which broker is tried next.
    next: usize,
    /// In a row.
    failures: u32,
}

impl Supervisor {
    /// Tries every broker once.
    async fn attempt(&mut self) -> Result<Session, Trouble> {
        let mut worst = Trouble::Away("no broker is configured".to_owned());
        for turn in 0..self.settings.brokers.len() {
            let broker = &self.settings.brokers[(self.next + turn) % self.settings.brokers.len()];
            match Session::begin(&self.settings, broker, &self.name, &self.writer).await {
                Ok(session) => {
                    tracing::info!("connected to the broker {broker} as {}", self.name);
                    self.next += turn;
                    return Ok(session);
                }
                Err(trouble) => {
                    // One that refuses us says more than one that is not there.
                    if turn == 0 || matches!(worst, Trouble::Away(_)) {
                        worst = trouble;
                    }
                }
            }
        }
        self.next += 1;
        Err(worst)
    }

    /// The pause before the next try: longer and longer, and not at the same moment as everybody else's.
    fn pause(&mut self) -> Duration {
        let longest = PAUSE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        self.failures += 1;
        longest.mul_f64(rand::rng().random_range(0.5..1.0))
    }

    /// The first connection; nothing when there is no broker.
    async fn first(&mut self) -> Result<Option<Session>, Fault> {
        let begun = Instant::now();
        let patience = self.settings.patience();
        let mut said = Said::default();
        loop {
            let trouble = match self.attempt().await {
                Ok(session) => return Ok(Some(session)),
                Err(trouble) => trouble,
            };
            let so_long = patience.as_secs();
            said.say(&trouble, |trouble| match trouble {
                Trouble::Away(why) => tracing::warn!("starting without a broker: {why}"),
                Trouble::Refused(why) => tracing::warn!("{why}; it is tried again for {so_long} s"),
                Trouble::NameTaken => tracing::warn!(
                    "the broker has a connection named {} already: waiting up to {so_long} s, in case it is a dead one of this host",
                    self.name
                ),
            });
            match trouble {
                Trouble::Away(_) => return Ok(None),
                trouble if begun.elapsed() >= patience => return Err(self.fault(&trouble)),
                _ => sleep(self.pause()).await,
            }
        }
    }

    fn fault(&self, trouble: &Trouble) -> Fault {
        match trouble {
            Trouble::NameTaken => {
                Fault::refused(format!("a daemon named {} is on the bus already, from another host or process", self.name))
                    .next("stop it first, or start this one under another --name")
            }
            Trouble::Refused(why) => Fault::refused(format!("{} cannot join the bus: {why}", self.name))
                .next("see [bus] in the configuration, and the broker's users, permissions and certificates"),
            Trouble::Away(why) => Fault::unreachable(format!("{} cannot join the bus: {why}", self.name)),
        }
    }

    fn too_long(&self, since: Instant, trouble: &Trouble) -> Option<Fault> {
        let limit = self.settings.quit_without_broker.filter(|limit| since.elapsed() >= *limit)?;
        Some(
            Fault::unreachable(format!("{} ends: it has had no broker for {} s ({trouble})", self.name, limit.as_secs()))
                .next("see that a broker of [bus] hosts runs; quit_without_broker says how long is waited"),
        )
    }

    async fn stay(
        mut self,
        mut session: Option<Session>,
        mut to_send: mpsc::Receiver<Outgoing>,
        deliver: mpsc::UnboundedSender<Delivery>,
        quit: oneshot::Sender<Fault>,
    ) {
        loop {
            if let Some(mut session) = session.take() {
                let begun = Instant::now();
                if deliver.send(Delivery::Connected).is_err() {
                    return;
                }
                let trouble = session.live(&self.name, &self.writer, &mut to_send, &deliver).await;
                session.end().await;
                let Some(trouble) = trouble else { return };
                self.failures = if begun.elapsed() >= LASTED { 0 } else { self.failures.min(BRIEF) };
                tracing::warn!("the broker is gone: {trouble}; guests go on, and it is tried again");
            }
            let lost = Instant::now();
            let again = tokio::select! {
                again = self.again(lost) => again,
                () = bounce(&mut to_send, &deliver) => return,
            };
            match again {
                Ok(next) => session = Some(next),
                Err(fault) => {
                    let _ = quit.send(fault);
                    return;
                }
            }
            tracing::info!("the broker is back after {:.1} s", lost.elapsed().as_secs_f64());
        }
    }

    /// Connects again, however often it takes.
    async fn again(&mut self, lost: Instant) -> Result<Session, Fault> {
        let mut said = Said::default();
        loop {
            let pause = self.pause();
            sleep(pause).await;
            match self.attempt().await {
                Ok(session) => return Ok(session),
                Err(trouble) => {
                    said.say(&trouble, |trouble| tracing::warn!("no broker for {} s: {trouble}", lost.elapsed().as_secs()));
                    if let Some(fault) = self.too_long(lost, &trouble) {
                        return Err(fault);
                    }
                }
            }
        }
    }
}

/// Gives back what is sent while there is no broker, until the daemon is gone.
async fn bounce(to_send: &mut mpsc::Receiver<Outgoing>, deliver: &mpsc::UnboundedSender<Delivery>) {
    loop {
        let outgoing = tokio::select! {
            outgoing = to_send.recv() => outgoing,
            () = deliver.closed() => return,
        };
        match outgoing {
            Some(Outgoing::Ours(message)) => {
                if deliver.send(Delivery::Unsent { message, why: "there is no connection to the broker".to_owned() }).is_err() {
                    return;
                }
            }
            // Who asked was connected to the broker that is gone, and waits no more.
            Some(Outgoing::Answer(..)) => {}
            None => return,
        }
    }
}

/// Says what is new, and what is not only now and then.
#[derive(Default)]
struct Said(Option<(Trouble, Instant)>);

impl Said {
    fn say(&mut self, trouble: &Trouble, say: impl FnOnce(&Trouble)) {
        if self.0.as_ref().is_none_or(|(last, at)| last != trouble || at.elapsed() >= SAY_AGAIN) {
            say(trouble);
            self.0 = Some((trouble.clone(), Instant::now()));
        }
    }
}
