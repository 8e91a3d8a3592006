//! What an operator can set of a NAS and of a volume: how often, when and how fast its contents move.
//!
//! A volume's own value counts before its NAS's, and that before the configuration's. Everything is parsed before anything is
//! changed: several changes are made all, or none.

mod value;

pub use value::{NextSync, Speed, SyncWorkers};

use crate::{Fault, Interval, RequestId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
};
use utoipa::ToSchema;

/// The longest name of a note, and the longest note, in bytes; and the most notes of a NAS.
const NOTE: (usize, usize, usize) = (64, 1024, 100);
/// So many earlier requests of a NAS are remembered.
const REMEMBERED: usize = 16;

/// The name of an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AttributeKey {
    /// How old the NAS's copy may get while its node has newer writes.
    Frequency,
    /// When the next write-back is made.
    NextSync,
    /// How fast a volume goes to its node.
    DownloadSpeed,
    /// How fast changes go home.
    UploadSpeed,
    /// How many transfers run at once.
    SyncWorkers,
}

impl AttributeKey {
    /// All there are.
    pub const ALL: [Self; 5] = [Self::Frequency, Self::NextSync, Self::DownloadSpeed, Self::UploadSpeed, Self::SyncWorkers];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Frequency => "frequency",
            Self::NextSync => "next-sync",
            Self::DownloadSpeed => "download-speed",
            Self::UploadSpeed => "upload-speed",
            Self::SyncWorkers => "sync-workers",
        }
    }

    /// The original's name for it.
    pub fn original(self) -> &'static str {
        match self {
            Self::Frequency => "frequency",
            Self::NextSync => "nextsync",
            Self::DownloadSpeed => "downloadspeed",
            Self::UploadSpeed => "uploadspeed",
            Self::SyncWorkers => "img_sync_workers",
        }
    }

    /// Whether a volume can have it.
    pub fn of_volumes(self) -> bool {
        self != Self::SyncWorkers
    }
}

impl FromStr for AttributeKey {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self, Fault> {
        Self::ALL.into_iter().find(|key| text == key.name() || text == key.original()).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.iter().map(|key| key.name()).collect();
            Fault::invalid(format!("{text:?} is no attribute")).next(format!("attributes are {}", names.join(", ")))
        })
    }
}

impl fmt::Display for AttributeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Where a value is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AttributeFrom {
    /// The volume itself.
    Volume,
    /// The NAS.
    Nas,
    /// The NAS's configuration.
    Default,
    /// Worked out from the frequency.
    Schedule,
    /// A note of the NAS, which has no effect.
    Note,
}

impl fmt::Display for AttributeFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Volume => "volume",
            Self::Nas => "nas",
            Self::Default => "default",
            Self::Schedule => "schedule",
            Self::Note => "note",
        })
    }
}

/// An attribute as it counts now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AttributeView {
    /// Its name.
    pub key: String,
    /// Its value, in a form that can be given again; nothing when there is none.
    pub value: Option<String>,
    /// The same as a number: seconds, bytes per second (0 for no limit), seconds since 1970, a count. Notes have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub number: Option<i64>,
    /// Where it is from.
    pub from: AttributeFrom,
}

/// Changes by name; nothing as a value takes the attribute away.
pub type Changes = BTreeMap<String, Option<String>>;

/// What was set of a volume, or of a NAS for all its volumes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// How old the NAS's copy may get while its node has newer writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frequency: Option<Interval>,
    /// When the next write-back is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_sync: Option<NextSync>,
    /// How fast a volume goes to its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download_speed: Option<Speed>,
    /// How fast changes go home.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload_speed: Option<Speed>,
    /// How many transfers run at once; of a NAS only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sync_workers: Option<SyncWorkers>,
}

impl Attributes {
    /// Nothing is set.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Changes one; the error names it.
    fn set(&mut self, key: AttributeKey, value: Option<&str>, now: Timestamp) -> Result<(), Fault> {
        fn parsed<T>(value: Option<&str>, parse: impl FnOnce(&str) -> Result<T, Fault>) -> Result<Option<T>, Fault> {
            value.map(parse).transpose()
        }
        let named = |fault: Fault| Fault { message: format!("{key}: {}", fault.message), ..fault };
        match key {
            AttributeKey::Frequency => self.frequency = parsed(value, str::parse).map_err(named)?,
            AttributeKey::NextSync => self.next_sync = parsed(value, |text| NextSync::parse(text, now)).map_err(named)?,
            AttributeKey::DownloadSpeed => self.download_speed = parsed(value, str::parse).map_err(named)?,
            AttributeKey::UploadSpeed => self.upload_speed = parsed(value, str::parse).map_err(named)?,
            AttributeKey::SyncWorkers => self.sync_workers = parsed(value, str::parse).map_err(named)?,
        }
        Ok(())
    }

    /// A volume's attributes after these changes.
    ///
    /// # Errors
    /// [`crate::FaultKind::Invalid`], naming the attribute that cannot be so.
    pub fn changed(mut self, changes: &Changes, now: Timestamp) -> Result<Self, Fault> {
        for (key, value) in known(changes)? {
            let key = key.map_err(|(fault, _)| fault)?;
            if !key.of_volumes() {
                return Err(
                    Fault::invalid(format!("{key} is an attribute of a NAS, not of a volume")).next("name the NAS to set it")
                );
            }
            self.set(key, value, now)?;
        }
        Ok(self)
    }
}

type Known<'a> = Vec<(Result<AttributeKey, (Fault, &'a str)>, Option<&'a str>)>;

/// The changes with their names understood, or not; under two names at once no attribute can be given.
fn known(changes: &Changes) -> Result<Known<'_>, Fault> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for (name, value) in changes {
        let key = name.parse::<AttributeKey>().map_err(|fault| (fault, name.as_str()));
        if let Ok(key) = &key
            && !seen.insert(*key)
        {
            return Err(Fault::invalid(format!("{key} is given twice")).next("give it once"));
        }
        all.push((key, value.as_deref()));
    }
    Ok(all)
}

/// What was set of a NAS: a row of its ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NasAttributes {
    /// For all its volumes.
    #[serde(flatten)]
    pub attributes: Attributes,
    /// What the original's operators keep there, without effect.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub notes: BTreeMap<String, String>,
    /// The requests whose changes were made last: a repeated one changes nothing again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub asked: Vec<RequestId>,
}

impl NasAttributes {
    /// The row after a request's changes; `notes` says that an unknown name is one of a note, not an error.
    ///
    /// # Errors
    /// [`crate::FaultKind::Invalid`], naming the attribute that cannot be so.
    pub fn changed(&self, changes: &Changes, notes: bool, request: RequestId, now: Timestamp) -> Result<Self, Fault> {
        if self.asked.contains(&request) {
            return Ok(self.clone());
        }
        let mut next = self.clone();
        for (key, value) in known(changes)? {
            match (key, value) {
                (Ok(key), value) => next.attributes.set(key, value, now)?,
                (Err((fault, _)), _) if !notes => return Err(fault),
                (Err((_, name)), None) => drop(next.notes.remove(name)),
                (Err((_, name)), Some(text)) => {
                    check_note(name, text)?;
                    next.notes.insert(name.to_owned(), text.to_owned());
                }
            }
        }
        if next.notes.len() > NOTE.2 {
            return Err(Fault::invalid(format!("a NAS keeps at most {} notes", NOTE.2)).next("take some away"));
        }
        next.asked.insert(0, request);
        next.asked.truncate(REMEMBERED);
        Ok(next)
    }
}

fn check_note(name: &str, text: &str) -> Result<(), Fault> {
    let well_formed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > NOTE.0 || !name.chars().all(well_formed) {
        return Err(Fault::invalid(format!("{:?} is no name of an attribute", name.chars().take(80).collect::<String>()))
            .next(format!("names are letters, digits, '.', '_' and '-', at most {}", NOTE.0)));
    }
    if text.len() > NOTE.1 || text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        return Err(Fault::invalid(format!("{name}: a note is text of at most {} bytes", NOTE.1)));
    }
    Ok(())
}

/// What holds where nothing was set: the NAS's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Defaults {
    /// How old the NAS's copy may get while its node has newer writes.
    pub frequency: Interval,
    /// How fast a volume goes to its node.
    pub download_speed: Speed,
    /// How fast changes go home.
    pub upload_speed: Speed,
    /// How many transfers run at once.
    pub sync_workers: SyncWorkers,
}

impl Defaults {
    /// No limits but on the transfers at once.
    pub fn of(frequency: Interval) -> Self {
        Defaults {
            frequency,
            download_speed: Speed::UNLIMITED,
            upload_speed: Speed::UNLIMITED,
            sync_workers: SyncWorkers::default(),
        }
    }
}

/// What counts for a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effective {
    /// How old the NAS's copy may get while its node has newer writes.
    pub frequency: Interval,
    /// When the next write-back is made: the volume's own word, and the NAS's.
    pub next_sync: [Option<NextSync>; 2],
    /// How fast it goes to its node, and its changes home.
    pub speeds: Speeds,
}

/// How fast a volume's transfers may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speeds {
    /// To the node.
    pub download: Speed,
    /// To the NAS.
    pub upload: Speed,
}

fn inherited<T>(volume: Option<T>, nas: Option<T>, default: T) -> (T, AttributeFrom) {
    match (volume, nas) {
        (Some(value), _) => (value, AttributeFrom::Volume),
        (None, Some(value)) => (value, AttributeFrom::Nas),
        (None, None) => (default, AttributeFrom::Default),
    }
}

/// What counts for a volume of a NAS.
pub fn effective(volume: &Attributes, nas: &Attributes, default: &Defaults) -> Effective {
    Effective {
        frequency: inherited(volume.frequency, nas.frequency, default.frequency).0,
        next_sync: [volume.next_sync, nas.next_sync],
        speeds: Speeds {
            download: inherited(volume.download_speed, nas.download_speed, default.download_speed).0,
            upload: inherited(volume.upload_speed, nas.upload_speed, default.upload_speed).0,
        },
    }
}

/// How many transfers a NAS lets run at once.
pub fn sync_workers(nas: &Attributes, default: &Defaults) -> SyncWorkers {
    nas.sync_workers.unwrap_or(default.sync_workers)
}

fn seconds(interval: Interval) -> i64 {
    i64::try_from(interval.duration().as_secs()).unwrap_or(i64::MAX)
}

/// The attributes of a volume, or with `volume` nothing of the NAS itself, as they count. `due` is when the volume's next
/// write-back will be made and where that time is from, when one will be.
pub fn views(
    volume: Option<&Attributes>,
    nas: &NasAttributes,
    default: &Defaults,
    due: Option<(Timestamp, AttributeFrom)>,
) -> Vec<AttributeView> {
    let none = Attributes::default();
    let (own, of_nas) = (volume.unwrap_or(&none), &nas.attributes);
    let view = |key: AttributeKey, value: Option<String>, number: Option<i64>, from| AttributeView {
        key: key.name().to_owned(),
        value,
        number,
        from,
    };
    let speed = |key, (speed, from): (Speed, AttributeFrom)| {
        view(key, Some(speed.to_string()), Some(i64::try_from(speed.get()).unwrap_or(i64::MAX)), from)
    };
    let (frequency, from) = inherited(own.frequency, of_nas.frequency, default.frequency);
    let given = own.next_sync.map(|n| (n.at, AttributeFrom::Volume));
    let given = given.or(of_nas.next_sync.map(|n| (n.at, AttributeFrom::Nas)));
    let next = due.or(given);
    let mut all = vec![
        view(AttributeKey::Frequency, Some(frequency.to_string()), Some(seconds(frequency)), from),
        view(
            AttributeKey::NextSync,
            next.map(|(at, _)| at.to_string()),
            next.map(|(at, _)| at.as_second()),
            next.map_or(AttributeFrom::Schedule, |(_, from)| from),
        ),
        speed(AttributeKey::DownloadSpeed, inherited(own.download_speed, of_nas.download_speed, default.download_speed)),
        speed(AttributeKey::UploadSpeed, inherited(own.upload_speed, of_nas.upload_speed, default.upload_speed)),
    ];
    if volume.is_none() {
        let (workers, from) = inherited(None, of_nas.sync_workers, default.sync_workers);
        let number = i64::try_from(workers.get()).ok();
        all.push(view(AttributeKey::SyncWorkers, Some(workers.to_string()), number, from));
        all.extend(nas.notes.iter().map(|(name, text)| AttributeView {
            key: name.clone(),
            value: Some(text.clone()),
            number: None,
            from: AttributeFrom::Note,
        }));
    }
    all
}

#[cfg(test)]
mod tests;
