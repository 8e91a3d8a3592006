//! What machine the figures are of.

use crate::{command, screen};
use std::{fs, path::Path, process::Command};

/// A line or two about it, and when.
pub fn describe(dir: &Path, quick: bool) -> anyhow::Result<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let field = |name: &str| cpus.lines().find_map(|l| l.strip_prefix(name)?.split_once(':').map(|(_, v)| v.trim().to_owned()));
    let model = field("model name").or_else(|| field("CPU part")).unwrap_or_else(|| "unknown CPU".to_owned());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = fs::read_to_string("/proc/meminfo")?;
    let memory: u64 =
        memory.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0);
    let said = |command: &mut Command| command::output(command).unwrap_or_default().trim().to_owned();
    let disk = said(Command::new("findmnt").args(["-n", "-o", "SOURCE,FSTYPE", "-T"]).arg(dir));
    let disk = disk.split_whitespace().collect::<Vec<_>>().join(", ");
    let kernel = said(Command::new("uname").arg("-r"));
    let qemu = said(Command::new("qemu-storage-daemon").arg("--version"));
    let qemu = qemu.lines().next().unwrap_or_default().trim_start_matches("qemu-storage-daemon version ").to_owned();
    let system = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system =
        system.lines().find_map(|l| l.strip_prefix("PRETTY_NAME=")).unwrap_or("unknown system").trim_matches('"').to_owned();
    let date = said(Command::new("date").args(["-u", "+%Y-%m-%d"]));
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    let quick = if quick { " **Quick run: not to be quoted.**" } else { "" };
    Ok(format!(
        "{date}, `cargo xtask bench`: {cores} cores of {model}, {} of memory, disk {disk}, {system}, kernel {kernel}, QEMU {qemu}; \
         load average at the end {load}.{quick}\n",
        screen::bytes(memory << 10),
    ))
}
