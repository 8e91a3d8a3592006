//! What is said when something is not done: one shape for messages, API and CLI.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The kind of a [`Fault`]; decides the CLI's exit code and the HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The request makes no sense: a bad name, size or combination. Nothing was changed.
    Invalid,
    /// The thing named does not exist.
    NotFound,
    /// The request is understood and refused: in use, not verified, not ours, already there. Nothing was changed.
    Refused,
    /// It was tried and did not work.
    Failed,
    /// A host or service could not be reached.
    Unreachable,
    /// Not finished before the deadline; it goes on.
    Unfinished,
}

/// An error a person reads: what, where, why, and what to do next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What kind of refusal or failure it is.
    pub kind: FaultKind,
    /// What happened, naming the thing and the host.
    pub message: String,
    /// What to do next; empty when there is nothing to do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub next: String,
}

impl Fault {
    /// A fault of `kind` that says `message`.
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Fault { kind, message: message.into(), next: String::new() }
    }

    /// [`FaultKind::Invalid`].
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(FaultKind::Invalid, message)
    }

    /// [`FaultKind::NotFound`].
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(FaultKind::NotFound, message)
    }

    /// [`FaultKind::Refused`].
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(FaultKind::Refused, message)
    }

    /// [`FaultKind::Failed`].
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(FaultKind::Failed, message)
    }

    /// [`FaultKind::Unreachable`].
    pub fn unreachable(message: impl Into<String>) -> Self {
        Self::new(FaultKind::Unreachable, message)
    }

    /// [`FaultKind::Unfinished`].
    pub fn unfinished(message: impl Into<String>) -> Self {
        Self::new(FaultKind::Unfinished, message)
    }

    /// The same fault with the next step for the operator.
    #[must_use]
    pub fn next(mut self, next: impl Into<String>) -> Self {
        self.next = next.into();
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.next.is_empty() { f.write_str(&self.message) } else { write!(f, "{}; {}", self.message, self.next) }
    }
}

impl std::error::Error for Fault {}
