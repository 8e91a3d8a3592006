//! The bytes of the NBD protocol that we speak: fixed newstyle, structured replies, metadata contexts. Nothing here does I/O.
//!
//! Reference: `doc/proto.md` of the NBD project.

use std::fmt;

pub(super) const MAGIC: u64 = 0x4e42_444d_4147_4943;
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
pub(super) const CHUNK_MAGIC: u32 = 0x668e_33ef;

pub(super) const FIXED_NEWSTYLE: u16 = 1;
pub(super) const NO_ZEROES: u16 = 2;

pub(super) const OPT_GO: u32 = 7;
pub(super) const OPT_STRUCTURED_REPLY: u32 = 8;
pub(super) const OPT_SET_META_CONTEXT: u32 = 10;

pub(super) const REP_ACK: u32 = 1;
pub(super) const REP_INFO: u32 = 3;
pub(super) const REP_META_CONTEXT: u32 = 4;
const REP_ERROR: u32 = 1 << 31;

const INFO_EXPORT: u16 = 0;
const INFO_BLOCK_SIZE: u16 = 3;

pub(super) const CMD_READ: u16 = 0;
pub(super) const CMD_WRITE: u16 = 1;
pub(super) const CMD_DISC: u16 = 2;
pub(super) const CMD_FLUSH: u16 = 3;
pub(super) const CMD_TRIM: u16 = 4;
pub(super) const CMD_WRITE_ZEROES: u16 = 6;
pub(super) const CMD_BLOCK_STATUS: u16 = 7;

/// Set on the last chunk of a reply.
pub(super) const CHUNK_DONE: u16 = 1;
pub(super) const CHUNK_NONE: u16 = 0;
pub(super) const CHUNK_DATA: u16 = 1;
pub(super) const CHUNK_HOLE: u16 = 2;
pub(super) const CHUNK_BLOCK_STATUS: u16 = 5;
pub(super) const CHUNK_ERROR: u16 = 1 << 15;

/// The longest option reply and the longest non-data chunk that is read.
pub(super) const LONGEST: u32 = 4 << 20;

/// Bytes that are not NBD, with what was wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// Takes big-endian numbers off the front of a slice.
pub(super) struct Fields<'a>(pub &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn bytes(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Malformed("a message is too short"))?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.bytes(N)?.try_into().map_err(|_| Malformed("a message is too short"))
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }
}

/// What the server says about an export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ExportInfo {
    /// Length in bytes.
    pub size: u64,
    /// The transmission flags of the protocol.
    pub flags: u16,
    /// The longest read or write the server takes.
    pub longest: u32,
}

impl ExportInfo {
    /// Whether the server refuses writes.
    pub fn read_only(self) -> bool {
        self.flags & 2 != 0
    }
}

/// The reply to an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OptionReply {
    pub(super) option: u32,
    pub(super) kind: u32,
    pub(super) length: u32,
}

impl OptionReply {
    pub(super) const HEADER: usize = 20;

    pub(super) fn parse(header: &[u8; Self::HEADER]) -> Result<Self, Malformed> {
        let mut fields = Fields(header);
        if fields.u64()? != OPTION_REPLY_MAGIC {
            return Err(Malformed("an option's reply has no magic number"));
        }
        let reply = Self { option: fields.u32()?, kind: fields.u32()?, length: fields.u32()? };
        if reply.length > LONGEST { Err(Malformed("an option's reply is too long")) } else { Ok(reply) }
    }

    pub(super) fn is_error(&self) -> bool {
        self.kind & REP_ERROR != 0
    }
}

/// Option `kind` with `data`, as sent.
pub(super) fn option(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + data.len());
    out.extend(OPTION_MAGIC.to_be_bytes());
    out.extend(kind.to_be_bytes());
    out.extend(length(data).to_be_bytes());
    out.extend(data);
    out
}

/// The data of `NBD_OPT_GO`.
pub(super) fn go(export: &str) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(length(export.as_bytes()).to_be_bytes());
    out.extend(export.as_bytes());
    // One information request: block sizes.
    out.extend(1u16.to_be_bytes());
    out.extend(INFO_BLOCK_SIZE.to_be_bytes());
    out
}

/// The data of `NBD_OPT_SET_META_CONTEXT`.
pub(super) fn contexts(export: &str, names: &[String]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(length(export.as_bytes()).to_be_bytes());
    out.extend(export.as_bytes());
    out.extend(u32::try_from(names.len()).unwrap_or(u32::MAX).to_be_bytes());
    for name in names {
        out.extend(length(name.as_bytes()).to_be_bytes());
        out.extend(name.as_bytes());
    }
    out
}

fn length(data: &[u8]) -> u32 {
    u32::try_from(data.len()).unwrap_or(u32::MAX)
}

/// Adds one `NBD_REP_INFO` to what is known of the export.
pub(super) fn info(data: &[u8], export: &mut ExportInfo) -> Result<(), Malformed> {
    let mut fields = Fields(data);
    match fields.u16()? {
        INFO_EXPORT => {
            export.size = fields.u64()?;
            export.flags = fields.u16()?;
        }
        INFO_BLOCK_SIZE => {
            fields.bytes(8)?;
            export.longest = fields.u32()?;
        }
        _ => {}
    }
    Ok(())
}

/// One `NBD_REP_META_CONTEXT`: its number and name.
pub(super) fn context(data: &[u8]) -> Result<(u32, String), Malformed> {
    let mut fields = Fields(data);
    let id = fields.u32()?;
    let name = std::str::from_utf8(fields.0).map_err(|_| Malformed("a metadata context's name is not UTF-8"))?;
    Ok((id, name.to_owned()))
}

/// A request's header.
pub(super) fn request(command: u16, cookie: u64, offset: u64, length: u32) -> [u8; 28] {
    let mut out = [0; 28];
    out[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
    // Bytes 4 and 5 are the command's flags; we need none.
    out[6..8].copy_from_slice(&command.to_be_bytes());
    out[8..16].copy_from_slice(&cookie.to_be_bytes());
    out[16..24].copy_from_slice(&offset.to_be_bytes());
    out[24..].copy_from_slice(&length.to_be_bytes());
    out
}

/// The beginning of a reply, after its magic number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    Simple { error: u32, cookie: u64 },
    Chunk { flags: u16, kind: u16, cookie: u64, length: u32 },
}

impl Reply {
    /// How many bytes follow the magic number `magic`.
    pub(super) fn header(magic: u32) -> Result<usize, Malformed> {
        match magic {
            SIMPLE_REPLY_MAGIC => Ok(12),
            CHUNK_MAGIC => Ok(16),
            _ => Err(Malformed("a reply has no magic number")),
        }
    }

    pub(super) fn parse(magic: u32, header: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(header);
        Ok(match magic {
            SIMPLE_REPLY_MAGIC => Reply::Simple { error: fields.u32()?, cookie: fields.u64()? },
            _ => Reply::Chunk { flags: fields.u16()?, kind: fields.u16()?, cookie: fields.u64()?, length: fields.u32()? },
        })
    }
}

/// A piece of an export and its flags in some metadata context.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub length: u64,
    /// The flags; their meaning is the context's (`base:allocation`: 1 hole, 2 zero; dirty bitmaps: 1 dirty).
    pub flags: u32,
}

/// A chunk of block status: the context's number and its pieces from `offset` on, cut at `end`.
pub(super) fn statuses(data: &[u8], offset: u64, end: u64) -> Result<(u32, Vec<Status>), Malformed> {
    let mut fields = Fields(data);
    let context = fields.u32()?;
    if fields.0.is_empty() || !fields.0.len().is_multiple_of(8) {
        return Err(Malformed("a block status has a bad length"));
    }
    let (mut at, mut pieces) = (offset, Vec::with_capacity(fields.0.len() / 8));
    while !fields.0.is_empty() && at < end {
        let length = u64::from(fields.u32()?).min(end - at);
        let flags = fields.u32()?;
        if length == 0 {
            return Err(Malformed("a block status has an empty piece"));
        }
        pieces.push(Status { offset: at, length, flags });
        at += length;
    }
    Ok((context, pieces))
}

/// An error chunk: the number and the server's words.
pub(super) fn error(data: &[u8]) -> Result<(u32, String), Malformed> {
    let mut fields = Fields(data);
    let number = fields.u32()?;
    let length = usize::from(fields.u16()?);
    Ok((number, String::from_utf8_lossy(fields.bytes(length)?).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_a_parser_panic(data in prop::collection::vec(any::<u8>(), 0..64), offset: u64, length: u32) {
            let _ = info(&data, &mut ExportInfo::default());
            let _ = context(&data);
            let _ = error(&data);
            let _ = statuses(&data, offset, offset.saturating_add(length.into()));
            if let Ok(header) = data.as_slice().try_into() {
                let _ = OptionReply::parse(header);
            }
            for magic in [SIMPLE_REPLY_MAGIC, CHUNK_MAGIC] {
                let _ = Reply::parse(magic, &data);
            }
        }

        #[test]
        fn statuses_are_in_order_and_inside(pieces in prop::collection::vec((1u32..1 << 20, 0u32..4), 1..40), offset in 0u64..1 << 40, length in 1u64..1 << 22) {
            let mut data = 9u32.to_be_bytes().to_vec();
            for (length, flags) in &pieces {
                data.extend(length.to_be_bytes());
                data.extend(flags.to_be_bytes());
            }
            let (context, found) = statuses(&data, offset, offset + length).expect("well-formed");
            prop_assert_eq!(context, 9);
            let mut at = offset;
            for (status, (_, flags)) in found.iter().zip(&pieces) {
                prop_assert_eq!((status.offset, status.flags), (at, *flags));
                at += status.length;
            }
            let all: u64 = pieces.iter().map(|(length, _)| u64::from(*length)).sum();
            prop_assert_eq!(at, offset + all.min(length));
        }

        #[test]
        fn requests_have_every_field_in_its_place(command: u16, cookie: u64, offset: u64, length: u32) {
            let bytes = request(command, cookie, offset, length);
            let mut fields = Fields(&bytes);
            prop_assert_eq!(fields.u32(), Ok(REQUEST_MAGIC));
            prop_assert_eq!(fields.u16(), Ok(0));
            prop_assert_eq!(fields.u16(), Ok(command));
            prop_assert_eq!((fields.u64(), fields.u64(), fields.u32()), (Ok(cookie), Ok(offset), Ok(length)));
        }
    }
}
