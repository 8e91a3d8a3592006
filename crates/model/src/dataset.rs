//! Names of ZFS: parsed once, strictly, so that what got past these types can be an argument of a program, a word of a
//! command over ssh and part of a path.
//!
//! ZFS allows more (blanks, for one). What has such a name is nothing of ours, and is not spoken to.

use crate::Fault;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The longest name of a dataset or snapshot, in bytes, that ZFS takes (`ZFS_MAX_DATASET_NAME_LEN` without its ending zero).
pub const LONGEST: usize = 255;

fn invalid(kind: &str, text: &str, why: &str) -> Fault {
    let shown: String = text.chars().take(80).collect();
    Fault::invalid(format!("{shown:?} is no {kind} img-storage can use: it {why}"))
        .next("names are letters, digits, '.', '_', ':' and '-', beginning with a letter or digit, with '/' between them")
}

fn component(kind: &str, whole: &str, text: &str) -> Result<(), Fault> {
    if text.is_empty() {
        return Err(invalid(kind, whole, "has an empty part"));
    }
    if let Some(bad) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '-'))) {
        return Err(invalid(kind, whole, &format!("has the character {bad:?}")));
    }
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(invalid(kind, whole, "has a part that does not begin with a letter or digit"));
    }
    Ok(())
}

/// The name of a dataset: a pool, a file system or a zvol, such as `tank/img-storage/vol1`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Dataset(String);

impl Dataset {
    /// Parses a name.
    ///
    /// # Errors
    /// [`crate::FaultKind::Invalid`], naming what is wrong.
    pub fn new(text: impl Into<String>) -> Result<Self, Fault> {
        let text = text.into();
        if text.len() > LONGEST {
            return Err(invalid("dataset", &text, &format!("is {} bytes long; ZFS takes {LONGEST}", text.len())));
        }
        text.split('/').try_for_each(|part| component("dataset", &text, part))?;
        Ok(Self(text))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The pool it lies in.
    pub fn pool(&self) -> &str {
        self.0.split('/').next().unwrap_or(&self.0)
    }

    /// Its last part.
    pub fn leaf(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// What it lies directly in; a pool lies in nothing.
    pub fn parent(&self) -> Option<Self> {
        self.0.rsplit_once('/').map(|(parent, _)| Self(parent.to_owned()))
    }

    /// A dataset directly in it.
    ///
    /// # Errors
    /// When `leaf` is no single part of a name, or the whole becomes too long.
    pub fn child(&self, leaf: &str) -> Result<Self, Fault> {
        component("dataset", leaf, leaf)?;
        Self::new(format!("{}/{leaf}", self.0))
    }

    /// A snapshot of it.
    ///
    /// # Errors
    /// As [`Self::child`].
    pub fn at(&self, name: &str) -> Result<Snapshot, Fault> {
        Snapshot::new(format!("{}@{name}", self.0))
    }

    /// Whether it lies in `other`, at any depth; nothing lies in itself.
    pub fn is_below(&self, other: &Self) -> bool {
        self.0.strip_prefix(&other.0).is_some_and(|rest| rest.starts_with('/'))
    }
}

/// The name of a snapshot, such as `tank/vol1@s1`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Snapshot {
    of: Dataset,
    name: String,
}

impl Snapshot {
    /// Parses a name.
    ///
    /// # Errors
    /// [`crate::FaultKind::Invalid`], naming what is wrong.
    pub fn new(text: impl AsRef<str>) -> Result<Self, Fault> {
        let text = text.as_ref();
        let (of, name) = text.split_once('@').ok_or_else(|| invalid("snapshot", text, "has no '@'"))?;
        if text.len() > LONGEST {
            return Err(invalid("snapshot", text, &format!("is {} bytes long; ZFS takes {LONGEST}", text.len())));
        }
        component("snapshot", text, name)?;
        Ok(Self { of: Dataset::new(of)?, name: name.to_owned() })
    }

    /// Of what it is.
    pub fn dataset(&self) -> &Dataset {
        &self.of
    }

    /// What is after the `@`.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The content's identity of a dataset or snapshot: a snapshot keeps it through send and receive, so equal ones are the same
/// point in time on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Guid(pub u64);

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Dataset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Display for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.of, self.name)
    }
}

impl FromStr for Dataset {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self, Fault> {
        Self::new(text)
    }
}

impl FromStr for Snapshot {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self, Fault> {
        Self::new(text)
    }
}

impl TryFrom<String> for Dataset {
    type Error = Fault;
    fn try_from(text: String) -> Result<Self, Fault> {
        Self::new(text)
    }
}

impl TryFrom<String> for Snapshot {
    type Error = Fault;
    fn try_from(text: String) -> Result<Self, Fault> {
        Self::new(text)
    }
}

impl From<Dataset> for String {
    fn from(name: Dataset) -> Self {
        name.0
    }
}

impl From<Snapshot> for String {
    fn from(name: Snapshot) -> Self {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts_of_names() {
        let volume: Dataset = "tank/img-storage/vol1".parse().unwrap();
        assert_eq!((volume.pool(), volume.leaf()), ("tank", "vol1"));
        let parent = volume.parent().unwrap();
        assert_eq!(parent.as_str(), "tank/img-storage");
        assert!(volume.is_below(&parent) && !parent.is_below(&parent) && !parent.is_below(&volume));
        assert!(!Dataset::new("tank/img-storage2/x").unwrap().is_below(&parent));
        assert_eq!(Dataset::new("tank").unwrap().parent(), None);
        assert_eq!(volume.at("s1").unwrap().to_string(), "tank/img-storage/vol1@s1");
        assert!(volume.child("a/b").is_err() && volume.at("").is_err() && volume.at("a@b").is_err());
    }

    #[test]
    fn what_could_be_taken_for_something_else_is_no_name() {
        for bad in
            ["", "/", "tank/", "/tank", "a//b", "-r", "a/-r", "a/..", "a b", "a@b", "a%b", "a#b", "a,b", "a;b", "a\nb", "ä"]
        {
            assert!(Dataset::new(bad).is_err(), "{bad:?}");
        }
        for bad in ["a", "a@", "@a", "a@b@c", "a@-r", "a@b/c", "a@b,c", "a@b%c"] {
            assert!(Snapshot::new(bad).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_name_that_parses_is_one_safe_word(text in "[a-z@/:. \\-]{0,12}|.{0,300}") {
            if let Ok(name) = Dataset::new(text.clone()) {
                prop_assert_eq!(name.as_str(), &text);
                prop_assert!(!text.starts_with(['-', '/', '.']) && !text.contains([' ', '@', '\n', '\t', '\'', '$']));
                prop_assert!(!text.split('/').any(|part| part.is_empty() || part == ".."));
            }
            if let Ok(name) = Snapshot::new(&text) {
                prop_assert_eq!(name.to_string(), text);
            }
        }
    }
}
