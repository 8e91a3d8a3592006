//! What an observation of a host can say.

use serde::{Deserialize, Serialize};

/// The result of looking at something on a host.
///
/// An observation that failed is not absence: planners must never destroy, overwrite or release anything on
/// [`Fact::Unknown`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact<T> {
    /// Seen, just now.
    Known(T),
    /// Could not be seen, and why.
    Unknown(String),
}

impl<T> Fact<T> {
    /// The value, when it is known.
    pub fn known(&self) -> Option<&T> {
        match self {
            Fact::Known(value) => Some(value),
            Fact::Unknown(_) => None,
        }
    }
}
