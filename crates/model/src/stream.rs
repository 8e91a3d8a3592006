//! What a NAS may ask of a node's `img-storage stream` over ssh: the strict grammar of one line.
//!
//! The node's `authorized_keys` forces that program, whatever the NAS's ssh asked to be run; the line asked for comes in
//! `SSH_ORIGINAL_COMMAND` and means only what is written here. Words are parted by one space each, and every word is parsed by
//! its own type, so there is nothing in it that a program could take for an option, a path or another command.
//! Every line says the volume, which the dataset's mark has to name.

use crate::{Dataset, Epoch, Fault, Guid, Snapshot, VolumeId};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The longest line that is looked at, in bytes. A token of ZFS is a few hundred.
pub const LONGEST: usize = 4096;

/// With what a stream that was cut off is continued; made by the receiving ZFS.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ResumeToken(String);

impl ResumeToken {
    /// Parses a token: hexadecimal numbers with `-` between.
    ///
    /// # Errors
    /// [`crate::FaultKind::Invalid`] for anything else.
    pub fn new(text: impl Into<String>) -> Result<Self, Fault> {
        let text = text.into();
        let is_part = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if text.len() < LONGEST - 512 && text.split('-').count() == 4 && text.split('-').all(is_part) {
            return Ok(Self(text));
        }
        let shown: String = text.chars().take(40).collect();
        Err(Fault::invalid(format!("{shown:?} is no token of a stream that was cut off")))
    }

    /// The token as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ResumeToken {
    type Error = Fault;
    fn try_from(text: String) -> Result<Self, Fault> {
        Self::new(text)
    }
}

impl From<ResumeToken> for String {
    fn from(token: ResumeToken) -> Self {
        token.0
    }
}

/// What is sent of a zvol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A snapshot whole, or as a difference to an earlier one of the same zvol.
    Snapshot {
        /// The earlier one.
        from: Option<Snapshot>,
        /// What the other side has afterwards.
        to: Snapshot,
    },
    /// The rest of a stream that was cut off.
    Rest {
        /// Of which zvol; the token has to be of one of its snapshots.
        of: Dataset,
        /// Where it was cut off.
        token: ResumeToken,
    },
}

impl Source {
    /// A difference; both have to be of one zvol.
    ///
    /// # Errors
    /// [`crate::FaultKind::Invalid`] when they are not.
    pub fn difference(from: Snapshot, to: Snapshot) -> Result<Self, Fault> {
        if from.dataset() != to.dataset() || from == to {
            return Err(Fault::invalid(format!(
                "there is no difference from {from} to {to}: they must be two snapshots of one zvol"
            )));
        }
        Ok(Self::Snapshot { from: Some(from), to })
    }

    /// A whole snapshot.
    pub fn whole(to: Snapshot) -> Self {
        Self::Snapshot { from: None, to }
    }

    /// The zvol that is sent.
    pub fn dataset(&self) -> &Dataset {
        match self {
            Self::Snapshot { to, .. } => to.dataset(),
            Self::Rest { of, .. } => of,
        }
    }
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Send this on standard output.
    Send(Source),
    /// Tell how many bytes that would be.
    Estimate(Source),
    /// Receive standard input into a zvol. It is made with the volume's mark when it is not there.
    Receive {
        /// Into which.
        into: Dataset,
        /// The mapping whose stream it is. A zvol that is there takes it only when its mark says so: ZFS would receive into one that is
        /// the newest there is.
        epoch: Epoch,
    },
    /// Tell what there is: the answer is a [`Holdings`].
    State(Dataset),
    /// Throw away what a stream that was cut off has brought.
    Discard(Dataset),
}

/// One line: a request about a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// Of which volume the dataset has to be.
    pub volume: VolumeId,
    /// What is asked.
    pub ask: Ask,
}

impl Command {
    /// The dataset that it is about.
    pub fn dataset(&self) -> &Dataset {
        match &self.ask {
            Ask::Send(source) | Ask::Estimate(source) => source.dataset(),
            Ask::Receive { into: dataset, .. } | Ask::State(dataset) | Ask::Discard(dataset) => dataset,
        }
    }
}

/// What a side has of a volume for streams.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holdings {
    /// Whether there is a zvol at all.
    pub there: bool,
    /// With what a stream into it that was cut off can be continued.
    pub token: Option<ResumeToken>,
    /// Bytes written since its newest snapshot.
    pub written: u64,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<Held>,
}

/// A snapshot that a side has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Its name, without the zvol's.
    pub name: String,
    /// Its identity, by which the two sides compare.
    pub guid: Guid,
}

impl Holdings {
    /// Whether the snapshot is there, under whatever name.
    pub fn has(&self, guid: Guid) -> bool {
        self.snapshots.iter().any(|held| held.guid == guid)
    }

    /// The newest snapshot that both sides have: what the next difference begins at. In this side's names.
    pub fn newest_common(&self, other: &Self) -> Option<&Held> {
        self.snapshots.iter().rev().find(|held| other.has(held.guid))
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let volume = self.volume;
        let source = |f: &mut fmt::Formatter<'_>, whole: &str, rest: &str, source: &Source| match source {
            Source::Snapshot { from, to } => {
                let from = from.as_ref().map_or("-", Snapshot::name);
                write!(f, "{whole} {volume} {} {from} {}", to.dataset(), to.name())
            }
            Source::Rest { of, token } => write!(f, "{rest} {volume} {of} {}", token.as_str()),
        };
        match &self.ask {
            Ask::Send(what) => source(f, "send", "resume", what),
            Ask::Estimate(what) => source(f, "estimate", "estimate-resume", what),
            Ask::Receive { into, epoch } => write!(f, "receive {volume} {into} {epoch}"),
            Ask::State(of) => write!(f, "state {volume} {of}"),
            Ask::Discard(of) => write!(f, "discard {volume} {of}"),
        }
    }
}

impl FromStr for Command {
    type Err = Fault;
    fn from_str(line: &str) -> Result<Self, Fault> {
        let bad = |why: &str| Fault::invalid(format!("this is no request for a stream: {why}"));
        if line.len() > LONGEST {
            return Err(bad(&format!("it is {} bytes long", line.len())));
        }
        let words: Vec<&str> = line.split(' ').collect();
        let [verb, volume, dataset, rest @ ..] = &words[..] else {
            return Err(bad("it does not have a verb, a volume and a dataset"));
        };
        let id = uuid::Uuid::try_parse(volume).map(VolumeId).map_err(|_| bad("its volume is no identity"))?;
        if id.to_string() != *volume {
            return Err(bad("its volume is not written as identities are"));
        }
        let dataset = Dataset::new(*dataset)?;
        let ask = match (*verb, rest) {
            ("send", [from, to]) => Ask::Send(snapshots(&dataset, from, to)?),
            ("estimate", [from, to]) => Ask::Estimate(snapshots(&dataset, from, to)?),
            ("resume", [token]) => Ask::Send(Source::Rest { of: dataset, token: ResumeToken::new(*token)? }),
            ("estimate-resume", [token]) => Ask::Estimate(Source::Rest { of: dataset, token: ResumeToken::new(*token)? }),
            ("receive", [epoch]) => {
                Ask::Receive { into: dataset, epoch: number(epoch).ok_or_else(|| bad("its epoch is no number"))? }
            }
            ("state", []) => Ask::State(dataset),
            ("discard", []) => Ask::Discard(dataset),
            _ => return Err(bad("its words fit none of send, resume, estimate, estimate-resume, receive, state and discard")),
        };
        Ok(Self { volume: id, ask })
    }
}

/// An epoch, as it is written.
fn number(text: &str) -> Option<Epoch> {
    text.parse().ok().map(Epoch).filter(|epoch| epoch.to_string() == text)
}

fn snapshots(of: &Dataset, from: &str, to: &str) -> Result<Source, Fault> {
    let to = of.at(to)?;
    if from == "-" { Ok(Source::whole(to)) } else { Source::difference(of.at(from)?, to) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    const ID: &str = "00000000-0000-0000-0000-000000000007";

    #[test]
    fn lines_say_what_they_mean() {
        let parse = |line: &str| line.replace("ID", ID).parse::<Command>();
        for line in [
            "send ID loc/vol1 - s1",
            "send ID loc/vol1 s1 s2",
            "estimate ID loc/vol1 s1 s2",
            "resume ID loc/vol1 1-c74259f06-f0-789c636064000310a500c4ec50360710e72765a5269730304005e0",
            "receive ID loc/img/vol1 0",
            "receive ID loc/img/vol1 17",
            "state ID loc/vol1",
            "discard ID loc/vol1",
        ] {
            assert_eq!(parse(line).unwrap().to_string(), line.replace("ID", ID));
        }
        for bad in [
            "",
            "send",
            "send ID",
            "send ID loc/vol1 s1",
            "send ID loc/vol1 s1 s1",
            "send ID loc/vol1 - s1 -R",
            "send ID loc/vol1 -R s1",
            "send ID -R - s1",
            "send ID loc/vol1@x - s1",
            "send  ID loc/vol1 - s1",
            " send ID loc/vol1 - s1",
            "send ID loc/vol1 - s1 ",
            "send ID loc/vol1 - s1\n",
            "send ID loc/vol1 - s1; reboot",
            "send ID loc/../vol1 - s1",
            "send ID loc/$(reboot) - s1",
            "send 7 loc/vol1 - s1",
            "send 00000000000000000000000000000007 loc/vol1 - s1",
            "resume ID loc/vol1 1-c-f0-789z",
            "resume ID loc/vol1 -n",
            "receive ID loc/vol1 -F",
            "receive ID loc/vol1",
            "receive ID loc/vol1 07",
            "receive ID loc/vol1 +7",
            "receive ID",
            "destroy ID loc/vol1",
            "SEND ID loc/vol1 - s1",
        ] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_newest_common_snapshot_is_found_by_identity() {
        let held = |name: &str, guid| Held { name: name.into(), guid: Guid(guid) };
        let with = |snapshots| Holdings { there: true, snapshots, ..Holdings::default() };
        let here = with(vec![held("a", 1), held("b", 2), held("c", 3)]);
        let there = with(vec![held("x", 1), held("y", 2), held("c", 9)]);
        assert_eq!(here.newest_common(&there), Some(&held("b", 2)));
        assert_eq!(there.newest_common(&here), Some(&held("y", 2)));
        assert_eq!(here.newest_common(&Holdings::default()), None);
    }

    fn part() -> impl Strategy<Value = String> {
        "[a-zA-Z0-9][a-zA-Z0-9._:-]{0,12}"
    }

    fn source() -> impl Strategy<Value = Source> {
        let dataset = || (part(), part()).prop_map(|(pool, name)| Dataset::new(format!("{pool}/{name}")).unwrap());
        let snapshot = (dataset(), proptest::option::of(part()), part()).prop_filter_map("distinct", |(of, from, to)| {
            let to = of.at(&to).ok()?;
            match from {
                None => Some(Source::whole(to)),
                Some(from) => Source::difference(of.at(&from).ok()?, to).ok(),
            }
        });
        let token = "1-[0-9a-f]{1,9}-[0-9a-f]{1,3}-[0-9a-f]{1,300}";
        let rest = (dataset(), token).prop_map(|(of, token)| Source::Rest { of, token: ResumeToken::new(token).unwrap() });
        prop_oneof![snapshot, rest]
    }

    fn ask() -> impl Strategy<Value = Ask> {
        let dataset = || part().prop_map(|name| Dataset::new(name).unwrap());
        prop_oneof![
            source().prop_map(Ask::Send),
            source().prop_map(Ask::Estimate),
            (dataset(), any::<u64>()).prop_map(|(into, epoch)| Ask::Receive { into, epoch: Epoch(epoch) }),
            dataset().prop_map(Ask::State),
            dataset().prop_map(Ask::Discard),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(ask in ask(), id in any::<u128>()) {
            let command = Command { volume: VolumeId(Uuid::from_u128(id)), ask };
            prop_assert_eq!(command.to_string().parse::<Command>().unwrap(), command);
        }

        /// There is one way to write a command, so nothing can be hidden in one.
        #[test]
        fn what_is_read_is_written_the_same(
            line in "(send|resume|receive|state|discard|estimate) 00000000-0000-0000-0000-00000000000[0-9] [a-z/@.-]{1,9}( [a-z0-9@/;$ -]{0,6}){0,3}|.{0,60}"
        ) {
            if let Ok(command) = line.parse::<Command>() {
                prop_assert_eq!(command.to_string(), line);
            }
        }

        #[test]
        fn no_word_is_an_option(ask in ask(), id in any::<u128>()) {
            let line = Command { volume: VolumeId(Uuid::from_u128(id)), ask }.to_string();
            prop_assert!(line.split(' ').all(|word| word == "-" || !word.starts_with('-')));
        }
    }
}
