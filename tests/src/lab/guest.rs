//! One guest: started, cut off, started again; its console; commands in it.

use super::{
    Setting, address,
    disk::Disk,
    namespace::port,
    qmp, ship,
    ssh::{Output, Ssh, quote},
};
use anyhow::{Context as _, bail, ensure};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// How long a guest may take to start; three of them start at once, emulated, on a machine that has other things to do.
const START: Duration = Duration::from_secs(240);
/// What a command in a guest may take when nothing else is said.
pub const COMMAND: Duration = Duration::from_secs(60);
/// The end of a console that is shown, in lines.
const SHOWN: usize = 30;
/// The disk with everything that a guest writes to its root.
const STATE: u64 = 2 << 30;
/// The disk for a pool.
const DATA: u64 = 8 << 30;

/// A guest of a lab.
pub struct Guest {
    name: &'static str,
    setting: Arc<Setting>,
    ssh: Ssh,
}

impl Guest {
    pub(super) fn new(name: &'static str, setting: Arc<Setting>) -> Self {
        let ssh = Ssh::new(name, &setting.dir);
        Guest { name, setting, ssh }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Its address in the network that is tested.
    pub fn address(&self) -> String {
        address("data", self.name)
    }

    /// Its way in.
    pub fn ssh(&self) -> &Ssh {
        &self.ssh
    }

    fn path(&self, ending: &str) -> PathBuf {
        self.setting.dir.join(format!("{}.{ending}", self.name))
    }

    fn disks(&self) -> [(&'static str, Disk); 2] {
        ["state", "data"].map(|disk| (disk, Disk::at(self.setting.dir.join(format!("{}-{disk}.img", self.name)))))
    }

    /// Where its console is written.
    pub fn console(&self) -> PathBuf {
        self.setting.logs.join(format!("{}.console", self.name))
    }

    /// The end of its console.
    pub fn console_end(&self) -> String {
        let text = fs::read(self.console()).unwrap_or_default();
        super::cache::tail(&String::from_utf8_lossy(&text), SHOWN)
    }

    fn console_size(&self) -> u64 {
        fs::metadata(self.console()).map_or(0, |m| m.len())
    }

    /// Makes its disks, empty.
    pub(super) fn create_disks(&self) -> anyhow::Result<()> {
        for (name, disk) in self.disks() {
            disk.create(if name == "state" { STATE } else { DATA })?;
            if name == "state" {
                disk.format()?;
            }
        }
        Ok(())
    }

    /// Switches it on and waits until commands can be run in it.
    ///
    /// # Errors
    /// When it does not start in time; with the end of its console.
    pub async fn start(&self) -> anyhow::Result<()> {
        let seen = self.console_size();
        self.power_on().await?;
        self.ready(seen).await
    }

    /// Switches it on.
    async fn power_on(&self) -> anyhow::Result<()> {
        let Setting { image, namespace, dir, .. } = &*self.setting;
        for (_, disk) in self.disks() {
            disk.serve(image, namespace, dir).await?;
        }
        namespace.run(&self.command_line(), Duration::from_secs(60)).await.with_context(|| format!("starting {}", self.name))?;
        Ok(())
    }

    fn command_line(&self) -> Vec<String> {
        let Setting { image, accelerator, processors, memory, .. } = &*self.setting;
        let shown = |path: PathBuf| path.display().to_string();
        let mut words = image.program("qemu-system-x86_64");
        let mut add = |text: &str| words.extend(text.split_whitespace().map(str::to_owned));
        add(&format!("-name {} -machine pc-i440fx-7.2 {}", self.name, accelerator.options()));
        add(&format!(
            "-smp {processors} -m {memory} -nodefaults -no-user-config -display none -daemonize -D {}",
            shown(self.path("qemu.log"))
        ));
        add(&format!("-L {} -L {}", image.part("usr/share/seabios"), image.part("usr/share/qemu")));
        add(&format!("-chardev file,id=console,path={},append=on -serial chardev:console", shown(self.console())));
        add(&format!("-qmp unix:{},server=on,wait=off -pidfile {}", shown(self.path("qmp")), shown(self.path("pid"))));
        add(&format!("-kernel {} -initrd {}", image.file("vmlinuz"), image.file("initrd.img")));
        let readonly = |add: &mut dyn FnMut(&str), name: &str, file: String| {
            add(&format!("-blockdev driver=file,node-name={name}-file,filename={file},read-only=on"));
            add(&format!("-blockdev driver=raw,node-name={name},file={name}-file,read-only=on"));
            add(&format!("-device virtio-blk-pci,drive={name},serial={name}"));
        };
        readonly(&mut add, "root", image.file("root.erofs"));
        for (name, disk) in self.disks() {
            add(&format!(
                "-blockdev driver=nbd,node-name={name},server.type=unix,server.path={},discard=unmap",
                shown(disk.socket())
            ));
            add(&format!("-device virtio-blk-pci,drive={name},serial={name},write-cache=on"));
        }
        readonly(&mut add, "ship", shown(self.setting.dir.join("ship.erofs")));
        for (number, net) in ["data", "control"].into_iter().enumerate() {
            let host = address(net, self.name);
            let last: u8 = host.rsplit('.').next().and_then(|n| n.parse().ok()).unwrap_or_default();
            add(&format!("-netdev tap,id={net}-port,ifname={},script=no,downscript=no", port(net, self.name)));
            add(&format!("-device virtio-net-pci,id={net},netdev={net}-port,mac=52:54:00:00:{number:02x}:{last:02x},romfile="));
        }
        add("-device virtio-rng-pci");
        words.push("-append".to_owned());
        words.push(format!(
            "console=ttyS0 quiet loglevel=4 net.ifnames=0 panic=-1 mitigations=off cryptomgr.notests=1 lab.name={} lab.data={}/24 \
             lab.control={}/24 lab.hosts={}",
            self.name,
            address("data", self.name),
            address("control", self.name),
            ship::hosts(),
        ));
        words
    }

    /// Waits until it has started, as its console says from `seen` on, and sets its clock.
    async fn ready(&self, seen: u64) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let text = fs::read(self.console()).unwrap_or_default();
            let new = String::from_utf8_lossy(text.get(usize::try_from(seen)?..).unwrap_or_default()).into_owned();
            if new.lines().any(|line| line.starts_with("lab: ") && line.trim_end().ends_with(" ready")) {
                break;
            }
            ensure!(self.runs().await, "{} has ended while it started; its console:\n{}", self.name, self.console_end());
            ensure!(begun.elapsed() < START, "{} does not start; the end of its console:\n{}", self.name, self.console_end());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // sshd says that it runs a moment before it listens.
        while let Err(error) = self.ssh.open(&self.setting.namespace).await {
            ensure!(begun.elapsed() < START, "{error:#}; the end of its console:\n{}", self.console_end());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        self.set_clock().await
    }

    /// Gives it this machine's time.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn set_clock(&self) -> anyhow::Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        self.check(&format!("date -s @{}.{:09} > /dev/null", now.as_secs(), now.subsec_nanos())).await?;
        Ok(())
    }

    /// Whether its QEMU runs.
    pub async fn runs(&self) -> bool {
        let Ok(pid) = fs::read_to_string(self.path("pid")) else { return false };
        self.setting.namespace.run(&["kill", "-0", pid.trim()], Duration::from_secs(10)).await.is_ok()
    }

    /// Cuts its power: QEMU and its disks' caches are killed at once. What it had not flushed is lost.
    ///
    /// # Errors
    /// When it is not on, or a process does not go.
    pub async fn cut_power(&self) -> anyhow::Result<()> {
        ensure!(self.runs().await, "{} is not on", self.name);
        self.kill_processes().await
    }

    /// Ends what runs of QEMU and its disks' servers.
    async fn kill_processes(&self) -> anyhow::Result<()> {
        // The disks first: what QEMU has on its way when it dies must not reach them. QEMU removes its file when it ends by itself.
        let mut files: Vec<PathBuf> = self.disks().iter().map(|(_, disk)| disk.pid_file()).collect();
        files.push(self.path("pid"));
        let pids: Vec<String> = files.iter().filter_map(|file| Some(fs::read_to_string(file).ok()?.trim().to_owned())).collect();
        let each = pids.join(" ");
        let script = format!(
            "kill -9 {each}; for pid in {each}; do n=0; while kill -0 $pid 2> /dev/null; do n=$((n+1)); [ $n -lt 1000 ] || exit 1; sleep 0.01; done; done"
        );
        self.setting.namespace.run(&["sh", "-c", &script], Duration::from_secs(40)).await?;
        self.ssh.close().await;
        for file in &files {
            let _ = fs::remove_file(file);
        }
        Ok(())
    }

    /// Starts it again as its administrator would, and waits until it is back.
    ///
    /// # Errors
    /// When it does not come back; with the end of its console.
    pub async fn reboot(&self) -> anyhow::Result<()> {
        let seen = self.console_size();
        self.check("(sleep 0.2; busybox reboot) > /dev/null 2>&1 & disown").await?;
        let begun = Instant::now();
        // The connection ends when sshd does.
        tokio::time::sleep(Duration::from_millis(500)).await;
        self.ssh.close().await;
        let back = self.ready(seen).await;
        back.with_context(|| format!("{} does not come back after {} s", self.name, begun.elapsed().as_secs()))
    }

    /// Pulls or plugs the cable of the network that is tested; commands still reach it.
    ///
    /// # Errors
    /// When QEMU does not do it.
    pub async fn link(&self, up: bool) -> anyhow::Result<()> {
        qmp::order(&self.path("qmp"), "set_link", json!({"name": "data", "up": up})).await?;
        Ok(())
    }

    /// Runs a script of bash.
    ///
    /// # Errors
    /// When it cannot be run, or the guest does not answer; with the end of its console.
    pub async fn run(&self, script: &str) -> anyhow::Result<Output> {
        self.run_within(script, COMMAND).await
    }

    /// As [`Guest::run`], with a limit of its own.
    ///
    /// # Errors
    /// As [`Guest::run`].
    pub async fn run_within(&self, script: &str, limit: Duration) -> anyhow::Result<Output> {
        let ran = self.ssh.run(script, limit).await;
        ran.with_context(|| format!("`{script}` on {}; the end of its console:\n{}", self.name, self.console_end()))
    }

    /// Runs a script of bash that must succeed, each command of it; what it printed, without the last line's end.
    ///
    /// # Errors
    /// When it fails; with what it said.
    pub async fn check(&self, script: &str) -> anyhow::Result<String> {
        self.check_within(script, COMMAND).await
    }

    /// As [`Guest::check`], with a limit of its own.
    ///
    /// # Errors
    /// As [`Guest::check`].
    pub async fn check_within(&self, script: &str, limit: Duration) -> anyhow::Result<String> {
        let ran = self.run_within(&format!("set -euo pipefail; {script}"), limit).await?;
        if ran.code == 0 {
            return Ok(ran.stdout.trim_end().to_owned());
        }
        let ended =
            if ran.code == 124 { format!("did not end in {} s", limit.as_secs()) } else { format!("failed with {}", ran.code) };
        bail!("`{script}` on {} {ended}: {} {}", self.name, ran.stdout.trim(), ran.stderr.trim());
    }

    /// Starts a command that goes on by itself; what it prints is in `/run/lab/NAME.log`. Its process number, which is also that
    /// of its group.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn spawn(&self, name: &str, command: &str) -> anyhow::Result<u32> {
        let script = format!(
            "mkdir -p /run/lab; setsid bash -c {} > /run/lab/{name}.log 2>&1 < /dev/null & echo $! | tee /run/lab/{name}.pid",
            quote(&format!("exec {command}"))
        );
        let pid = self.check(&script).await?;
        pid.parse().with_context(|| format!("`{command}` on {} has no process number: {pid}", self.name))
    }

    /// Waits until a script of bash succeeds; what it printed then.
    ///
    /// # Errors
    /// When it does not in time; with what it said last.
    pub async fn wait_for(&self, script: &str, limit: Duration) -> anyhow::Result<String> {
        let begun = Instant::now();
        loop {
            let ran = self.run(script).await?;
            if ran.code == 0 {
                return Ok(ran.stdout.trim_end().to_owned());
            }
            ensure!(
                begun.elapsed() < limit,
                "`{script}` on {} is not so after {} s: {} {}",
                self.name,
                limit.as_secs(),
                ran.stdout.trim(),
                ran.stderr.trim()
            );
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    /// Copies a file into it.
    ///
    /// # Errors
    /// When that fails.
    pub async fn put(&self, file: &Path, to: &str) -> anyhow::Result<()> {
        self.ssh.put(file, to, 2 * COMMAND).await
    }

    /// Copies a file out of it.
    ///
    /// # Errors
    /// When that fails.
    pub async fn get(&self, file: &str, to: &Path) -> anyhow::Result<()> {
        self.ssh.get(file, to, 2 * COMMAND).await
    }
}
