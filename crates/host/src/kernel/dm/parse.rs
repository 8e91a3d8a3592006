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
