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
    /// The system services that come with it, and that nobody asked for.
    services: &'static [&'static str],
    why: &'static str,
}

const fn need(program: &'static str, package: &'static str, why: &'static str) -> Need {
    Need { program, package, elsewhere: None, services: &[], why }
}

/// The product's own needs.
pub const PRODUCT: [Need; 2] = [
    // Debian 13 and the backports for 12 have it in the one, Debian 12 itself in the other.
    Need {
        program: "qemu-storage-daemon",
        package: "qemu-utils",
        elsewhere: Some("qemu-system-common"),
        services: &[],
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
/// The broker that tests start for themselves.
pub const BROKER: [Need; 3] = [
    Need {
        program: "rabbitmq-server",
        package: "rabbitmq-server",
        elsewhere: None,
        services: &["rabbitmq-server.service"],
        why: "the bus between hosts",
    },
    Need {
        program: "epmd",
        package: "erlang-base",
        elsewhere: None,
        services: &["epmd.service", "epmd.socket"],
        why: "finds its ports",
    },
    // A library: the file that it cannot be without stands for it.
    need("/usr/lib/python3/dist-packages/pika/__init__.py", "python3-pika", "a front end in the original's manner"),
];
/// What the bench compares with and measures by.
pub const BENCH: [Need; 2] =
    [need("nbdcopy", "libnbd-bin", "a copy to compare with"), need("fio", "fio", "measures a disk as a guest sees it")];
/// To test what is shown on a full disk, without touching the machine's own.
pub const SANDBOX: [Need; 2] =
    [need("unshare", "util-linux", "gives a test its own small disk"), need("mount", "mount", "the same")];

/// What the virtual machines are built with and reached by. QEMU is not among them: the lab unpacks one of its own.
pub const LAB: [Need; 9] = [
    need("mmdebstrap", "mmdebstrap", "makes the virtual machines of Debian's packages"),
    need("mkfs.erofs", "erofs-utils", "makes their disk image"),
    need("modprobe", "kmod", "finds the modules of their kernel"),
    need("cpio", "cpio", "makes their first file system"),
    need("ssh", "openssh-client", "runs commands in them"),
    need("ip", "iproute2", "makes their network"),
    need("nsenter", "util-linux", "keeps it apart from this machine's"),
    need("strip", "binutils", "makes the program small enough to ship"),
    need("mkfs.ext4", "e2fsprogs", "formats their disks"),
];

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
        let apt = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y", "--no-install-recommends"];
        as_root(&[&apt, words].concat())
    };
    let services: Vec<&str> = missing.iter().flat_map(|need| need.services).copied().collect();
    let _quiet = if services.is_empty() { None } else { Some(NoServices::begin()?) };
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
    if find("systemctl").is_some() {
        for service in services {
            println!("{service} was not started, and will not be: the tests start their own");
            as_root(&["systemctl", "disable", "--quiet", service])?;
        }
    }
    Ok(())
}

/// Runs a command as root; whether it succeeded.
fn as_root(words: &[&str]) -> anyhow::Result<bool> {
    let (first, rest) = words.split_first().context("a command")?;
    let sudo = !rustix::process::geteuid().is_root();
    let mut command = Command::new(if sudo { "sudo" } else { first });
    if sudo {
        command.args(std::env::var_os("CI").map(|_| "-n")).arg(first);
    }
    command.args(rest).stdin(if sudo { Stdio::inherit() } else { Stdio::null() });
    Ok(command.status().with_context(|| format!("starting {}", command::line(&command)))?.success())
}

/// What Debian's packages ask whether they may start their services.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// While it lives, packages that are installed start no service. A policy that the administrator made stays.
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn begin() -> anyhow::Result<Self> {
        let ours = !Path::new(POLICY).exists();
        if ours {
            let script = format!("printf '#!/bin/sh\\nexit 101\\n' > {POLICY} && chmod 755 {POLICY}");
            ensure!(
                as_root(&["sh", "-c", &script])?,
                "{POLICY} cannot be written, which keeps the package from starting its service"
            );
        }
        Ok(NoServices { ours })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours && !as_root(&["rm", "-f", POLICY]).unwrap_or(false) {
            println!("{POLICY} could not be removed: it keeps packages from starting services; remove it");
        }
    }
}
