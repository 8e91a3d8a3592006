//! A ledger, read as it is and left as it is, whether its daemon runs or not.
//!
//! SQLite cannot do that with a file: to read one with a write-ahead log it takes locks, writes which page it reads from into the
//! log's index, and makes that index anew when there is none. So the file and its log are read as any other file, put together in
//! memory as SQLite would, and opened there. What the daemon writes meanwhile is of the next look; what was torn between two reads
//! is seen by the log's header, and read again.

use super::{VERSION, broken, damaged, nas, node, records};
use img_storage_model::{Fault, nas::VolumeRecord, node::NodeRecord};
use rusqlite::Connection;
use std::{
    fs::File,
    io::{self, ErrorKind, Read as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

/// So often it is read again when the log was begun anew meanwhile.
const TRIES: u32 = 50;
const PAUSE: Duration = Duration::from_millis(10);
/// The log's header, and that of each of its frames, in bytes.
const HEADER: usize = 32;
const FRAME: usize = 24;

/// What is in a ledger.
#[derive(Clone, Debug)]
pub enum Rows {
    /// A NAS's volumes.
    Nas(Vec<VolumeRecord>),
    /// What a node has, or had.
    Node(Vec<NodeRecord>),
}

/// Reads a ledger.
///
/// # Errors
/// When it cannot be read or understood.
pub fn read(path: &Path) -> Result<Rows, Fault> {
    let shown = path.display().to_string();
    let bytes = together(path).map_err(|e| damaged(&shown, e))?;
    let mut db = Connection::open_in_memory().map_err(|e| broken("be read", e))?;
    let open = |db: &mut Connection| -> rusqlite::Result<(String, i64, bool)> {
        db.deserialize_read_exact("main", bytes.as_slice(), bytes.len(), true)?;
        let whole = db.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        let version = db.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        let of_nas = "select exists (select 1 from sqlite_master where type = 'table' and name = 'answer')";
        Ok((whole, version, db.query_row(of_nas, [], |row| row.get(0))?))
    };
    let (whole, version, of_nas) = open(&mut db).map_err(|e| damaged(&shown, e))?;
    if whole != "ok" {
        return Err(damaged(&shown, whole));
    }
    if version > VERSION {
        return Err(damaged(&shown, format!("it was written by a newer img-storage (version {version} of the tables)")));
    }
    if of_nas { records(&db, nas::VOLUMES).map(Rows::Nas) } else { records(&db, node::VOLUMES).map(Rows::Node) }
}

/// The file with everything that its log has.
fn together(path: &Path) -> io::Result<Vec<u8>> {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    let log = PathBuf::from(log);
    for _ in 0..TRIES {
        let before = header(&log)?;
        let mut bytes = std::fs::read(path)?;
        let frames = or_none(std::fs::read(&log))?.unwrap_or_default();
        // As long as the log was not begun anew it has every page that went from it into the file meanwhile.
        if header(&log)? == before && frames.get(..HEADER).map(<[u8]>::to_vec) == before {
            if bytes.len() < 100 {
                return Err(io::Error::other("it is empty"));
            }
            lay_over(&mut bytes, &frames);
            // What is in memory has no log.
            bytes[18..20].fill(1);
            return Ok(bytes);
        }
        thread::sleep(PAUSE);
    }
    Err(io::Error::other("its daemon writes to it all the time"))
}

fn or_none<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        read => read.map(Some),
    }
}

/// The header of a log; nothing where there is no log, or an empty one.
fn header(log: &Path) -> io::Result<Option<Vec<u8>>> {
    let Some(file) = or_none(File::open(log))? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(HEADER as u64).read_to_end(&mut bytes)?;
    Ok((bytes.len() == HEADER).then_some(bytes))
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut four = [0; 4];
    four.copy_from_slice(&bytes[at..at + 4]);
    u32::from_be_bytes(four)
}

/// Puts the pages of a log into the file, up to the last commit. What is behind it, or is torn, was never committed.
fn lay_over(file: &mut Vec<u8>, log: &[u8]) {
    if log.len() < HEADER || word(log, 0) & !1 != 0x377f_0682 {
        return;
    }
    let big = word(log, 0) & 1 == 1;
    let page = word(log, 8) as usize;
    let mut sum = add(big, (0, 0), &log[..24]);
    if sum != (word(log, 24), word(log, 28)) || !page.is_power_of_two() || !(512..=65_536).contains(&page) {
        return;
    }
    let mut pages: Vec<(usize, &[u8])> = Vec::new();
    for frame in log[HEADER..].chunks_exact(FRAME + page) {
        let (head, data) = frame.split_at(FRAME);
        sum = add(big, add(big, sum, &head[..8]), data);
        let ours = head[8..16] == log[16..24] && sum == (word(head, 16), word(head, 20));
        let Some(number) = (word(head, 0) as usize).checked_sub(1).filter(|_| ours) else { return };
        pages.push((number, data));
        let length = word(head, 4) as usize;
        if length > 0 {
            file.resize(length * page, 0);
            for (number, data) in pages.drain(..).filter(|(number, _)| *number < length) {
                file[number * page..][..page].copy_from_slice(data);
            }
        }
    }
}

/// SQLite's checksum, over so much more.
fn add(big: bool, (mut a, mut b): (u32, u32), bytes: &[u8]) -> (u32, u32) {
    let value = |at: &[u8]| {
        let word = word(at, 0);
        if big { word } else { word.swap_bytes() }
    };
    for pair in bytes.chunks_exact(8) {
        a = a.wrapping_add(value(&pair[..4])).wrapping_add(b);
        b = b.wrapping_add(value(&pair[4..])).wrapping_add(a);
    }
    (a, b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::open;
    use std::{collections::BTreeMap, fs, time::SystemTime};

    type Tree = BTreeMap<String, (SystemTime, Vec<u8>)>;

    fn tree(dir: &Path) -> Tree {
        let file = |entry: fs::DirEntry| {
            let (name, meta) = (entry.file_name().to_string_lossy().into_owned(), entry.metadata().expect("is there"));
            (name, (meta.modified().expect("a time"), fs::read(entry.path()).expect("read")))
        };
        fs::read_dir(dir).expect("listed").flatten().map(file).collect()
    }

    /// All rows as SQLite has them that come out of the bytes.
    fn rows(bytes: &[u8]) -> Vec<(i64, String)> {
        let mut db = Connection::open_in_memory().expect("opens");
        db.deserialize_read_exact("main", bytes, bytes.len(), true).expect("taken");
        let mut query = db.prepare("select n, t from t order by n").expect("asked");
        query.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("read").map(|row| row.expect("a row")).collect()
    }

    #[test]
    fn what_is_only_in_the_log_is_read_and_nothing_is_touched() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ledger.db");
        let db =
            open(&path, "FULL", "create table if not exists t (n integer primary key, t text not null) strict;").expect("opens");
        db.pragma_update(None, "wal_autocheckpoint", 0).expect("set");
        for n in 0..300i64 {
            db.execute("insert into t (n, t) values (?1, ?2)", (n, "x".repeat(100))).expect("written");
        }
        db.execute("delete from t where n < 40", []).expect("written");
        let before = tree(dir.path());
        assert!(before["ledger.db-wal"].1.len() > before["ledger.db"].1.len(), "nearly everything is in the log");
        let seen = rows(&together(&path).expect("read"));
        assert_eq!((seen.len(), seen[0].0), (260, 40));
        assert_eq!(tree(dir.path()), before);

        // Of a write that was cut off, and of what an older log had behind the present one, nothing is taken.
        let mut log = before["ledger.db-wal"].1.clone();
        let end = log.len() - 1;
        log[end] ^= 1;
        let copy = dir.path().join("torn.db");
        fs::write(&copy, &before["ledger.db"].1).expect("written");
        fs::write(dir.path().join("torn.db-wal"), &log).expect("written");
        assert_eq!(rows(&together(&copy).expect("read")).len(), 300, "the delete, which was last, is not there");

        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("brought home");
        assert_eq!(rows(&together(&path).expect("read")), seen);
    }

    #[test]
    fn it_is_read_while_it_is_written_and_brought_home() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("ledger.db");
        let db =
            open(&path, "OFF", "create table if not exists t (n integer primary key, t text not null) strict;").expect("opens");
        db.pragma_update(None, "wal_autocheckpoint", 7).expect("set");
        db.execute("insert into t (n, t) values (0, '0')", []).expect("written");
        let writer = thread::spawn(move || {
            // Each transaction leaves the same number in every row, and one row more.
            for n in 1..400i64 {
                let all = db.unchecked_transaction().expect("begun");
                all.execute("insert into t (n, t) values (?1, '')", [n]).expect("written");
                all.execute("update t set t = ?1", [n.to_string()]).expect("written");
                all.commit().expect("committed");
            }
        });
        let mut last = 0;
        while !writer.is_finished() {
            // A writer that never rests may begin its log anew in every look.
            let Ok(bytes) = together(&path) else { continue };
            let seen = rows(&bytes);
            let newest = seen.len() - 1;
            assert!(seen.iter().all(|(_, t)| *t == newest.to_string()), "a state that never was");
            assert!(newest >= last, "an older state than before");
            last = newest;
        }
        writer.join().expect("ends");
        assert_eq!(rows(&together(&path).expect("read")).len(), 400);
    }

    #[test]
    fn what_is_no_ledger_is_said() {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, bytes) in [("empty.db", Vec::new()), ("text.db", b"no ledger".repeat(99))] {
            let path = dir.path().join(name);
            fs::write(&path, bytes).expect("written");
            assert!(read(&path).is_err(), "{name}");
        }
        assert!(read(&dir.path().join("none.db")).is_err());
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 2);
    }
}
