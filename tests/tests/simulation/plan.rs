//! What goes wrong in one run, and how it is written down so that the run can be repeated.

use img_storage_host::sim::Fault;
use std::{fmt, str::FromStr};

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// It arrives twice.
    Double,
    /// It does not arrive.
    Lost,
    /// It arrives so many milliseconds later, after newer ones.
    Late(u64),
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing.
    None,
    /// A verb of a host, counted from 0.
    Effect(usize, Fault),
    /// A message, counted from 0.
    Message(usize, Mishap),
    /// Many things, by the seed.
    Random,
}

/// One run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The scenario's name.
    pub scenario: String,
    /// What goes wrong.
    pub trouble: Trouble,
    /// Seeds guests, identities, delays and random troubles.
    pub seed: u64,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.scenario)?;
        match &self.trouble {
            Trouble::None => f.write_str("-:none")?,
            Trouble::Effect(number, fault) => write!(f, "{number}:{}", fault_name(*fault))?,
            Trouble::Message(number, Mishap::Double) => write!(f, "m{number}:double")?,
            Trouble::Message(number, Mishap::Lost) => write!(f, "m{number}:lost")?,
            Trouble::Message(number, Mishap::Late(by)) => write!(f, "m{number}:late-{by}")?,
            Trouble::Random => f.write_str("-:random")?,
        }
        write!(f, ":{}", self.seed)
    }
}

impl FromStr for Plan {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not SCENARIO:EFFECT:FAULT[:SEED]");
        let mut parts = text.split(':');
        let (scenario, at, what) = (parts.next(), parts.next(), parts.next());
        let (scenario, at, what) = (scenario.ok_or_else(bad)?, at.ok_or_else(bad)?, what.ok_or_else(bad)?);
        let seed = parts.next().map_or(Ok(1), str::parse).map_err(|_| bad())?;
        let trouble = match (at.strip_prefix('m'), what) {
            (_, "none") => Trouble::None,
            (_, "random") => Trouble::Random,
            (Some(number), what) => {
                let mishap = match what.split_once('-') {
                    None if what == "double" => Mishap::Double,
                    None if what == "lost" => Mishap::Lost,
                    Some(("late", by)) => Mishap::Late(by.parse().map_err(|_| bad())?),
                    _ => return Err(bad()),
                };
                Trouble::Message(number.parse().map_err(|_| bad())?, mishap)
            }
            (None, what) => Trouble::Effect(at.parse().map_err(|_| bad())?, fault(what).ok_or_else(bad)?),
        };
        Ok(Plan { scenario: scenario.to_owned(), trouble, seed })
    }
}

fn fault_name(fault: Fault) -> String {
    match fault {
        Fault::ErrorBefore => "error-before".to_owned(),
        Fault::ErrorAfter => "error-after".to_owned(),
        Fault::Lie => "lie".to_owned(),
        Fault::ErrorMid(parts) => format!("error-mid-{parts}"),
        Fault::Hang => "hang".to_owned(),
        Fault::HangAfter => "hang-after".to_owned(),
        Fault::CrashBefore => "crash-before".to_owned(),
        Fault::CrashMid(parts) => format!("crash-mid-{parts}"),
        Fault::CrashAfter => "crash-after".to_owned(),
        Fault::Blind(seconds) => format!("blind-{seconds}"),
        Fault::KillNode => "kill-node".to_owned(),
        Fault::LoseExport => "lose-export".to_owned(),
        Fault::KillExport => "kill-export".to_owned(),
        Fault::KillIncoming => "kill-incoming".to_owned(),
        Fault::FailJobs => "fail-jobs".to_owned(),
        Fault::RebootNodes => "reboot-nodes".to_owned(),
        Fault::RebootNases => "reboot-nases".to_owned(),
        Fault::Cut(seconds) => format!("cut-{seconds}"),
    }
}

fn fault(name: &str) -> Option<Fault> {
    let number = |prefix: &str| name.strip_prefix(prefix).and_then(|n| n.parse().ok());
    let plain = [
        Fault::ErrorBefore,
        Fault::ErrorAfter,
        Fault::Lie,
        Fault::Hang,
        Fault::HangAfter,
        Fault::CrashBefore,
        Fault::CrashAfter,
        Fault::KillNode,
        Fault::LoseExport,
        Fault::KillExport,
        Fault::KillIncoming,
        Fault::FailJobs,
        Fault::RebootNodes,
        Fault::RebootNases,
    ];
    plain
        .into_iter()
        .find(|f| fault_name(*f) == name)
        .or_else(|| number("error-mid-").map(Fault::ErrorMid))
        .or_else(|| number("crash-mid-").map(Fault::CrashMid))
        .or_else(|| number("blind-").map(Fault::Blind))
        .or_else(|| number("cut-").map(Fault::Cut))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_are_read_as_they_are_written() {
        for text in ["local:7:crash-mid-2:5", "local:m12:late-3000:1", "move:-:random:99", "remote:-:none:1", "a:1:cut-90:2"] {
            assert_eq!(text.parse::<Plan>().unwrap().to_string(), text);
        }
        assert!("local:x:hang".parse::<Plan>().is_err() && "local".parse::<Plan>().is_err());
    }
}
