//! What attributes can be: each parsed once, from the text an operator wrote.

use crate::{
    Fault, Interval,
    size::{NoBytes, parse_bytes},
};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Bytes per second that a transfer may move; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Speed(u64);

impl Speed {
    /// No limit.
    pub const UNLIMITED: Self = Speed(0);
    /// The slowest: a block of 64 KiB a second.
    pub const SLOWEST: u64 = 64 << 10;
    /// The fastest that is still a limit: 1 TiB a second.
    pub const FASTEST: u64 = 1 << 40;

    /// A limit of so many bytes per second.
    ///
    /// # Errors
    /// [`crate::FaultKind::Invalid`] outside the limits.
    pub fn bytes_per_second(bytes: u64) -> Result<Self, Fault> {
        if (Self::SLOWEST..=Self::FASTEST).contains(&bytes) {
            return Ok(Speed(bytes));
        }
        Err(Fault::invalid(format!("a speed of {bytes} bytes per second is not between 64K and 1T"))
            .next("write unlimited for no limit"))
    }

    /// Bytes per second; 0 for no limit.
    pub fn get(self) -> u64 {
        self.0
    }
}

impl FromStr for Speed {
    type Err = Fault;

    /// `10m`, `1.5G`, `640K/s`, `1048576` (powers of 1024), or `unlimited`.
    fn from_str(text: &str) -> Result<Self, Fault> {
        let trimmed = text.trim();
        if trimmed.eq_ignore_ascii_case("unlimited") {
            return Ok(Self::UNLIMITED);
        }
        match parse_bytes(trimmed.strip_suffix("/s").unwrap_or(trimmed)) {
            Ok(bytes) => Self::bytes_per_second(bytes),
            Err(NoBytes::TooMany) => {
                Err(Fault::invalid(format!("{text:?} is more than 1T")).next("write unlimited for no limit"))
            }
            Err(NoBytes::Malformed) => Err(Fault::invalid(format!("{text:?} is no speed"))
                .next("write it as 640K, 10M or 1G (bytes per second, powers of 1024), or unlimited")),
        }
    }
}

impl TryFrom<u64> for Speed {
    type Error = Fault;
    fn try_from(bytes: u64) -> Result<Self, Fault> {
        if bytes == 0 { Ok(Self::UNLIMITED) } else { Self::bytes_per_second(bytes) }
    }
}

impl From<Speed> for u64 {
    fn from(speed: Speed) -> u64 {
        speed.0
    }
}

impl fmt::Display for Speed {
    /// Exact, so that what is shown can be given again.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(&str, u32); 4] = [("T", 40), ("G", 30), ("M", 20), ("K", 10)];
        if self.0 == 0 {
            return f.pad("unlimited");
        }
        match UNITS.iter().find(|(_, shift)| self.0.is_multiple_of(1 << shift)) {
            Some((unit, shift)) => f.pad(&format!("{}{unit}", self.0 >> shift)),
            None => f.pad(&self.0.to_string()),
        }
    }
}

/// How many transfers a NAS lets run at once in each direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct SyncWorkers(u16);

impl SyncWorkers {
    /// The most.
    pub const MOST: u16 = 1000;

    /// How many.
    pub fn get(self) -> usize {
        usize::from(self.0)
    }
}

impl Default for SyncWorkers {
    fn default() -> Self {
        SyncWorkers(4)
    }
}

impl TryFrom<u64> for SyncWorkers {
    type Error = Fault;
    fn try_from(number: u64) -> Result<Self, Fault> {
        match u16::try_from(number) {
            Ok(number @ 1..=Self::MOST) => Ok(SyncWorkers(number)),
            _ => Err(Fault::invalid(format!("{number} is not between 1 and {}", Self::MOST))
                .next("give the number of transfers that may run at once")),
        }
    }
}

impl From<SyncWorkers> for u64 {
    fn from(workers: SyncWorkers) -> u64 {
        workers.0.into()
    }
}

impl FromStr for SyncWorkers {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self, Fault> {
        let bad = || Fault::invalid(format!("{text:?} is no number")).next("give the number of transfers that may run at once");
        let trimmed = text.trim();
        if trimmed.is_empty() || !trimmed.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        // A number too long for a u64 is too large like any other.
        Self::try_from(trimmed.parse::<u64>().unwrap_or(u64::MAX))
    }
}

impl fmt::Display for SyncWorkers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

/// When the next write-back is to be made, instead of when the frequency says. It holds for one write-back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextSync {
    /// The time, as it was given; one that is past means at once.
    pub at: Timestamp,
    /// When it was given.
    pub given: Timestamp,
}

impl NextSync {
    /// The furthest ahead, in seconds: a year.
    const FURTHEST: u64 = Interval::LONGEST;

    /// `now`, `+10m`, seconds since 1970, or a time such as `2031-05-01T03:00:00Z`.
    ///
    /// # Errors
    /// [`crate::FaultKind::Invalid`] for anything else, and for a time more than a year ahead.
    pub fn parse(text: &str, now: Timestamp) -> Result<Self, Fault> {
        let text = text.trim();
        let bad = || {
            Fault::invalid(format!("{text:?} is no time"))
                .next("write it as 2031-05-01T03:00:00Z, as seconds since 1970, as +10m (from now), or as now")
        };
        let number =
            text.find(|c: char| !(c.is_ascii_digit() || c == '.')).is_none() && text.starts_with(|c: char| c.is_ascii_digit());
        let at = if text.eq_ignore_ascii_case("now") {
            now
        } else if let Some(ahead) = text.strip_prefix('+') {
            let ahead: Interval = ahead.parse().map_err(|_| bad())?;
            SignedDuration::try_from(ahead.duration()).ok().and_then(|d| now.checked_add(d).ok()).ok_or_else(bad)?
        } else if number {
            // The original's clock gives fractions.
            let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
            if fraction.contains('.') {
                return Err(bad());
            }
            Timestamp::from_second(whole.parse().map_err(|_| bad())?).map_err(|_| bad())?
        } else {
            text.parse().map_err(|_| bad())?
        };
        let ahead = u64::try_from(at.duration_since(now).as_secs()).unwrap_or(0);
        if ahead > Self::FURTHEST {
            return Err(Fault::invalid(format!("{at} is more than a year ahead")).next("give a time within a year"));
        }
        Ok(NextSync { at, given: now })
    }

    /// When it is due: not before it was given.
    pub fn due(self) -> Timestamp {
        self.at.max(self.given)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn speeds_as_people_write_them() {
        for (text, bytes, shown) in [
            ("10m", 10 << 20, "10M"),
            ("1G", 1 << 30, "1G"),
            ("1.5G", 3 << 29, "1536M"),
            ("64K/s", 64 << 10, "64K"),
            ("5MB/s", 5 << 20, "5M"),
            ("100000", 100_000, "100000"),
            ("unlimited", 0, "unlimited"),
        ] {
            let speed: Speed = text.parse().unwrap();
            assert_eq!((speed.get(), speed.to_string().as_str()), (bytes, shown), "{text}");
        }
        for bad in ["", "0", "1", "fast", "-5M", "10X", "2T", "10M/h", "99999999999999999999G", "1e6", "５M"] {
            assert!(bad.parse::<Speed>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn workers_are_a_small_number() {
        assert_eq!("8".parse::<SyncWorkers>().unwrap().get(), 8);
        for bad in ["", "0", "-1", "1001", "many", "4.5", "99999999999999999999"] {
            assert!(bad.parse::<SyncWorkers>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_next_sync_in_every_spelling() {
        let now: Timestamp = "2030-01-01T00:00:00Z".parse().unwrap();
        for (text, at) in [
            ("now", now),
            ("+10m", "2030-01-01T00:10:00Z".parse().unwrap()),
            ("2030-05-01T03:00:00+02:00", "2030-05-01T01:00:00Z".parse().unwrap()),
            ("5", Timestamp::from_second(5).unwrap()),
            ("1893456000.75", now),
        ] {
            assert_eq!(NextSync::parse(text, now).unwrap().at, at, "{text}");
        }
        assert_eq!(NextSync::parse("5", now).unwrap().due(), now, "what is past is due at once, not in 1970");
        for bad in ["", "soon", "+", "+1w", "2032-01-01T00:00:00Z", "99999999999999999999", "-5", "1.2.3", "2030-13-01"] {
            assert!(NextSync::parse(bad, now).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in ".{0,40}") {
            let _ = text.parse::<Speed>();
            let _ = text.parse::<SyncWorkers>();
            let _ = NextSync::parse(&text, Timestamp::UNIX_EPOCH);
        }

        #[test]
        fn what_is_shown_can_be_given_again(bytes in Speed::SLOWEST..=Speed::FASTEST) {
            let speed = Speed::bytes_per_second(bytes).unwrap();
            prop_assert_eq!(speed.to_string().parse::<Speed>().unwrap(), speed);
        }
    }
}
