//! Names, parsed once: what got past these types can be put into a path, an IQN, an NBD export name or a message.

use crate::Fault;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The longest name, in bytes. Leaves room for pool, suffixes and marks in every place a name ends up in (ZFS: 255 for
/// the whole dataset, IQN: 223, file name: 255).
pub const LONGEST: usize = 100;

fn check(kind: &str, text: &str) -> Result<(), Fault> {
    let say = |why: String| Fault::invalid(format!("{kind} name {:?} {why}", shorten(text)));
    let hint = "names are letters, digits, '.', '_' and '-', beginning with a letter or digit";
    if text.is_empty() {
        return Err(Fault::invalid(format!("the {kind} name is empty")).next(hint));
    }
    if text.len() > LONGEST {
        return Err(say(format!("is {} bytes long; at most {LONGEST} are allowed", text.len())));
    }
    if let Some(bad) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
        return Err(say(format!("has the character {bad:?}")).next(hint));
    }
    if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        return Err(say("does not begin with a letter or digit".to_owned()).next(hint));
    }
    Ok(())
}

fn shorten(text: &str) -> String {
    if text.chars().count() <= 40 { text.to_owned() } else { text.chars().take(37).chain("...".chars()).collect() }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Parses a name.
            ///
            /// # Errors
            /// [`crate::FaultKind::Invalid`], naming what is wrong, for a name that is empty, too long or has a character outside
            /// `[A-Za-z0-9._-]`.
            pub fn new(text: impl Into<String>) -> Result<Self, Fault> {
                let text = text.into();
                check($kind, &text).map(|()| $name(text))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Fault;
            fn from_str(text: &str) -> Result<Self, Fault> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Fault;
            fn try_from(text: String) -> Result<Self, Fault> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name!(
    /// The name of a host: a NAS, a VM container or the front end.
    HostName,
    "host"
);
name!(
    /// The name of a pool on a NAS.
    PoolName,
    "pool"
);
name!(
    /// The name of a volume in its pool.
    VolumeName,
    "volume"
);

/// `NAS:POOL/NAME`, or any shorter part of it: how an operator names a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Selector {
    /// The NAS, when given.
    pub nas: Option<HostName>,
    /// The pool, when given.
    pub pool: Option<PoolName>,
    /// The volume's name.
    pub name: VolumeName,
}

impl Selector {
    /// Whether a volume of these names is meant.
    pub fn matches(&self, nas: &HostName, pool: &PoolName, name: &VolumeName) -> bool {
        self.name == *name && self.pool.as_ref().is_none_or(|p| p == pool) && self.nas.as_ref().is_none_or(|n| n == nas)
    }
}

impl FromStr for Selector {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self, Fault> {
        let (nas, rest) = match text.split_once(':') {
            Some((nas, rest)) => (Some(HostName::new(nas)?), rest),
            None => (None, text),
        };
        let (pool, name) = match rest.split_once('/') {
            Some((pool, name)) => (Some(PoolName::new(pool)?), name),
            None => (None, rest),
        };
        Ok(Selector { nas, pool, name: VolumeName::new(name)? })
    }
}

impl TryFrom<String> for Selector {
    type Error = Fault;
    fn try_from(text: String) -> Result<Self, Fault> {
        text.parse()
    }
}

impl From<Selector> for String {
    fn from(selector: Selector) -> String {
        selector.to_string()
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(nas) = &self.nas {
            write!(f, "{nas}:")?;
        }
        if let Some(pool) = &self.pool {
            write!(f, "{pool}/")?;
        }
        write!(f, "{}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bad_names_say_what_is_wrong() {
        let long = "a".repeat(300);
        for (bad, why) in [
            ("", "is empty"),
            (long.as_str(), "300 bytes"),
            ("../x", "'/'"),
            ("a b", "' '"),
            ("a;rm", "';'"),
            ("a'--", "'\\''"),
            (".hidden", "begin"),
            ("-rf", "begin"),
            ("näme", "'ä'"),
            ("a\0b", "'\\0'"),
        ] {
            let fault = VolumeName::new(bad).unwrap_err();
            assert!(fault.message.contains(why), "{bad:?}: {fault}");
        }
    }

    #[test]
    fn selectors_match_any_part() {
        let (nas, pool, name) = ("nas-0-0".parse().unwrap(), "tank".parse().unwrap(), "vol1".parse().unwrap());
        for text in ["vol1", "tank/vol1", "nas-0-0:tank/vol1", "nas-0-0:vol1"] {
            let selector: Selector = text.parse().unwrap();
            assert!(selector.matches(&nas, &pool, &name));
            assert_eq!(selector.to_string(), text);
        }
        assert!(!"other/vol1".parse::<Selector>().unwrap().matches(&nas, &pool, &name));
        assert!("a/b/c".parse::<Selector>().is_err());
        assert!(":/".parse::<Selector>().is_err());
    }

    proptest! {
        #[test]
        fn a_name_that_parses_is_one_safe_path_component(text in ".{0,120}") {
            if let Ok(name) = VolumeName::new(text.clone()) {
                prop_assert_eq!(name.as_str(), &text);
                prop_assert!(!text.contains(['/', '\0', ' ', ',', '=']) && text != "." && text != "..");
            }
            let _ = text.parse::<Selector>();
        }
    }
}
