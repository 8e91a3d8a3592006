//! What is written into a block: whose it is, where it belongs, which write it was. All its bytes follow from these, so a
//! block is checked by making it again; a single wrong byte, an old block, or one from another place is seen.

use std::ops::Range;

const MAGIC: [u8; 8] = *b"imgstamp";
const OFFSET: Range<usize> = 16..24;
const SEQUENCE: Range<usize> = 24..32;
/// The smallest block that carries a stamp and some filling.
pub const SMALLEST: u32 = 512;

/// Why a block is none of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bad {
    /// It carries no stamp; its first bytes.
    Foreign([u8; 16]),
    /// It is all zeroes, and must not be.
    Zeroes,
    /// It is from another run.
    Run(u64),
    /// It belongs to another place.
    Place(u64),
    /// Its filling does not fit its stamp, from this byte on: torn, or overwritten.
    Torn {
        /// What the stamp says.
        sequence: u64,
        /// The first byte that is wrong.
        at: usize,
    },
}

impl std::fmt::Display for Bad {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Bad::Foreign(first) => write!(f, "it has no stamp (it begins with {first:02x?})"),
            Bad::Zeroes => f.write_str("it is all zeroes"),
            Bad::Run(run) => write!(f, "it is of another run ({run})"),
            Bad::Place(offset) => write!(f, "it belongs to offset {offset}"),
            Bad::Torn { sequence, at } => write!(f, "it begins as write {sequence} and is something else from byte {at} on"),
        }
    }
}

fn word(block: &[u8], range: Range<usize>) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&block[range]);
    u64::from_le_bytes(bytes)
}

/// Fills `block` with write number `sequence` to `offset`, of run `run`.
pub fn fill(block: &mut [u8], run: u64, offset: u64, sequence: u64) {
    block[..8].copy_from_slice(&MAGIC);
    block[8..16].copy_from_slice(&run.to_le_bytes());
    block[OFFSET].copy_from_slice(&offset.to_le_bytes());
    block[SEQUENCE].copy_from_slice(&sequence.to_le_bytes());
    let mut state = filling_seed(run, offset, sequence);
    for chunk in block[SEQUENCE.end..].chunks_mut(8) {
        chunk.copy_from_slice(&next(&mut state).to_le_bytes()[..chunk.len()]);
    }
}

/// The number of the write that `block`, read from `offset`, carries; `None` for a block of zeroes.
///
/// # Errors
/// What is wrong with it.
pub fn check(block: &[u8], run: u64, offset: u64) -> Result<Option<u64>, Bad> {
    if block[..8] != MAGIC {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let mut first = [0; 16];
        first.copy_from_slice(&block[..16]);
        return Err(Bad::Foreign(first));
    }
    let (found_run, found_offset, sequence) = (word(block, 8..16), word(block, OFFSET), word(block, SEQUENCE));
    if found_run != run {
        return Err(Bad::Run(found_run));
    }
    if found_offset != offset {
        return Err(Bad::Place(found_offset));
    }
    let mut state = filling_seed(run, offset, sequence);
    for (n, chunk) in block[SEQUENCE.end..].chunks(8).enumerate() {
        if *chunk != next(&mut state).to_le_bytes()[..chunk.len()] {
            return Err(Bad::Torn { sequence, at: SEQUENCE.end + n * 8 });
        }
    }
    Ok(Some(sequence))
}

fn filling_seed(run: u64, offset: u64, sequence: u64) -> u64 {
    run ^ offset.rotate_left(20) ^ sequence.rotate_left(41)
}

/// `SplitMix64`: fast, and nothing about it needs to be secret.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_known_again_and_one_wrong_byte_is_seen() {
        let mut block = vec![0; 4096];
        assert_eq!(check(&block, 7, 8192), Ok(None));
        fill(&mut block, 7, 8192, 55);
        assert_eq!(check(&block, 7, 8192), Ok(Some(55)));
        assert_eq!(check(&block, 8, 8192), Err(Bad::Run(7)));
        assert_eq!(check(&block, 7, 4096), Err(Bad::Place(8192)));
        for at in [32, 1000, 4095] {
            let mut torn = block.clone();
            torn[at] ^= 1;
            assert_eq!(check(&torn, 7, 8192), Err(Bad::Torn { sequence: 55, at: at - at % 8 }));
        }
        block[0] = 0;
        assert!(matches!(check(&block, 7, 8192), Err(Bad::Foreign(_))));
    }

    #[test]
    fn half_of_an_older_write_is_seen() {
        let (mut old, mut new) = (vec![0; 4096], vec![0; 4096]);
        fill(&mut old, 1, 0, 3);
        fill(&mut new, 1, 0, 4);
        new[512..].copy_from_slice(&old[512..]);
        assert_eq!(check(&new, 1, 0), Err(Bad::Torn { sequence: 4, at: 512 }));
    }
}
