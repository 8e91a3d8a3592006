//! Times for people. (Bytes: `img_storage_model::size::human_bytes`.)

use img_storage_model::size::human_bytes;
use jiff::Timestamp;

/// `45s`, `3m`, `2h`, `5d`.
pub fn seconds(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// How long ago.
pub fn age(at: Timestamp, now: Timestamp) -> String {
    seconds(u64::try_from(now.as_second() - at.as_second()).unwrap_or(0))
}

/// Bytes of bytes, in percent.
pub fn percent(done: u64, total: u64) -> u64 {
    if total == 0 { 0 } else { u64::try_from(u128::from(done.min(total)) * 100 / u128::from(total)).unwrap_or(100) }
}

/// `118M/s, 2m left`, as far as known.
pub fn pace(done: u64, total: u64, rate: Option<u64>) -> String {
    match rate {
        Some(rate) if rate > 0 => format!("{}/s, {} left", human_bytes(rate), seconds(total.saturating_sub(done).div_ceil(rate))),
        _ => "no rate yet".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_and_paces() {
        assert_eq!([0, 45, 119, 120, 7200, 200_000].map(seconds), ["0s", "45s", "119s", "2m", "2h", "2d"]);
        assert_eq!(pace(50, 100, Some(10)), "10/s, 5s left");
        assert_eq!(pace(50, 100, Some(0)), "no rate yet");
    }

    proptest! {
        #[test]
        fn never_more_than_everything(done in any::<u64>(), total in any::<u64>(), rate in any::<Option<u64>>()) {
            prop_assert!(percent(done, total) <= 100);
            let _ = pace(done, total, rate);
        }
    }
}
