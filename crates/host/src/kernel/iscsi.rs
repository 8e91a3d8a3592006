//! open-iscsi on a node: sessions with the targets of a NAS, and the disks they bring.
//!
//! Nothing is discovered: a record is made from what the NAS said, for one target at one portal, with `node.startup` manual, so that
//! no reboot brings a disk back by itself. The record's file is edited where `iscsiadm` put it, because a password on a
//! command line is everybody's to read. What became of a login is seen in `/sys/class/iscsi_session`; the exit code of
//! `iscsiadm` is only for the message.
//!
//! Ours are the targets whose names begin with our prefix. No other session and no other record is touched.

mod disk;
mod record;
mod session;

pub use disk::Disk;
pub use session::{Session, State};

use super::{block::Number, lio::Chap, program, until};
use crate::{HostError, exec};
use std::{net::SocketAddr, path::PathBuf, time::Duration};

/// How long `iscsiadm` may take for what needs no network.
const LOCAL: Duration = Duration::from_secs(15);
/// How long it may take to log out; a NAS that does not answer is given its logout timeout of 15 s.
const LOGOUT: Duration = Duration::from_secs(40);

/// A target to log in to, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The target's name.
    pub target: String,
    /// Where it listens.
    pub portal: SocketAddr,
    /// What shows the target who we are.
    pub chap: Chap,
    /// How long the disk may be without its target before what is written and read fails. Until then it waits.
    pub replacement_timeout: Duration,
    /// How often an idle connection is tried, and how long the answer may take. Zero for never.
    pub noop: (Duration, Duration),
}

/// The initiator of this host, and which targets are ours.
#[derive(Clone, Debug)]
pub struct Iscsi {
    program: PathBuf,
    prefix: String,
    /// Where records can be; distributions differ.
    records: Vec<PathBuf>,
    sysfs: PathBuf,
}

impl Iscsi {
    /// Targets whose names begin with `prefix` are ours.
    pub fn new(prefix: impl Into<String>) -> Self {
        Self {
            program: program("iscsiadm"),
            prefix: prefix.into(),
            records: ["/etc/iscsi/nodes", "/var/lib/iscsi/nodes"].map(PathBuf::from).into(),
            sysfs: "/sys".into(),
        }
    }

    /// The sessions with targets of ours, in whatever state.
    ///
    /// # Errors
    /// When they cannot be told.
    pub async fn sessions(&self) -> Result<Vec<Session>, HostError> {
        let iscsi = self.clone();
        let look = move || session::all(&iscsi.sysfs, &iscsi.prefix);
        super::blocking("cannot list the iSCSI sessions of this host", LOCAL, look).await
    }

    /// The session with a target; nothing when there is none.
    ///
    /// # Errors
    /// When it cannot be told.
    pub async fn session(&self, target: &str) -> Result<Option<Session>, HostError> {
        Ok(self.sessions().await?.into_iter().find(|session| session.target == target))
    }

    /// The targets of ours that there are records of.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn records(&self) -> Result<Vec<String>, HostError> {
        record::targets(&self.records, &self.prefix)
    }

    /// Logs in to a target, unless there is a session with it; one that is broken is given the time to come back. A login that does not
    /// succeed leaves nothing behind: `iscsiadm` alone would go on trying for two minutes.
    ///
    /// # Errors
    /// When there is no session that is logged in after `deadline`.
    pub async fn login(&self, wanted: &Wanted, deadline: Duration) -> Result<Session, HostError> {
        self.refuse_foreign(&wanted.target)?;
        if let Some(found) = self.session(&wanted.target).await? {
            return self.until_logged_in(&wanted.target, deadline).await?.ok_or_else(|| {
                HostError(format!(
                    "the session with {} has been {:?} and did not come back within {deadline:?}; log out and in again if its NAS is up",
                    wanted.target, found.state
                ))
            });
        }
        self.write_record(wanted, deadline).await?;
        let node = Self::node(&wanted.target, wanted.portal);
        let done = self.run(&node, &["--login"], deadline).await;
        // The session is to be seen a moment after the program has ended.
        let moment = if done.is_ok() { LOCAL } else { Duration::ZERO };
        if let Some(session) = self.until_logged_in(&wanted.target, moment).await? {
            return Ok(session);
        }
        let why = done.err().unwrap_or_else(|| HostError("iscsiadm said it was done, but there is no session".to_owned()));
        let left = self.logout(&wanted.target, wanted.portal).await.err();
        Err(HostError(format!(
            "cannot log in to {} at {}: {why}; is the export there, for this initiator?{}",
            wanted.target,
            wanted.portal,
            left.map_or_else(String::new, |left| format!(" And it could not be cleared away: {left}"))
        )))
    }

    /// Ends the session with a target and removes the record of it; nothing to do when there is neither. A session whose target is
    /// gone is ended as well. The disk must not be in use: what is written to it is lost.
    ///
    /// # Errors
    /// Naming what is left.
    pub async fn logout(&self, target: &str, portal: SocketAddr) -> Result<(), HostError> {
        self.refuse_foreign(target)?;
        let node = Self::node(target, portal);
        let mut done = Ok(String::new());
        if let Some(session) = self.session(target).await? {
            // By its number: that works without a record, too.
            done = self.run(&["-m", "session", "-r", &session.id.to_string()], &["--logout"], LOGOUT).await;
        }
        let gone = until(Duration::from_secs(5), || async { Ok(self.session(target).await?.is_none().then_some(())) }).await?;
        if gone.is_none() {
            let why = done.err().map_or_else(|| "iscsiadm said it was done".to_owned(), |error| error.to_string());
            return Err(HostError(format!("the session with {target} is still there: {why}")));
        }
        if record::find(&self.records, target)?.is_none() {
            return Ok(());
        }
        let deleted = self.run(&node, &["-o", "delete"], LOCAL).await;
        match record::find(&self.records, target)? {
            None => Ok(()),
            Some(path) => {
                Err(deleted.err().unwrap_or_else(|| HostError(format!("the record {} is still there", path.display()))))
            }
        }
    }

    /// The disk of LUN `lun` of a target, once the kernel has found it.
    ///
    /// Whether it is the right one is for the caller to check: its serial number and its size.
    ///
    /// # Errors
    /// When there is none within `deadline`, or no session.
    pub async fn disk(&self, target: &str, lun: u64, deadline: Duration) -> Result<Disk, HostError> {
        let found = until(deadline, || async {
            let Some(session) = self.session(target).await? else {
                return Err(HostError(format!("there is no session with {target}")));
            };
            self.find_disk(&session, lun).await
        });
        found.await?.ok_or_else(|| {
            HostError(format!(
                "the target {target} shows no disk as LUN {lun} after {deadline:?}; is the LUN mapped to this initiator?"
            ))
        })
    }

    /// The disk of LUN `lun` of a session, as it is now; nothing when there is none.
    ///
    /// # Errors
    /// When it cannot be told.
    pub async fn find_disk(&self, session: &Session, lun: u64) -> Result<Option<Disk>, HostError> {
        let (sysfs, id) = (self.sysfs.clone(), session.id);
        super::blocking(format!("cannot look for the disk of {}", session.target), LOCAL, move || disk::find(&sysfs, id, lun))
            .await
    }

    /// Makes the kernel ask a disk for its size again, and waits until it has `size` bytes.
    ///
    /// # Errors
    /// When it does not get that size within `deadline`.
    pub async fn rescan(&self, disk: &Disk, size: u64, deadline: Duration) -> Result<(), HostError> {
        let number: Number = disk.number;
        let path = self.sysfs.join(format!("dev/block/{number}/device/rescan"));
        let name = disk.name.clone();
        let ask = move || std::fs::write(&path, "1").map_err(super::during(format_args!("cannot rescan {name}")));
        super::blocking(format!("cannot rescan {}", disk.name), deadline, ask).await?;
        let grown = until(deadline, || async { Ok(super::block::look(number)?.filter(|block| block.size == size)) }).await?;
        match grown {
            Some(_) => Ok(()),
            None => Err(HostError(format!(
                "{} does not have {size} bytes after {deadline:?}; has the volume grown on the NAS?",
                disk.name
            ))),
        }
    }

    async fn until_logged_in(&self, target: &str, deadline: Duration) -> Result<Option<Session>, HostError> {
        until(deadline, || async { Ok(self.session(target).await?.filter(|session| session.state == State::LoggedIn)) }).await
    }

    async fn write_record(&self, wanted: &Wanted, deadline: Duration) -> Result<(), HostError> {
        let node = Self::node(&wanted.target, wanted.portal);
        // Made new each time: what an earlier attempt or somebody's hand put into it does not count.
        let done = self.run(&node, &["-o", "new"], LOCAL).await;
        match record::find(&self.records, &wanted.target)? {
            Some(file) => record::edit(&file, &record::settings(wanted, deadline)),
            None => Err(done.err().unwrap_or_else(|| {
                HostError(format!(
                    "iscsiadm made a record of {} that is in none of {:?}; where does it keep them?",
                    wanted.target, self.records
                ))
            })),
        }
    }

    fn node(target: &str, portal: SocketAddr) -> [String; 6] {
        ["-m", "node", "-T", target, "-p", &format!("{portal},1")].map(str::to_owned)
    }

    fn refuse_foreign(&self, target: &str) -> Result<(), HostError> {
        let one_word = target.chars().all(|c| c.is_ascii_graphic() && c != '/');
        if !self.prefix.is_empty() && target.starts_with(&self.prefix) && one_word {
            return Ok(());
        }
        Err(HostError(format!("the target {target:?} is not ours: names of ours begin with {:?}; it is left alone", self.prefix)))
    }

    async fn run<A: AsRef<str>>(&self, what: &[A], args: &[&str], deadline: Duration) -> Result<String, HostError> {
        let args: Vec<&str> = what.iter().map(AsRef::as_ref).chain(args.iter().copied()).collect();
        let output = exec::run(&self.program, &args, deadline).await.map_err(|error| HostError(error.to_string()))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
