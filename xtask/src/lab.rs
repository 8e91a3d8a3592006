//! `cargo xtask lab`: the virtual machines by hand.

use crate::{
    command::{self, Group, Watched, cargo, watch, watch_as},
    packages,
};
use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use img_storage_tests::{
    lab::{self, GUESTS, Lab, Options, image::Image, ship},
    service,
};
use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

/// The test program with the scenarios.
pub const TARGET: &str = "lab";
/// Where the lab's logs go, and what says which one is up.
const LOGS: &str = "target/lab";
/// The scenarios may take that long, all together.
const SCENARIOS: Duration = Duration::from_secs(60 * 60);

/// The virtual machines nas, node1 and node2, by hand
#[derive(Args)]
pub struct LabArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Tell whether this machine can run them
    Possible,
    /// Build the image, if it is not there
    Build {
        /// Build it again, with the newest kernel and ZFS that Debian has
        #[arg(long)]
        newest: bool,
    },
    /// Start the three machines, and leave them running
    Up,
    /// Give the machines that run the program as it is built now
    Ship,
    /// A shell in a machine, or a command there
    Ssh {
        /// nas, node1 or node2
        guest: String,
        /// The command
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Run scenarios, in machines of their own
    Run {
        /// In the machines that are up, which are left as the last scenario leaves them
        #[arg(long)]
        here: bool,
        /// Only those whose name contains this
        name: Option<String>,
    },
    /// Cut the power of the machines and remove their disks
    Down,
    /// What runs, and where its files are
    Status,
}

impl LabArgs {
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.verb {
            Verb::Possible => {
                packages::ensure(&packages::LAB)?;
                lab::possible()?;
                println!("this machine can run the virtual machines");
            }
            Verb::Build { newest } => {
                packages::ensure(&packages::LAB)?;
                let image = if newest { Image::newest()? } else { Image::ensure()? };
                println!("image     {}\nemulator  {}", image.dir.display(), image.emulator.display());
            }
            Verb::Up => up()?,
            Verb::Ship => ship_again()?,
            Verb::Ssh { guest, command } => return shell(&guest, &command),
            Verb::Run { here, name } => return scenarios(here, name.as_deref()),
            Verb::Down => {
                let lab = attach()?;
                let dir = lab.dir().to_owned();
                lab.down()?;
                fs::remove_file(pointer())?;
                println!("the machines are off, {} is removed; their consoles are in {LOGS}/by-hand", dir.display());
            }
            Verb::Status => status(),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The file that says where the lab is that is up.
fn pointer() -> PathBuf {
    command::root().join(LOGS).join("up")
}

/// The lab that is up.
fn attach() -> anyhow::Result<Lab> {
    let up = "no lab is up; cargo xtask lab up";
    let dir = fs::read_to_string(pointer()).context(up)?;
    Lab::attach(dir.trim().as_ref()).with_context(|| format!("{up} (the last one, in {}, has ended)", dir.trim()))
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// The program as it is now.
fn program() -> anyhow::Result<PathBuf> {
    let built = watch(&mut cargo(&["build", "--quiet", "--workspace", "--bins"]), Duration::from_secs(25 * 60))?;
    ensure!(built.success, "the program does not build");
    service::program()
}

fn up() -> anyhow::Result<()> {
    if let Ok(lab) = attach() {
        bail!("a lab is up already, in {}; cargo xtask lab down ends it", lab.dir().display());
    }
    packages::ensure(&packages::LAB)?;
    lab::possible()?;
    let logs = command::root().join(LOGS);
    fs::create_dir_all(&logs)?;
    let options = Options { program: Some(program()?), logs: logs.join("by-hand"), stay: true };
    let begun = Instant::now();
    let lab = runtime()?.block_on(Lab::up(&options))?;
    fs::write(pointer(), lab.dir().as_os_str().as_encoded_bytes())?;
    println!("{} run after {:.1} s, {}", GUESTS.join(", "), begun.elapsed().as_secs_f64(), lab.accelerator());
    println!(
        "\n  cargo xtask lab ssh node1               a shell; zfs, targetcli, iscsiadm, dmsetup and img-storage are there\n  \
         cargo xtask lab ssh nas zpool create tank /dev/disk/by-id/virtio-data\n  \
         cargo xtask lab ship                    the program as it is built now\n  cargo xtask lab down\n\n\
         consoles are in {LOGS}/by-hand"
    );
    Ok(())
}

fn ship_again() -> anyhow::Result<()> {
    let lab = attach()?;
    let copy = lab.dir().join("img-storage");
    ship::strip(&program()?, &copy)?;
    runtime()?.block_on(async {
        for guest in lab.guests() {
            guest.ssh().open(lab.namespace()).await?;
            // Not over the one that runs: beside it, then in its place.
            guest.put(&copy, "/usr/local/bin/.new").await?;
            guest.check("mv /usr/local/bin/.new /usr/local/bin/img-storage").await?;
        }
        anyhow::Ok(())
    })?;
    fs::remove_file(copy)?;
    println!("{} have it, as /usr/local/bin/img-storage; what runs there goes on as it was", GUESTS.join(", "));
    Ok(())
}

fn shell(guest: &str, words: &[String]) -> anyhow::Result<ExitCode> {
    let lab = attach()?;
    let guest = lab.guest(guest)?;
    runtime()?.block_on(guest.ssh().open(lab.namespace()))?;
    let words = guest.ssh().interactive(words);
    Err(Command::new(&words[0]).args(&words[1..]).exec()).context("starting ssh")
}

fn scenarios(here: bool, name: Option<&str>) -> anyhow::Result<ExitCode> {
    command::end_with_all()?;
    packages::ensure(&packages::LAB)?;
    packages::ensure(&packages::BROKER)?;
    program()?;
    let mut command = run(name);
    if here {
        command.env("IMG_STORAGE_LAB_DIR", attach()?.dir());
    }
    let ran = watch(&mut command, SCENARIOS)?;
    Ok(if ran.success { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The command that runs scenarios.
fn run(name: Option<&str>) -> Command {
    // As the rest is built: other features of a dependency would build it twice.
    let mut words = vec!["test", "--workspace", "--test", TARGET, "--"];
    words.extend(name);
    let mut command = cargo(&words);
    command.env("IMG_STORAGE_LAB", "1").env("CARGO_TERM_COLOR", "never");
    command
}

/// The image, which is built beside other things; and then the scenarios.
pub struct Preparation {
    build: Child,
    group: Group,
    log: tempfile::NamedTempFile,
}

/// What lines of the scenarios begin with that run beside other things.
const BESIDE: &str = "lab | ";

impl Preparation {
    /// Begins to build what is not there.
    ///
    /// # Errors
    /// When this program cannot be started again.
    pub fn begin() -> anyhow::Result<Self> {
        let log = tempfile::NamedTempFile::new()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["lab", "build"]).stdin(Stdio::null()).stdout(log.reopen()?).stderr(log.reopen()?).process_group(0);
        let build = command.spawn().context("starting the build of the virtual machines")?;
        let group = Group::of(&build)?;
        Ok(Preparation { build, group, log })
    }

    /// Waits for the image and runs all scenarios, beside other things: each line begins with `lab |`.
    ///
    /// # Errors
    /// When this machine cannot run virtual machines, or the image could not be built.
    pub fn run(mut self) -> anyhow::Result<Watched> {
        const OTHERWISE: &str =
            "NOT TESTED: the virtual machines. What is wrong is said above; to test all the rest: cargo xtask test --no-lab";
        lab::possible().context(OTHERWISE)?;
        let status = self.build.wait()?;
        for line in fs::read_to_string(self.log.path()).unwrap_or_default().lines() {
            println!("{BESIDE}{line}");
        }
        drop(self.group);
        ensure!(status.success(), "{OTHERWISE}: the image could not be built");
        watch_as(BESIDE, &mut run(None), SCENARIOS)
    }
}

fn status() {
    match lab::cache::Cache::open() {
        Ok(cache) => {
            let size = Command::new("du").args(["-sh"]).arg(cache.dir()).stderr(Stdio::null()).output();
            let size = size.map(|output| String::from_utf8_lossy(&output.stdout).split_whitespace().next().map(str::to_owned));
            println!("cache  {} ({})", cache.dir().display(), size.ok().flatten().unwrap_or_default());
        }
        Err(error) => println!("cache  {error:#}"),
    }
    match attach() {
        Err(error) => println!("up     {error:#}"),
        Ok(lab) => {
            println!("up     {}, {}; consoles in {}", lab.dir().display(), lab.accelerator(), lab.logs().display());
            let Ok(runtime) = runtime() else { return };
            for guest in lab.guests() {
                let on = if runtime.block_on(guest.runs()) { "on" } else { "off" };
                println!("       {:<6} {:<10} {on}", guest.name(), guest.address());
            }
        }
    }
}
