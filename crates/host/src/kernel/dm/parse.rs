//! What `dmsetup` prints.

use super::{Layer, Overlay, State, Table};
use crate::kernel::block::{Number, SECTOR};

/// Lines of `info --columns -o major,minor,open,suspended,tables_loaded,readonly,uuid,name` with `|` between.
pub(super) fn states(text: &str) -> Result<Vec<State>, String> {
    // "No devices found" is printed where there are none.
    text.lines().filter(|line| line.contains('|')).map(|line| state(line).ok_or_else(|| format!("{line:?}"))).collect()
}

fn state(line: &str) -> Option<State> {
    let mut words = line.trim().splitn(8, '|');
    let mut word = || words.next().map(str::trim);
    let number = Number { major: word()?.parse().ok()?, minor: word()?.parse().ok()? };
    let open = word()?.parse().ok()?;
    let suspended = word()? == "Suspended";
    let tables = word()?;
    let (live, pending) = match tables {
        "None" => (false, false),
        "Live" => (true, false),
        "Inactive" => (false, true),
        "Both" | "Live/Inactive" => (true, true),
        _ => return None,
    };
    let read_only = word()? == "Read-only";
    let uuid = word()?.to_owned();
    Some(State { name: word()?.to_owned(), uuid, number, open, suspended, pending, live, read_only })
}

/// Lines of `table`.
pub(super) fn table(text: &str) -> Result<Table, String> {
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let Some(line) = lines.next() else { return Ok(Table::None) };
    let other = || Ok(Table::Other(text.trim().to_owned()));
    if lines.next().is_some() {
        return other();
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    let device = |word: &str| word.parse::<Number>().map_err(|error| error.0);
    let (layer, sectors) = match words[..] {
        ["0", sectors, "linear", at, "0"] => (Layer::Linear { device: device(at)? }, sectors),
        ["0", sectors, kind @ ("snapshot" | "snapshot-merge"), origin, overlay, "P", chunk, ..] => {
            let (origin, overlay) = (device(origin)?, device(overlay)?);
            let chunk = chunk.parse().map_err(|_| format!("{line:?}"))?;
            let layer = match kind {
                "snapshot" => Layer::Snapshot { origin, overlay, chunk },
                _ => Layer::SnapshotMerge { origin, overlay, chunk },
            };
            (layer, sectors)
        }
        _ => return other(),
    };
    let sectors: u64 = sectors.parse().map_err(|_| format!("{line:?}"))?;
    Ok(Table::Layer { layer, size: sectors * SECTOR })
}

/// Lines of `status`; nothing where no target has an overlay.
pub(super) fn overlay(text: &str) -> Result<Option<Overlay>, String> {
    let Some(line) = text.lines().find(|line| !line.trim().is_empty()) else { return Ok(None) };
    let words: Vec<&str> = line.split_whitespace().collect();
    let bad = || format!("{line:?}");
    let ["0", _, "snapshot" | "snapshot-merge", rest @ ..] = &words[..] else { return Ok(None) };
    Ok(Some(match rest {
        ["Invalid"] => Overlay::Invalid,
        ["Overflow"] => Overlay::Overflow,
        ["Merge", "failed"] => Overlay::MergeFailed,
        [used, bookkeeping] => {
            let (allocated, total) = used.split_once('/').ok_or_else(bad)?;
            let number = |word: &str| word.parse::<u64>().map_err(|_| bad());
            Overlay::Used { allocated: number(allocated)?, total: number(total)?, bookkeeping: number(bookkeeping)? }
        }
        _ => return Err(bad()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As recorded from a device of ours: running with a table pending, suspended, and one of somebody else's without a UUID.
    const LIST: &str = "253|0|0|Active|Both|Writeable|trial-vol|vol\n253|1|2|Suspended|Live|Writeable|trial-b|b\n\
        253|12|0|Active|None|Read-only||x|y\n";

    #[test]
    fn devices() {
        let found = states(LIST).unwrap();
        assert_eq!((found[0].pending, found[0].live, found[0].suspended, found[0].open), (true, true, false, 0));
        assert_eq!((found[1].pending, found[1].live, found[1].suspended, found[1].open), (false, true, true, 2));
        assert_eq!((found[2].name.as_str(), found[2].uuid.as_str(), found[2].read_only, found[2].live), ("x|y", "", true, false));
        assert_eq!(states("No devices found\n"), Ok(Vec::new()));
        assert!(states("253|0|0|Active|Sideways|Writeable|u|n\n").is_err());
    }

    /// A line for each phase of a volume: which, and what `info`, `table` and `status` print then.
    const PHASES: &str = include_str!("../../../tests/transcripts/dmsetup.tsv");

    #[test]
    fn what_dmsetup_prints_in_each_phase_is_understood() {
        let (disk, local, cow) = (at(8, 0), at(230, 0), at(230, 16));
        let snapshot = |origin| Layer::Snapshot { origin, overlay: cow, chunk: 32 };
        let merge = |origin| Layer::SnapshotMerge { origin, overlay: cow, chunk: 32 };
        let used = |allocated| Some(Overlay::Used { allocated, total: 166_464, bookkeeping: 64 });
        let expected = [
            (Layer::Linear { device: disk }, None),
            (snapshot(disk), used(960)),
            (merge(local), used(64)),
            (Layer::Linear { device: local }, None),
            (snapshot(local), used(1216)),
            (merge(disk), used(64)),
        ];
        let lines: Vec<Vec<&str>> = PHASES.lines().map(|line| line.split('\t').collect()).collect();
        assert_eq!(lines.len(), expected.len());
        for (line, (layer, has)) in lines.iter().zip(expected) {
            let [_, info, put, status] = line[..] else { panic!("{line:?}") };
            let found = states(info).unwrap();
            assert_eq!(
                (found.len(), found[0].name.as_str(), found[0].live, found[0].suspended),
                (1, "nas.tank.vol1", true, false)
            );
            assert_eq!(table(put), Ok(Table::Layer { layer, size: 64 << 20 }));
            assert_eq!(overlay(status), Ok(has));
        }
    }

    fn at(major: u32, minor: u32) -> Number {
        Number { major, minor }
    }

    #[test]
    fn tables_are_what_was_put_in() {
        let layers = [
            Layer::Linear { device: at(8, 0) },
            Layer::Snapshot { origin: at(8, 0), overlay: at(230, 32), chunk: 16 },
            Layer::SnapshotMerge { origin: at(230, 16), overlay: at(230, 32), chunk: 16 },
        ];
        for layer in layers {
            assert_eq!(table(&format!("{}\n", layer.table(131_072))), Ok(Table::Layer { layer, size: 64 << 20 }));
        }
        assert_eq!(table("\n"), Ok(Table::None));
        for other in ["0 8 linear 8:0 2048", "0 8 error", "0 8 linear 8:0 0\n8 8 linear 8:16 0", "0 8 snapshot 8:0 8:16 N 16"] {
            assert_eq!(table(other), Ok(Table::Other(other.to_owned())));
        }
    }

    #[test]
    fn overlays() {
        let used = |text: &str| overlay(text).unwrap();
        let full = Overlay::Used { allocated: 3872, total: 163_840, bookkeeping: 32 };
        assert_eq!(used("0 131072 snapshot 3872/163840 32\n"), Some(full));
        assert!(!full.is_merged());
        assert!(used("0 131072 snapshot-merge 32/163840 32 \n").unwrap().is_merged());
        assert_eq!(used("0 131072 snapshot Invalid"), Some(Overlay::Invalid));
        assert_eq!(used("0 131072 snapshot Overflow"), Some(Overlay::Overflow));
        assert_eq!(used("0 131072 snapshot-merge Merge failed"), Some(Overlay::MergeFailed));
        assert_eq!(used("0 131072 linear \n"), None);
        // What cannot be read is not taken for merged, nor for none.
        for bad in ["0 131072 snapshot Unknown", "0 131072 snapshot 32 32", "0 131072 snapshot-merge x/9 x"] {
            assert!(overlay(bad).is_err(), "{bad}");
        }
    }
}
