//! Whether a daemon has its directory, seen from outside: the lock itself is left alone, for a daemon that starts at that moment
//! would find it taken.

use img_storage_model::Fact;
use std::{fs, io::ErrorKind, os::unix::fs::MetadataExt as _, path::Path};

/// The process that holds the lock file `path`: the one that is named in it, when it has it open.
pub fn holder(path: &Path) -> Fact<Option<u32>> {
    let unknown = |why: std::io::Error| Fact::Unknown(format!("cannot look at {}: {why}", path.display()));
    let (text, lock) = match fs::read_to_string(path).and_then(|text| Ok((text, fs::metadata(path)?))) {
        Err(why) if why.kind() == ErrorKind::NotFound => return Fact::Known(None),
        Err(why) => return unknown(why),
        Ok(both) => both,
    };
    let Ok(pid) = text.trim().parse::<u32>() else { return Fact::Known(None) };
    match fs::read_dir(format!("/proc/{pid}/fd")) {
        Err(why) if super::kernel::is_gone(&why) => Fact::Known(None),
        Err(why) => unknown(why),
        Ok(open) => {
            let is_it = |entry: fs::DirEntry| {
                fs::metadata(entry.path()).is_ok_and(|meta| (meta.dev(), meta.ino()) == (lock.dev(), lock.ino()))
            };
            Fact::Known(open.flatten().any(is_it).then_some(pid))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_alone_is_no_holder() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        assert_eq!(holder(&path), Fact::Known(None));
        fs::write(&path, std::process::id().to_string()).expect("written");
        assert_eq!(holder(&path), Fact::Known(None));
        let open = fs::File::open(&path).expect("opens");
        assert_eq!(holder(&path), Fact::Known(Some(std::process::id())));
        drop(open);
        assert_eq!(holder(&path), Fact::Known(None));
        fs::write(&path, "4194305").expect("written");
        assert_eq!(holder(&path), Fact::Known(None));
    }
}
