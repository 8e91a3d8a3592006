//! ZFS streams between a NAS and a node, by ssh: pushed and pulled by the NAS, where they are counted.
//!
//! On the node ssh ends in `img-storage stream`, which [`serve`] is: it takes a request apart ([`img_storage_model::stream`]),
//! looks whether the zvol is the volume's, and becomes `zfs send`, or starts `zfs receive` on its own input and says what there is then.
//! The NAS does the same checks on its side.
//!
//! Every receive can be continued (`-s`): what has arrived stays, and the token says where it goes on. A token whose snapshot the
//! sender does not have any more is of no use and is thrown away with its part of the data; that is told ([`Moved::discarded`]).
//! Whether a difference or a whole is sent is the caller's choice, never made here: a whole one can take a day.
//!
//! Sent are large blocks, compressed and embedded ones as they are on disk (`-L -c -e`), always all three: `-L` may not change between
//! the differences of one zvol. Never with properties (`-p`, `-R`): each side sets its own.

mod local;
mod serve;

pub use local::{Continued, Side};
pub use serve::{Served, serve};

use super::{fault, program};
use crate::{
    HostError,
    exec::{self, Program},
};
use img_storage_model::{
    Dataset, Epoch, Guid, Snapshot, VolumeId,
    stream::{Ask, Command, Holdings, ResumeToken, Source},
};
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

/// How long a question to a node may take.
const ASK: Duration = Duration::from_secs(60);
/// How long a stream may stand still: a pool that frees what a stream replaces, or a network that is away, takes its time.
const STALL: Duration = Duration::from_secs(120);

/// How this NAS reaches its nodes.
#[derive(Clone, Debug)]
pub struct Ssh {
    /// As which user.
    pub user: String,
    /// The private key that is for this only.
    pub key: PathBuf,
    /// The keys of the nodes; an unknown one is refused.
    pub known_hosts: PathBuf,
    /// A directory of its own, with a short path, where the sockets of standing connections are.
    pub sockets: PathBuf,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its name or address.
    pub host: String,
    /// The port of its sshd.
    pub port: u16,
}

/// A stream that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Bytes that went over the network, this time.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
    /// Whether it went on where an earlier one was cut off.
    pub resumed: bool,
    /// What was thrown away before it began, and why; for the operator.
    pub discarded: Option<String>,
}

/// What a node says that it has.
fn answer(peer: &Peer, text: &str) -> Result<Holdings, HostError> {
    let unclear = |why| fault(format_args!("the answer of {} cannot be understood", peer.host), why, "is it of another version?");
    serde_json::from_str(text).map_err(unclear)
}

/// Streams of this NAS.
#[derive(Clone, Debug)]
pub struct Streams {
    /// This side.
    pub local: Side,
    ssh: Ssh,
    program: PathBuf,
}

impl Streams {
    /// Streams between `local` and what `ssh` reaches.
    pub fn new(local: Side, ssh: Ssh) -> Self {
        Self { local, ssh, program: program("ssh") }
    }

    /// How nodes are reached.
    pub fn ssh(&self) -> &Ssh {
        &self.ssh
    }

    /// What a node has of a volume.
    ///
    /// # Errors
    /// When it cannot be told.
    pub async fn holdings(&self, peer: &Peer, volume: VolumeId, of: &Dataset) -> Result<Holdings, HostError> {
        answer(peer, &self.ask(peer, Command { volume, ask: Ask::State(of.clone()) }).await?)
    }

    /// Throws away what a stream to a node that was cut off has brought there.
    ///
    /// # Errors
    /// When it is still there, or cannot be told.
    pub async fn discard(&self, peer: &Peer, volume: VolumeId, of: &Dataset) -> Result<(), HostError> {
        self.ask(peer, Command { volume, ask: Ask::Discard(of.clone()) }).await.map(drop)
    }

    /// About how many bytes a node would send.
    ///
    /// # Errors
    /// When it cannot tell.
    pub async fn estimate_pull(&self, peer: &Peer, volume: VolumeId, source: &Source) -> Result<u64, HostError> {
        let text = self.ask(peer, Command { volume, ask: Ask::Estimate(source.clone()) }).await?;
        text.trim().parse().map_err(|why| fault(format_args!("the answer of {} cannot be understood", peer.host), why, ""))
    }

    /// Brings a snapshot of a zvol here to `into` on a node: as a difference from the snapshot `from`, which both have, or whole; or goes
    /// on where an earlier stream of the same snapshot was cut off, with the token that the node has of it. The node's zvol has to take
    /// streams of `epoch`. `progress` is told the bytes so far.
    ///
    /// The node says what it has in the same answer, so that a small difference costs one start of ssh. It is asked only where that is not
    /// the snapshot; and what it was said to have of an earlier stream may be old, which it finds, and then that is tried once.
    ///
    /// # Errors
    /// When the node does not have the snapshot afterwards; repeated, it goes on.
    pub async fn push(
        &self,
        peer: &Peer,
        (volume, epoch): (VolumeId, Epoch),
        source: (Option<&Snapshot>, &Snapshot, Option<ResumeToken>),
        into: &Dataset,
        mut progress: impl FnMut(u64),
    ) -> Result<Moved, HostError> {
        let began = Instant::now();
        let (from, to, mut token) = source;
        let (mut discarded, mut bytes, mut again) = (None, 0, false);
        let mut known = None;
        let what = || format!("the stream of {to} to {into} on {}", peer.host);
        loop {
            let mut source = Source::Snapshot { from: from.cloned(), to: to.clone() };
            if let Some(token) = &token {
                let wanted = self.wanted(&mut known, to).await?;
                match self.local.continued(to.dataset(), token, wanted).await? {
                    Continued::Yes => source = Source::Rest { of: to.dataset().clone(), token: token.clone() },
                    Continued::No(why) => {
                        self.discard(peer, volume, into).await?;
                        discarded = Some(format!("a part of a stream to {into} on {} was thrown away: {why}", peer.host));
                    }
                }
            }
            let resumed = matches!(source, Source::Rest { .. });
            let remote = Command { volume, ask: Ask::Receive { into: into.clone(), epoch } };
            let before = bytes;
            let moved = |n| {
                bytes = before + n;
                progress(bytes);
            };
            let (send, receive) = (self.local.send(&source), self.remote(peer, &remote));
            // Which it is is looked up while ssh begins.
            let (wanted, piped) = tokio::join!(self.wanted(&mut known, to), exec::pipe(&send, &receive, STALL, moved));
            let wanted = wanted?;
            let printed = piped.as_ref().ok().and_then(|piped| answer(peer, &String::from_utf8_lossy(&piped.printed)).ok());
            let theirs = match printed {
                Some(theirs) if theirs.has(wanted) => theirs,
                // It may be there all the same.
                _ => match (self.holdings(peer, volume, into).await, &piped) {
                    (Ok(theirs), _) => theirs,
                    (Err(_), Err(why)) => return Err(fault(what(), why, "")),
                    (Err(error), Ok(_)) => return Err(error),
                },
            };
            if theirs.has(wanted) {
                return Ok(Moved { bytes, took: began.elapsed(), resumed, discarded });
            }
            match piped {
                // What was cut off last is not what the node had told of before.
                Err(why) if theirs.token != token && !again => {
                    tracing::warn!(node = %peer.host, "the stream of {to} was cut off after {bytes} bytes and goes on where it was: {why}");
                    (token, again) = (theirs.token, true);
                }
                Err(why) => return Err(fault(what(), why, "")),
                Ok(_) => {
                    let next = "look at the zvol on the node";
                    return Err(fault(what(), format_args!("it is done, but the snapshot {wanted} is not there"), next));
                }
            }
        }
    }

    /// The identity of a snapshot here, looked up once.
    async fn wanted(&self, known: &mut Option<Guid>, of: &Snapshot) -> Result<Guid, HostError> {
        match *known {
            Some(guid) => Ok(guid),
            None => Ok(*known.insert(self.local.guid(of).await?)),
        }
    }

    /// Brings a snapshot of a zvol on a node to `into` here; otherwise as [`Streams::push`]. The token is this side's.
    ///
    /// # Errors
    /// When this side does not have the snapshot afterwards; repeated, it goes on.
    pub async fn pull(
        &self,
        peer: &Peer,
        volume: VolumeId,
        source: (Option<&Snapshot>, &Snapshot, Option<ResumeToken>),
        into: &Dataset,
        mut progress: impl FnMut(u64),
    ) -> Result<Moved, HostError> {
        let began = Instant::now();
        let (from, to, token) = source;
        let mut discarded = None;
        let mut source = Source::Snapshot { from: from.cloned(), to: to.clone() };
        if let Some(token) = token {
            let theirs = self.holdings(peer, volume, to.dataset()).await?;
            let wanted = theirs.snapshots.iter().find(|held| held.name == to.name()).map(|held| held.guid);
            let wanted = wanted.ok_or_else(|| HostError(format!("there is no snapshot {to} on {}", peer.host)))?;
            match self.local.token(&token).await?.continues(to.dataset(), &theirs, wanted) {
                Continued::Yes => source = Source::Rest { of: to.dataset().clone(), token },
                Continued::No(why) => {
                    self.local.zfs().discard_partial(into).await?;
                    discarded = Some(format!("a part of a stream from {} to {into} was thrown away: {why}", peer.host));
                }
            }
        }
        let resumed = matches!(source, Source::Rest { .. });
        let remote = Command { volume, ask: Ask::Send(source) };
        let receive = self.local.receive(volume, into, None).await?;
        let what = || format!("the stream of {to} on {} to {into}", peer.host);
        let mut bytes = 0;
        let moved = |n| {
            bytes = n;
            progress(n);
        };
        let piped = exec::pipe(&self.remote(peer, &remote), &receive, STALL, moved).await;
        // That it is the node's of this name, and not another, is for whoever accepts it to see: by its identity.
        let ours = self.local.holdings(into).await;
        let there = ours.as_ref().is_ok_and(|ours| ours.snapshots.iter().any(|held| held.name == to.name()));
        match (piped, ours) {
            _ if there => Ok(Moved { bytes, took: began.elapsed(), resumed, discarded }),
            (Err(why), _) => Err(fault(what(), why, "")),
            (Ok(_), Err(error)) => Err(error),
            (Ok(_), Ok(_)) => Err(fault(what(), "it is done, but the snapshot is not there", "look at the zvol")),
        }
    }

    async fn ask(&self, peer: &Peer, command: Command) -> Result<String, HostError> {
        let Program { path, args } = self.remote(peer, &command);
        let what = || format!("cannot ask {} to `{command}`", peer.host);
        let (status, output) = exec::run_to_status(path, &args, ASK).await.map_err(|error| fault(what(), error, ""))?;
        if !status.success() {
            // ssh has one status for its own failures; any other is what the node's program ended with.
            let next = if status.code() == Some(255) {
                "can it be reached, and does its img-storage user take this NAS's key?"
            } else {
                ""
            };
            return Err(fault(what(), output.stderr.trim(), next));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The ssh that has a node carry a request out. A connection stands for a while, so that small streams do not wait for new ones.
    fn remote(&self, peer: &Peer, command: &Command) -> Program {
        let Ssh { user, key, known_hosts, sockets } = &self.ssh;
        let known_hosts = format!("UserKnownHostsFile={}", known_hosts.display());
        // %C is a digest of everything that makes the connection, so that the path stays short.
        let control = format!("ControlPath={}/%C", sockets.display());
        let options = [
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            "IdentitiesOnly=yes",
            "GlobalKnownHostsFile=/dev/null",
            &known_hosts,
            "ControlMaster=auto",
            &control,
            "ControlPersist=60",
            "ConnectTimeout=10",
            "ServerAliveInterval=10",
            "ServerAliveCountMax=3",
            "ClearAllForwardings=yes",
            "LogLevel=ERROR",
        ];
        // Nobody's configuration decides how a volume travels.
        let mut args = vec!["-F".to_owned(), "/dev/null".to_owned(), "-T".to_owned(), "-i".to_owned(), key.display().to_string()];
        args.extend(options.iter().flat_map(|option| ["-o".to_owned(), (*option).to_owned()]));
        args.extend(["-p".to_owned(), peer.port.to_string(), "-l".to_owned(), user.clone(), "--".to_owned(), peer.host.clone()]);
        args.push(command.to_string());
        Program::new(&self.program, args)
    }
}
