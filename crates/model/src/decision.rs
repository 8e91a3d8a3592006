//! What a planner answers.

/// The next thing to do about a volume: `S` are the effects, `C` the changes of the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision<S, C> {
    /// Run this, then look again, at the least at all that it can have changed.
    Do(S),
    /// Make this durable, then plan on.
    Record(C),
    /// Nothing can be done until something changes elsewhere; look again when it does, or after a while.
    Wait(String),
    /// As [`Decision::Wait`], but it will not go on by itself or has no business being so: shown to the operator.
    Stuck(String),
    /// Everything is as it is wanted.
    Rest,
}

impl<S, C> Decision<S, C> {
    /// The same decision with its effect in other words.
    pub fn map<T>(self, word: impl FnOnce(S) -> T) -> Decision<T, C> {
        match self {
            Decision::Do(step) => Decision::Do(word(step)),
            Decision::Record(change) => Decision::Record(change),
            Decision::Wait(why) => Decision::Wait(why),
            Decision::Stuck(why) => Decision::Stuck(why),
            Decision::Rest => Decision::Rest,
        }
    }
}
