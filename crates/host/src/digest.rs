//! Digests of the contents of byte ranges, read from an NBD export.

use std::collections::VecDeque;

use img_storage_model::{Extent, Extents, messages::ContentDigest};

use crate::nbd::{InTransit, Nbd, NbdError};

/// How much one request reads; with [`DEPTH`] of them in flight neither the server nor the hash waits for the other.
const PIECE: u64 = 1 << 20;
const DEPTH: usize = 6;

/// blake3 over, per range, offset and length (little-endian u64s) and contents.
pub async fn digest(export: &Nbd, ranges: &Extents) -> Result<ContentDigest, NbdError> {
    let mut hasher = blake3::Hasher::new();
    let mut pieces = ranges.iter().flat_map(pieces).peekable();
    let mut in_transit: VecDeque<(Option<Extent>, InTransit)> = VecDeque::with_capacity(DEPTH);
    let mut spare = Vec::new();
    loop {
        while in_transit.len() < DEPTH
            && let Some((begins, piece)) = pieces.next()
        {
            let buffer = spare.pop().unwrap_or_default();
            let length = u32::try_from(piece.length).unwrap_or(u32::MAX);
            in_transit.push_back((begins, export.start_read(piece.offset, length, buffer).await?));
        }
        let Some((begins, transit)) = in_transit.pop_front() else { break };
        let data = transit.wait().await?;
        if let Some(range) = begins {
            hasher.update(&range.offset.to_le_bytes()).update(&range.length.to_le_bytes());
        }
        hasher.update(&data);
        spare.push(data);
    }
    Ok(ContentDigest(hasher.finalize().to_hex().to_string()))
}

/// A range cut into pieces to read; the first one carries the range.
fn pieces(range: Extent) -> impl Iterator<Item = (Option<Extent>, Extent)> {
    (0..range.length.div_ceil(PIECE)).map(move |i| {
        let offset = range.offset + i * PIECE;
        ((i == 0).then_some(range), Extent { offset, length: PIECE.min(range.end() - offset) })
    })
}
