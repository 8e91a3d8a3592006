//! One side of a stream: what it has, and the programs that send and receive. Both a NAS and a node use it.

use crate::{
    HostError,
    exec::{self, Program},
    kernel::{
        fault,
        marks::{self, RECEIVES},
        program,
        zfs::{Look, SnapshotFacts, VOLUME, Zfs, Zvol},
    },
};
use img_storage_model::{
    Dataset, Epoch, Guid, Snapshot, VolumeId,
    stream::{Held, Holdings, ResumeToken, Source},
};
use std::{path::PathBuf, time::Duration};

/// How long ZFS may take to tell how large a stream is: it reads through the metadata of what is sent.
const ESTIMATE: Duration = Duration::from_secs(60);

/// Whether a stream that was cut off can be continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Continued {
    /// The sender still has what it needs, and it is the snapshot that is wanted.
    Yes,
    /// Why not.
    No(String),
}

/// What a token says of the stream it was made in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenFacts {
    /// The zvol and snapshot on the sending side.
    pub to_name: String,
    /// Its identity.
    pub to: u64,
    /// The identity of the snapshot that the difference begins at; 0 for a whole one.
    pub from: u64,
}

impl TokenFacts {
    /// Whether a sender that has `theirs` of the zvol `of` can go on, towards the snapshot `wanted`.
    pub fn continues(&self, of: &Dataset, theirs: &Holdings, wanted: Guid) -> Continued {
        if self.to != wanted.0 {
            return Continued::No(format!("it was of another snapshot, {}", self.to_name));
        }
        if !theirs.has(wanted) {
            return Continued::No(format!("its snapshot {} is not on {of} any more", self.to_name));
        }
        if self.from != 0 && !theirs.has(Guid(self.from)) {
            return Continued::No(format!("the snapshot {} that it is a difference from is not on {of} any more", self.from));
        }
        Continued::Yes
    }
}

/// The ZFS of this side, and the dataset that all volumes of the plane lie in here.
#[derive(Clone, Debug)]
pub struct Side {
    zfs: Zfs,
    within: Vec<Dataset>,
    program: PathBuf,
}

impl Side {
    /// A side whose volumes lie in one of the datasets `within`. Nothing outside is sent or received.
    pub fn new(zfs: Zfs, within: Vec<Dataset>) -> Self {
        Self { zfs, within, program: program("zfs") }
    }

    /// The ZFS of this side.
    pub fn zfs(&self) -> &Zfs {
        &self.zfs
    }

    /// What this side has of a zvol.
    ///
    /// # Errors
    /// When it cannot be told.
    pub async fn holdings(&self, of: &Dataset) -> Result<Holdings, HostError> {
        let [found] = self.zfs.look([of]).await?;
        let Some(Look { zvol, snapshots }) = found else { return Ok(Holdings::default()) };
        let token = zvol.resume_token.map(ResumeToken::new).transpose();
        Ok(Holdings {
            there: true,
            token: token.map_err(|why| fault(format_args!("the resume token of {of}"), why, ""))?,
            written: zvol.written,
            snapshots: snapshots.into_iter().map(held).collect(),
        })
    }

    /// The identity of a snapshot here.
    ///
    /// # Errors
    /// When it is not here.
    pub async fn guid(&self, of: &Snapshot) -> Result<Guid, HostError> {
        let found = self.zfs.find_snapshot(of).await?;
        found.map(|found| found.guid).ok_or_else(|| HostError(format!("there is no snapshot {of} on this host")))
    }

    /// What a token says.
    ///
    /// # Errors
    /// When ZFS cannot read it.
    pub async fn token(&self, token: &ResumeToken) -> Result<TokenFacts, HostError> {
        // It prints what is in the token, and then fails where it cannot send that.
        let args = ["send", "-nvP", "-t", token.as_str()];
        let (_, output) =
            exec::run_to_status(&self.program, &args, ESTIMATE).await.map_err(|error| HostError(error.to_string()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &output.stderr;
        token_facts(&text)
            .ok_or_else(|| HostError(format!("ZFS cannot read the token of a stream that was cut off: {}", output.stderr.trim())))
    }

    /// Whether a token's stream of a zvol here can go on, towards the snapshot `wanted`.
    ///
    /// # Errors
    /// When it cannot be told.
    pub async fn continued(&self, of: &Dataset, token: &ResumeToken, wanted: Guid) -> Result<Continued, HostError> {
        Ok(self.token(token).await?.continues(of, &self.holdings(of).await?, wanted))
    }

    /// About how many bytes a stream has.
    ///
    /// # Errors
    /// When it cannot be told.
    pub async fn estimate(&self, source: &Source) -> Result<u64, HostError> {
        let args = send_args(source, &["-nvP"]);
        let output = exec::run(&self.program, &args, ESTIMATE).await.map_err(|error| HostError(error.to_string()))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        size_in(&text)
            .ok_or_else(|| HostError(format!("ZFS does not tell how large the stream of {} is: {text:?}", source.dataset())))
    }

    /// The program that sends.
    pub(super) fn send(&self, source: &Source) -> Program {
        Program::new(&self.program, send_args(source, &[]))
    }

    /// The program that receives into a zvol, once it is made sure that it may: it is the volume's, or not there and made with its mark;
    /// and nobody uses it. With an epoch, a zvol that is there has to take that epoch's streams.
    ///
    /// # Errors
    /// Saying what is against it.
    pub(super) async fn receive(&self, volume: VolumeId, into: &Dataset, epoch: Option<Epoch>) -> Result<Program, HostError> {
        let mark = format!("{VOLUME}={volume}");
        let receives = epoch.map(|epoch| format!("{RECEIVES}={epoch}"));
        let mut args = vec!["receive", "-s", "-u"];
        if let Some(found) = self.find(volume, into).await? {
            self.zfs.refuse_in_use(into, "received into").await?;
            if let Some(epoch) = epoch {
                takes(&found, epoch)?;
            }
        } else {
            // Partitions and volume groups of a guest are nothing for this host.
            args.extend(["-o", "volmode=dev", "-o", "snapdev=hidden", "-o", &mark]);
            args.extend(receives.iter().flat_map(|receives| ["-o", receives.as_str()]));
        }
        args.push(into.as_str());
        Ok(Program::new(&self.program, args))
    }

    /// Whether a zvol is there, which may be spoken of in a stream of this volume.
    ///
    /// # Errors
    /// When it may not: it lies elsewhere, or has another's mark or none.
    pub(super) async fn check(&self, volume: VolumeId, dataset: &Dataset) -> Result<bool, HostError> {
        self.find(volume, dataset).await.map(|found| found.is_some())
    }

    async fn find(&self, volume: VolumeId, dataset: &Dataset) -> Result<Option<Zvol>, HostError> {
        if !self.within.iter().any(|place| dataset.is_below(place)) {
            return Err(HostError(format!("{dataset} is not where volumes are on this host; nothing is sent or received there")));
        }
        match self.zfs.volume(dataset).await? {
            None => Ok(None),
            Some(found) => match found.volume() {
                Some(mark) if mark == volume.to_string() => Ok(Some(found)),
                Some(mark) => Err(HostError(format!("{dataset} is of the volume {mark}, not of {volume}; it is left alone"))),
                None => Err(HostError(format!("{dataset} has no mark of ours; it is left alone"))),
            },
        }
    }
}

fn held(found: SnapshotFacts) -> Held {
    Held { name: found.name.name().to_owned(), guid: found.guid }
}

/// Makes sure that a zvol takes the streams of an epoch.
fn takes(into: &Zvol, epoch: Epoch) -> Result<(), HostError> {
    let takes = marks::epoch_in(into, RECEIVES);
    if takes == Some(epoch) {
        return Ok(());
    }
    let what = takes.map_or_else(|| "no streams".to_owned(), |other| format!("streams of epoch {other}"));
    Err(HostError(format!("{} takes {what} now, not of epoch {epoch}; nothing is received", into.name)))
}

fn send_args(source: &Source, more: &[&str]) -> Vec<String> {
    let mut args = vec!["send".to_owned()];
    args.extend(more.iter().map(|arg| (*arg).to_owned()));
    match source {
        Source::Rest { token, .. } => args.extend(["-t".to_owned(), token.as_str().to_owned()]),
        Source::Snapshot { from, to } => {
            args.extend(["-L", "-c", "-e"].map(str::to_owned));
            if let Some(from) = from {
                args.extend(["-i".to_owned(), format!("@{}", from.name())]);
            }
            args.push(to.to_string());
        }
    }
    args
}

/// The line `size<TAB>BYTES` of `zfs send -nvP`.
fn size_in(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("size")?.trim().parse().ok())
}

/// The fields that `zfs send -nvP -t` prints of a token: `toguid = 0x…`.
fn token_facts(text: &str) -> Option<TokenFacts> {
    let field =
        |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name)?.trim_start().strip_prefix("= ").map(str::trim));
    let number = |text: &str| u64::from_str_radix(text.strip_prefix("0x")?, 16).ok();
    let from = match field("fromguid") {
        Some(text) => number(text)?,
        None => 0,
    };
    Some(TokenFacts { to_name: field("toname")?.to_owned(), to: number(field("toguid")?)?, from })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = include_str!("../../../tests/transcripts/token.txt");

    #[test]
    fn tokens_say_of_what_they_are() {
        let whole = token_facts(TOKEN).unwrap();
        assert_eq!(whole, TokenFacts { to_name: "tank/v1@s1".into(), to: 0x3c77_2322_d71b_289b, from: 0 });
        let difference = token_facts(&format!("\tfromguid = 0x1f\n{TOKEN}")).unwrap();
        assert_eq!(difference.from, 0x1f);
        assert_eq!(token_facts("cannot resume send: 'tank/v1@s1' used in the initial send no longer exists"), None);
        assert_eq!(size_in(TOKEN), Some(14_348_080));
        assert_eq!(size_in("incremental\ts1\ttank/v1@s2\t624\nsize\t624\n"), Some(624));
        assert_eq!(size_in("size\n"), None);
    }

    #[test]
    fn a_stream_goes_on_only_towards_what_is_wanted_and_from_what_is_there() {
        let of = Dataset::new("tank/v1").unwrap();
        let has = |guids: &[u64]| Holdings {
            there: true,
            snapshots: guids.iter().map(|guid| Held { name: "s".into(), guid: Guid(*guid) }).collect(),
            ..Holdings::default()
        };
        let facts = TokenFacts { to_name: "tank/v1@s2".into(), to: 2, from: 1 };
        assert_eq!(facts.continues(&of, &has(&[1, 2]), Guid(2)), Continued::Yes);
        for (have, wanted) in [(&[1, 2, 3][..], 3), (&[1], 2), (&[2], 2), (&[], 2)] {
            assert!(matches!(facts.continues(&of, &has(have), Guid(wanted)), Continued::No(_)), "{have:?} {wanted}");
        }
        assert_eq!(TokenFacts { from: 0, ..facts }.continues(&of, &has(&[2]), Guid(2)), Continued::Yes);
    }

    #[test]
    fn what_is_sent() {
        let of = Dataset::new("tank/v1").unwrap();
        let words = |source: &Source| send_args(source, &[]).join(" ");
        let (a, b) = (of.at("a").unwrap(), of.at("b").unwrap());
        assert_eq!(words(&Source::whole(b.clone())), "send -L -c -e tank/v1@b");
        assert_eq!(words(&Source::difference(a, b).unwrap()), "send -L -c -e -i @a tank/v1@b");
        let token = ResumeToken::new("1-a-b-c").unwrap();
        assert_eq!(words(&Source::Rest { of, token }), "send -t 1-a-b-c");
    }
}
