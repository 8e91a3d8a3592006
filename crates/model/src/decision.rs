//! What a planner answers.

/// The next thing to do about a volume: `S` are the effects, `C` the changes of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision<S, C> {
    /// Run this, then look again.
    Do(S),
    /// Make this durable, then look again.
    Record(C),
    /// Nothing can be done until something changes elsewhere; look again when it does, or after a while.
    Wait(String),
    /// As [`Decision::Wait`], but it will not go on by itself or has no business being so: shown to the operator.
    Stuck(String),
    /// Everything is as it is wanted.
    Rest,
}
