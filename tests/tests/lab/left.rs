//! What must not stay behind: in the guests after a scenario, on this machine after a lab.

use anyhow::{Context as _, ensure};
use img_storage_tests::{
    lab::{Lab, namespace::Namespace},
    processes,
};
use std::{
    fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

/// What the others made is gone once it is cleared away, in the guests' kernels too, and those did not complain.
pub async fn nothing_is_left_in_the_guests(lab: &Lab) -> anyhow::Result<()> {
    for guest in lab.guests() {
        let look = "iscsiadm -m session 2> /dev/null || true; dmsetup ls | grep -v '^No devices' || true; zpool list -H
                    ls -d /sys/kernel/config/target/core/*_* /sys/kernel/config/target/iscsi/iqn.* 2> /dev/null || true; losetup -a";
        let left = guest.check(look).await?;
        ensure!(left.is_empty(), "on {}: {left}", guest.name());
        let said = guest.check("dmesg | grep -E 'BUG:|Oops|WARNING:|blocked for more' || true").await?;
        ensure!(said.is_empty(), "the kernel of {} complains: {said}", guest.name());
    }
    Ok(())
}

/// Makes this program the owner of an empty lab in the directory that it names.
pub const OWNER: &str = "IMG_STORAGE_LAB_OWNER";

/// Makes namespaces and a network in them, starts a process there, and waits to be killed.
pub fn own(dir: &Path) -> ExitCode {
    let owned = || -> anyhow::Result<()> {
        let namespace = Namespace::new(&dir.join("lock"))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(namespace.network())?;
        let words = namespace.words();
        // A daemon, as QEMU is one: it has left its starter's session.
        Command::new(&words[0]).args(&words[1..]).args(["setsid", "sleep", "1000000"]).spawn()?;
        println!("{}", namespace.identity().0);
        std::thread::sleep(Duration::from_secs(100));
        anyhow::bail!("it was not killed")
    };
    if let Err(error) = owned() {
        println!("{error:#}");
    }
    ExitCode::FAILURE
}

/// A program that owns a lab and is killed leaves no process of it, and so no network either.
pub async fn a_killed_owner_leaves_nothing() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut owner = Command::new("/proc/self/exe");
    let mut owner = owner.env(OWNER, dir.path()).stdout(Stdio::piped()).spawn()?;
    let mut said = String::new();
    BufReader::new(owner.stdout.take().context("its output")?).read_line(&mut said)?;
    let first: u32 = said.trim().parse().with_context(|| format!("the owner says: {said}"))?;
    let network = fs::read_link(format!("/proc/{first}/ns/net"))?;
    let begun = Instant::now();
    while inhabitants(&network)? < 3 {
        ensure!(begun.elapsed() < Duration::from_secs(20), "no process runs in the lab's network");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    processes::kill_and_wait(owner.id());
    owner.wait()?;
    let begun = Instant::now();
    while inhabitants(&network)? > 0 {
        ensure!(begun.elapsed() < Duration::from_secs(20), "{} processes of the lab live on", inhabitants(&network)?);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    ensure!(!Path::new("/proc").join(first.to_string()).exists(), "process {first} lives on");
    Ok(())
}

/// How many processes have this network.
fn inhabitants(network: &Path) -> anyhow::Result<usize> {
    let mut found = 0;
    for entry in fs::read_dir("/proc")? {
        found += usize::from(fs::read_link(entry?.path().join("ns/net")).is_ok_and(|link| link == network));
    }
    Ok(found)
}
