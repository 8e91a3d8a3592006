//! Moving a whole image between a file and an export, by `qemu-img convert`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use img_storage_model::messages::Endpoint;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::{ImageError, ImageFormat, options};
use crate::exec;
use crate::qsd::commas;

/// An export served over TLS, and the directory with our certificate (`ca-cert.pem`, `client-cert.pem`, `client-key.pem`).
#[derive(Debug, Clone)]
pub struct Served {
    /// Where.
    pub endpoint: Endpoint,
    /// Certificates.
    pub certificates: PathBuf,
}

impl Served {
    fn credentials(&self) -> String {
        format!("tls-creds-x509,id=tls0,endpoint=client,verify-peer=on,dir={}", commas(&self.certificates))
    }

    fn options(&self) -> String {
        let Endpoint { host, port, export, server } = &self.endpoint;
        let (host, export) = (commas(Path::new(host)), commas(Path::new(export)));
        format!(
            "driver=nbd,server.type=inet,server.host={host},server.port={port},export={export},\
             tls-creds=tls0,tls-hostname={server}"
        )
    }
}

/// Copies an image file, which [`super::inspect`] has accepted as `format`, into an export that is known to be all zeroes
/// (a volume made for it). `progress` gets hundredths of a percent. Dropping the future ends it.
///
/// # Errors
/// As the tool puts it, or when it took longer than `deadline`.
pub async fn import(
    source: &Path,
    format: ImageFormat,
    target: &Served,
    deadline: Duration,
    progress: impl FnMut(u32),
) -> Result<(), ImageError> {
    let path =
        fs::canonicalize(source).map_err(|error| ImageError::Io { what: "find", path: source.to_owned(), source: error })?;
    let (credentials, from, to) = (target.credentials(), options(format, &path), target.options());
    let arguments = [
        "convert",
        "-n",
        "-p",
        "-S",
        "4k",
        "-W",
        "-m",
        "8",
        "-t",
        "writeback",
        "--target-is-zero",
        "--object",
        &credentials,
        "--image-opts",
        &from,
        "--target-image-opts",
        &to,
    ];
    exec::run_watched("qemu-img", &arguments, deadline, watch(progress)).await?;
    Ok(())
}

/// Copies an export into a new image file. The file appears under its name when it is whole and on stable storage; until then
/// it has `.part` behind it. Dropping the future ends it and removes that.
///
/// # Errors
/// [`ImageError::Refused`] when the file exists; else as the tool puts it.
pub async fn export(
    source: &Served,
    target: &Path,
    format: ImageFormat,
    deadline: Duration,
    progress: impl FnMut(u32),
) -> Result<(), ImageError> {
    let failed = |what, path: &Path| {
        let path = path.to_owned();
        move |source| ImageError::Io { what, path, source }
    };
    let refused = |path: &Path, why: &str| ImageError::Refused { path: path.to_owned(), why: why.to_owned() };
    let name = target.file_name().ok_or_else(|| refused(target, "is no name for a file"))?;
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let parent = fs::canonicalize(parent).map_err(failed("find", parent))?;
    let target = parent.join(name);
    if fs::symlink_metadata(&target).is_ok() {
        return Err(refused(&target, "exists already; choose another name or remove it"));
    }
    let part = Part::create(&target)?;
    let credentials = source.credentials();
    let (from, to) = (source.options(), part.0.to_string_lossy().into_owned());
    let arguments =
        ["convert", "-p", "-W", "-m", "8", "--object", &credentials, "--image-opts", &from, "-O", format.driver(), &to];
    exec::run_watched("qemu-img", &arguments, deadline, watch(progress)).await?;
    File::open(&part.0).and_then(|file| file.sync_all()).map_err(failed("put on stable storage", &part.0))?;
    match renameat_with(CWD, &part.0, CWD, &target, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::EXIST) => return Err(refused(&target, "was made by somebody else in the meantime")),
        Err(error) => return Err(failed("rename", &part.0)(io::Error::from(error))),
        Ok(()) => part.arrived(),
    }
    File::open(&parent).and_then(|dir| dir.sync_all()).map_err(failed("put on stable storage", &parent))
}

/// A file under way; removed unless it arrived.
struct Part(PathBuf);

impl Part {
    fn create(target: &Path) -> Result<Self, ImageError> {
        let mut name = target.as_os_str().to_owned();
        name.push(".part");
        let path = PathBuf::from(name);
        match File::create_new(&path) {
            Ok(_) => Ok(Self(path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let why = "is there: another export writes it, or one was cut off; if none runs, remove it".to_owned();
                Err(ImageError::Refused { path, why })
            }
            Err(source) => Err(ImageError::Io { what: "create", path, source }),
        }
    }

    fn arrived(mut self) {
        self.0 = PathBuf::new();
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            let _ = fs::remove_file(&self.0);
        }
    }
}

/// Finds the newest `(12.34/100%)` in what `qemu-img -p` prints.
fn watch(mut progress: impl FnMut(u32)) -> impl FnMut(&[u8]) {
    let mut rest = String::new();
    move |piece| {
        rest.push_str(&String::from_utf8_lossy(piece));
        if let Some(percent) = newest(&rest) {
            progress(percent);
        }
        // What follows the last end of a report may be the beginning of the next one.
        let keep = rest.rfind(')').map_or(0, |at| at + 1);
        rest.drain(..keep);
        if rest.len() > 4096 {
            rest.clear();
        }
    }
}

/// Hundredths of a percent.
pub(super) fn newest(text: &str) -> Option<u32> {
    text.rmatch_indices("/100%)").find_map(|(end, _)| {
        let begin = text[..end].rfind('(')?;
        let percent: f64 = text[begin + 1..end].trim().parse().ok()?;
        // The range is checked: no sign or size is lost.
        (0.0..=100.0).contains(&percent).then(|| (percent * 100.0).round() as u32)
    })
}
