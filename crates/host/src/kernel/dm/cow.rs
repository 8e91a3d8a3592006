//! What an overlay has that no table is over, read from its disk as device-mapper laid it out.
//!
//! Source: `drivers/md/dm-snap-persistent.c` of the kernel. The first chunk is a header of little-endian 32-bit numbers: `SnAp`, whether it is valid,
//! a version, the sectors of a chunk. Behind it lies the first area: pairs of 64-bit numbers, which chunk lies where in the overlay, up to one that
//! lies at 0. A merge takes pairs away from the end, so that none is left when it is over.

use super::LOOK;
use crate::{
    HostError,
    kernel::{block::SECTOR, blocking, during},
};
use rustix::fs::OFlags;
use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::PathBuf,
};

/// `SnAp`.
const MAGIC: u32 = 0x7041_6e53;
/// What is read at once, and how it lies in memory: it is not to come from a cache that device-mapper goes past.
const PAGE: usize = 4096;

/// What its first page says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Header {
    /// It was never used.
    Unused,
    /// It ran full, or could not be written: what is in it cannot be told.
    Invalid,
    /// Where its first area begins, in bytes.
    Area(u64),
}

/// Whether an overlay has writes that were not merged.
///
/// # Errors
/// When it cannot be read, or is nothing that device-mapper made.
pub async fn has_writes(overlay: PathBuf) -> Result<bool, HostError> {
    let what = format!("cannot tell what is in the overlay {}", overlay.display());
    blocking(what.clone(), LOOK, move || {
        let direct = OFlags::DIRECT.bits().cast_signed();
        let file = OpenOptions::new().read(true).custom_flags(direct).open(&overlay).map_err(during(&what))?;
        let first = page(&file, 0).map_err(during(&what))?;
        match header(&first).map_err(|why| HostError(format!("{what}: {why}")))? {
            Header::Unused => Ok(false),
            Header::Invalid => Ok(true),
            Header::Area(at) => page(&file, at).map(|area| number(&area, 8) != 0).map_err(during(&what)),
        }
    })
    .await
}

fn page(file: &File, at: u64) -> std::io::Result<Vec<u8>> {
    let mut room = vec![0; 2 * PAGE];
    let aligned = room.as_ptr().align_offset(PAGE);
    let page = &mut room[aligned..aligned + PAGE];
    file.read_exact_at(page, at)?;
    Ok(page.to_vec())
}

fn header(page: &[u8]) -> Result<Header, String> {
    let word = |at: usize| (number(page, at) & u64::from(u32::MAX)) as u32;
    let (magic, valid, version, chunk) = (word(0), word(4), word(8), word(12));
    if [magic, valid, version, chunk] == [0; 4] {
        return Ok(Header::Unused);
    }
    if magic != MAGIC || version != 1 || !chunk.is_power_of_two() || u64::from(chunk) * SECTOR < PAGE as u64 {
        return Err("it does not begin as one of device-mapper's".to_owned());
    }
    Ok(if valid == 0 { Header::Invalid } else { Header::Area(u64::from(chunk) * SECTOR) })
}

fn number(page: &[u8], at: usize) -> u64 {
    page.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlay(words: [u32; 4], pairs: &[(u64, u64)]) -> tempfile::NamedTempFile {
        // Where this test was built is a disk, which /tmp need not be: a tmpfs cannot be read past its cache.
        let built = std::env::current_exe().unwrap();
        let file = tempfile::NamedTempFile::new_in(built.parent().unwrap()).unwrap();
        let mut bytes = vec![0; 1 << 16];
        for (n, word) in words.iter().enumerate() {
            bytes[4 * n..4 * n + 4].copy_from_slice(&word.to_le_bytes());
        }
        for (n, (old, new)) in pairs.iter().enumerate() {
            let at = 16_384 + 16 * n;
            bytes[at..at + 8].copy_from_slice(&old.to_le_bytes());
            bytes[at + 8..at + 16].copy_from_slice(&new.to_le_bytes());
        }
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    #[tokio::test]
    async fn an_overlay_has_writes_until_all_of_it_is_merged() {
        let has = async |words, pairs: &[(u64, u64)]| has_writes(overlay(words, pairs).path().to_owned()).await;
        assert_eq!(has([0; 4], &[]).await, Ok(false), "it was never used");
        assert_eq!(has([MAGIC, 1, 1, 32], &[]).await, Ok(false), "everything is merged");
        assert_eq!(has([MAGIC, 1, 1, 32], &[(0, 2), (7, 3)]).await, Ok(true));
        assert_eq!(has([MAGIC, 1, 1, 32], &[(0, 2)]).await, Ok(true), "its first chunk, too");
        assert_eq!(has([MAGIC, 0, 1, 32], &[]).await, Ok(true), "it ran full");
        for other in [[0x1234, 1, 1, 32], [MAGIC, 1, 2, 32], [MAGIC, 1, 1, 33], [MAGIC, 1, 1, 1], [0, 1, 0, 0]] {
            assert!(has(other, &[]).await.is_err(), "{other:?}");
        }
        assert!(has_writes("/nowhere".into()).await.is_err(), "what is not there is not empty");
    }
}
