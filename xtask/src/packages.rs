//! Debian's packages: what is missing is installed, and said.

use crate::command;
use anyhow::{Context as _, bail, ensure};
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// A program, the package that has it, and what it is for.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    program: &'static str,
    package: &'static str,
    /// The package that has it in another release of Debian.
    elsewhere: Option<&'static str>,
    why: &'static str,
}

const fn need(program: &'static str, package: &'static str, why: &'static str) -> Need {
    Need { program, package, elsewhere: None, why }
}

/// The product's own needs.
pub const PRODUCT: [Need; 2] = [
    // Debian 13 and the backports for 12 have it in the one, Debian 12 itself in the other.
    Need {
        program: "qemu-storage-daemon",
        package: "qemu-utils",
        elsewhere: Some("qemu-system-common"),
        why: "carries the disks",
    },
    need("qemu-img", "qemu-utils", "reads and writes image files"),
];
/// To make and check a file system in a file.
pub const EXT4: [Need; 3] = [
    need("mkfs.ext4", "e2fsprogs", "makes the demo's disk image"),
    need("debugfs", "e2fsprogs", "tells where a file lies in it"),
    need("e2fsck", "e2fsprogs", "checks it"),
];
/// What the bench compares with and measures by.
pub const BENCH: [Need; 2] =
    [need("nbdcopy", "libnbd-bin", "a copy to compare with"), need("fio", "fio", "measures a disk as a guest sees it")];
/// To test what is shown on a full disk, without touching the machine's own.
pub const SANDBOX: [Need; 2] =
    [need("unshare", "util-linux", "gives a test its own small disk"), need("mount", "mount", "the same")];

/// A program on the search path or where administrators' programs are.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from));
    places.map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Installs the packages of the programs that are not there. One that is there stays as it is, from wherever it came.
///
/// # Errors
/// When one is missing and cannot be installed; naming what to do.
pub fn ensure(needs: &[Need]) -> anyhow::Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|need| find(need.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let mut packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    packages.sort_unstable();
    packages.dedup();
    for need in &missing {
        println!("missing: {} ({}), of Debian's package {}", need.program, need.why, need.package);
    }
    let by_hand = format!("apt-get install {}", packages.join(" "));
    ensure!(Path::new("/usr/bin/apt-get").exists(), "this is no Debian; install what has the programs above by hand");
    let sudo = !rustix::process::geteuid().is_root();
    if sudo && find("sudo").is_none() {
        bail!("not root and no sudo; run as root: {by_hand}");
    }
    println!("installing {}{}", packages.join(", "), if sudo { " by sudo" } else { "" });
    let apt = |words: &[&str]| -> anyhow::Result<bool> {
        let mut command = if sudo { Command::new("sudo") } else { Command::new("env") };
        if sudo && std::env::var_os("CI").is_some() {
            command.arg("-n");
        }
        if sudo {
            command.arg("env");
        }
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y", "--no-install-recommends"]).args(words);
        command.stdin(if sudo { Stdio::inherit() } else { Stdio::null() });
        Ok(command.status().with_context(|| format!("starting {}", command::line(&command)))?.success())
    };
    let mut words = vec!["install"];
    words.extend(&packages);
    // Lists that are old or absent are brought up to date only when they are needed.
    if !apt(&words)? {
        apt(&["update"])?;
        ensure!(apt(&words)?, "the packages cannot be installed; see above, then: {by_hand}");
    }
    for need in missing {
        if let (None, Some(package)) = (find(need.program), need.elsewhere) {
            println!("{} is not in {} here; installing {package}", need.program, need.package);
            ensure!(apt(&["install", package])?, "{package} cannot be installed; see above, then: apt-get install {package}");
        }
        ensure!(find(need.program).is_some(), "{} was installed but has no {}", need.package, need.program);
    }
    Ok(())
}
