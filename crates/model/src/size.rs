//! Sizes of volumes and lengths of time, as operators write them.

use crate::Fault;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, time::Duration};

/// A volume's size in bytes: at least 1 MiB, at most [`Size::LARGEST`], a multiple of 64 KiB.
///
/// 64 KiB is the granularity of the write-back's bitmaps; with it a volume has no partial last block anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Size(u64);

impl Size {
    /// The smallest volume, in bytes.
    pub const SMALLEST: u64 = 1 << 20;
    /// The smallest volume.
    pub const MIN: Size = Size(Self::SMALLEST);
    /// The largest volume, in bytes: 64 TiB, a quarter of what the image formats in use can name.
    pub const LARGEST: u64 = 64 << 40;
    /// Sizes are multiples of this many bytes.
    pub const GRAIN: u64 = 64 << 10;

    /// A size of exactly so many bytes.
    ///
    /// # Errors
    /// [`crate::FaultKind::Invalid`] outside the limits or between two grains.
    pub fn exact(bytes: u64) -> Result<Self, Fault> {
        match Self::round_up(bytes) {
            Ok(size) if size.0 == bytes => Ok(size),
            Ok(_) => Err(Fault::invalid(format!("a size of {bytes} bytes is not a multiple of 64 KiB"))),
            Err(fault) => Err(fault),
        }
    }

    /// The smallest allowed size that holds so many bytes; what an imported image gets.
    ///
    /// # Errors
    /// [`crate::FaultKind::Invalid`] for 0 and for more than [`Size::LARGEST`].
    pub fn round_up(bytes: u64) -> Result<Self, Fault> {
        if bytes == 0 {
            return Err(Fault::invalid("a volume of size 0 makes no sense").next("give a size such as 35G"));
        }
        if bytes > Self::LARGEST {
            return Err(Fault::invalid(format!(
                "a size of {bytes} bytes is more than the largest volume, {}",
                Size(Self::LARGEST)
            )));
        }
        Ok(Size(bytes.max(Self::SMALLEST).next_multiple_of(Self::GRAIN)))
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl TryFrom<u64> for Size {
    type Error = Fault;
    fn try_from(bytes: u64) -> Result<Self, Fault> {
        Self::exact(bytes)
    }
}

impl From<Size> for u64 {
    fn from(size: Size) -> u64 {
        size.0
    }
}

impl FromStr for Size {
    type Err = Fault;

    /// `35G`, `512M`, `2T`, `1.5G`, `1073741824`; the letters are powers of 1024, with or without `B` or `iB`.
    fn from_str(text: &str) -> Result<Self, Fault> {
        match parse_bytes(text) {
            Ok(bytes) => Self::round_up(bytes),
            Err(NoBytes::TooMany) => {
                Err(Fault::invalid(format!("{text:?} is more than the largest volume, {}", Size(Self::LARGEST))))
            }
            Err(NoBytes::Malformed) => {
                Err(Fault::invalid(format!("{text:?} is no size")).next("write it as 512M, 35G or 2T (powers of 1024)"))
            }
        }
    }
}

/// Why a text is no number of bytes.
pub(crate) enum NoBytes {
    /// It is not written as one.
    Malformed,
    /// It is more than a u64 holds.
    TooMany,
}

/// Bytes as operators write them, whether of a size or of a speed.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, NoBytes> {
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let unit = unit.trim_start();
    let letter = unit.strip_suffix("iB").or_else(|| unit.strip_suffix('B')).unwrap_or(unit);
    let shift = match letter.to_ascii_uppercase().as_str() {
        "" if unit.ends_with("iB") => return Err(NoBytes::Malformed),
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "P" => 50,
        "E" => 60,
        _ => return Err(NoBytes::Malformed),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty()
        || fraction.len() > 6
        || !fraction.bytes().all(|b| b.is_ascii_digit())
        || (number.contains('.') && (fraction.is_empty() || shift == 0))
    {
        return Err(NoBytes::Malformed);
    }
    let whole: u128 = whole.parse().map_err(|_| NoBytes::TooMany)?;
    let part = if fraction.is_empty() {
        0
    } else {
        (fraction.parse::<u128>().map_err(|_| NoBytes::Malformed)? << shift)
            / 10u128.pow(u32::try_from(fraction.len()).unwrap_or(6))
    };
    let bytes = whole.checked_shl(shift).filter(|b| b >> shift == whole).and_then(|b| b.checked_add(part));
    bytes.and_then(|b| u64::try_from(b).ok()).ok_or(NoBytes::TooMany)
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&human_bytes(self.0))
    }
}

/// Bytes for people: `35G`, `1.5G`, `640K`; powers of 1024, exact when short, else one decimal.
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [(&str, u32); 6] = [("E", 60), ("P", 50), ("T", 40), ("G", 30), ("M", 20), ("K", 10)];
    for (unit, shift) in UNITS {
        if bytes >> shift > 0 {
            let tenths = (u128::from(bytes) * 10) >> shift;
            return if tenths.is_multiple_of(10) {
                format!("{}{unit}", tenths / 10)
            } else {
                format!("{}.{}{unit}", tenths / 10, tenths % 10)
            };
        }
    }
    bytes.to_string()
}

/// A length of time of at least a second, as `frequency` is: `60`, `90s`, `10m`, `1h`, `1d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Interval(u64);

impl Interval {
    /// The longest: a year.
    pub const LONGEST: u64 = 366 * 86_400;

    /// An interval of so many seconds.
    ///
    /// # Errors
    /// [`crate::FaultKind::Invalid`] for 0 and for more than a year.
    pub fn seconds(seconds: u64) -> Result<Self, Fault> {
        if seconds == 0 || seconds > Self::LONGEST {
            return Err(Fault::invalid(format!("an interval of {seconds} s is not between a second and a year")));
        }
        Ok(Interval(seconds))
    }

    /// As the standard library's type.
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

impl FromStr for Interval {
    type Err = Fault;
    fn from_str(text: &str) -> Result<Self, Fault> {
        let bad = || Fault::invalid(format!("{text:?} is no length of time")).next("write it as 90s, 10m, 1h or 1d");
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let factor = match unit {
            "" | "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return Err(bad()),
        };
        let number: u64 = number.parse().map_err(|_| bad())?;
        Self::seconds(number.checked_mul(factor).ok_or_else(bad)?)
    }
}

impl TryFrom<String> for Interval {
    type Error = Fault;
    fn try_from(text: String) -> Result<Self, Fault> {
        text.parse()
    }
}

impl From<Interval> for String {
    fn from(interval: Interval) -> String {
        interval.to_string()
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            s if s.is_multiple_of(86_400) => format!("{}d", s / 86_400),
            s if s.is_multiple_of(3600) => format!("{}h", s / 3600),
            s if s.is_multiple_of(60) => format!("{}m", s / 60),
            s => format!("{s}s"),
        };
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_as_people_write_them() {
        for (text, bytes) in [
            ("35G", 35 << 30),
            ("512M", 512 << 20),
            ("2TiB", 2 << 40),
            ("1.5g", 3 << 29),
            ("1048576", 1 << 20),
            ("1", 1 << 20),
            (" 10 GB ", 10 << 30),
        ] {
            assert_eq!(text.parse::<Size>().unwrap().bytes(), bytes, "{text}");
        }
        for bad in [
            "",
            "0",
            "0G",
            "-1",
            "-5G",
            "10X",
            "10EB",
            "10 EB",
            "G",
            ".5G",
            "1.G",
            "1.5",
            "1e9",
            "0x10",
            "iB",
            "99999999999999999999999999999999999999999G",
            "１０G",
        ] {
            assert!(bad.parse::<Size>().is_err(), "{bad:?}");
        }
        assert!("10EB".parse::<Size>().unwrap_err().message.contains("largest"));
    }

    #[test]
    fn intervals() {
        assert_eq!("10m".parse::<Interval>().unwrap().duration().as_secs(), 600);
        assert_eq!("90".parse::<Interval>().unwrap().to_string(), "90s");
        for bad in ["", "0", "-1", "1w", "m", "99999999999999999999d", "400d"] {
            assert!(bad.parse::<Interval>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in ".{0,40}") {
            let _ = text.parse::<Size>();
            let _ = text.parse::<Interval>();
        }

        #[test]
        fn what_parses_is_within_the_limits(number in any::<u64>(), unit in "[KMGTPE]?(i?B)?") {
            if let Ok(size) = format!("{number}{unit}").parse::<Size>() {
                prop_assert!((Size::SMALLEST..=Size::LARGEST).contains(&size.bytes()) && size.bytes().is_multiple_of(Size::GRAIN));
                prop_assert_eq!(Size::exact(size.bytes()).unwrap(), size);
            }
        }
    }
}
