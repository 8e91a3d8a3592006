//! What a certificate says: whose it is and from when to when it is good. Nothing is trusted because of it; it is for people.

use img_storage_model::Fault;
use jiff::{Timestamp, civil::DateTime, tz::TimeZone};
use serde::Serialize;
use std::{
    fs,
    path::{Path, PathBuf},
};
use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject as _};

/// A certificate in a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Certificate {
    /// The file.
    pub file: PathBuf,
    /// Its common name.
    pub name: String,
    /// From when on it is good.
    pub from: Timestamp,
    /// Until when.
    pub until: Timestamp,
}

impl Certificate {
    /// Reads a file in PEM.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub fn read(file: &Path) -> Result<Self, Fault> {
        let bad = |why: String| Fault::failed(format!("the certificate {} cannot be read: {why}", file.display()));
        let der = CertificateDer::from_pem_file(file).map_err(|e| bad(e.to_string()))?;
        let (name, from, until) = understand(&der).ok_or_else(|| bad("it is not understood".to_owned()))?;
        Ok(Certificate { file: file.to_owned(), name, from, until })
    }

    /// Whether it is good no more.
    pub fn has_ended(&self, now: Timestamp) -> bool {
        self.until <= now
    }

    /// How many days it is good still.
    pub fn days(&self, now: Timestamp) -> i64 {
        self.until.duration_since(now).as_secs().div_euclid(86_400)
    }
}

/// The certificates of a directory, by file name.
pub(super) fn of_directory(dir: &Path) -> Result<Vec<Certificate>, Fault> {
    let bad = |e: std::io::Error| Fault::failed(format!("{} cannot be looked at: {e}", dir.display()));
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(bad)? {
        let file = entry.map_err(bad)?.path();
        if file.is_file() && file.file_name().is_some_and(|name| name.to_string_lossy().ends_with("cert.pem")) {
            files.push(file);
        }
    }
    files.sort();
    files.iter().map(|file| Certificate::read(file)).collect()
}

/// The certificates of a directory and of those directly in it: a CA's with all that it issued there, or one host's.
///
/// # Errors
/// When something there cannot be read.
pub fn show(dir: &Path) -> Result<Vec<Certificate>, Fault> {
    let bad = |e: std::io::Error| Fault::failed(format!("{} cannot be looked at: {e}", dir.display()));
    let mut found = of_directory(dir)?;
    let mut dirs = Vec::new();
    for entry in fs::read_dir(dir).map_err(bad)? {
        let path = entry.map_err(bad)?.path();
        if path.is_dir() {
            dirs.push(path);
        }
    }
    dirs.sort();
    for dir in dirs {
        // The CA's is in every one of them.
        found.extend(of_directory(&dir)?.into_iter().filter(|c| !c.file.ends_with("ca-cert.pem")));
    }
    if found.is_empty() {
        return Err(Fault::not_found(format!("there is no certificate in {}", dir.display()))
            .next("name a directory made by img-storage pki init or pki issue"));
    }
    Ok(found)
}

/// Common name, and from when to when it is good.
fn understand(der: &[u8]) -> Option<(String, Timestamp, Timestamp)> {
    let (_, certificate, _) = element(der)?;
    let (_, mut rest, _) = element(certificate)?;
    // A version comes first, or not.
    if let (0xa0, _, after) = element(rest)? {
        rest = after;
    }
    // Number, algorithm, issuer.
    for _ in 0..3 {
        rest = element(rest)?.2;
    }
    let (_, validity, rest) = element(rest)?;
    let (kind, from, until) = element(validity)?;
    let from = time(kind, from)?;
    let (kind, until, _) = element(until)?;
    let until = time(kind, until)?;
    let (_, subject, _) = element(rest)?;
    Some((common_name(subject)?, from, until))
}

/// The first element: its tag, what is in it, and what comes after it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, length, rest) = (*der.first()?, *der.get(1)?, der.get(2..)?);
    let (length, rest) = match length {
        0..=0x7f => (usize::from(length), rest),
        0x81..=0x84 => {
            let count = usize::from(length & 0x7f);
            let length = rest.get(..count)?.iter().fold(0, |n, byte| n << 8 | usize::from(*byte));
            (length, rest.get(count..)?)
        }
        _ => return None,
    };
    Some((tag, rest.get(..length)?, rest.get(length..)?))
}

fn time(kind: u8, text: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?;
    // Two digits of a year mean 1950 to 2049.
    let full = match kind {
        0x17 => format!("{}{text}", if text.get(..2)? < "50" { "20" } else { "19" }),
        0x18 => text.to_owned(),
        _ => return None,
    };
    let at = DateTime::strptime("%Y%m%d%H%M%S", full.strip_suffix('Z')?).ok()?;
    at.to_zoned(TimeZone::UTC).ok().map(|z| z.timestamp())
}

fn common_name(mut subject: &[u8]) -> Option<String> {
    const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
    while !subject.is_empty() {
        let (_, set, rest) = element(subject)?;
        let (_, pair, _) = element(set)?;
        let (_, oid, value) = element(pair)?;
        if oid == COMMON_NAME {
            return String::from_utf8(element(value)?.1.to_vec()).ok();
        }
        subject = rest;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = understand(&bytes);
        }
    }
}
