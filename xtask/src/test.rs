//! `cargo xtask test`: everything that can be tested on this machine, in sections that each say how long they took.

use crate::{
    command::{self, Group, Watched, cargo, nice_cargo, watch},
    lab, packages,
};
use anyhow::Context as _;
use clap::Args;
use std::{
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

/// The test program of the simulation.
const SIMULATION: &str = "simulation";
/// The test program of whole lives under `kill -9`. It waits for states, not for times, with minutes to spare.
const CRASH: &str = "crash";
/// Where tools are put that are installed from their sources.
const TOOLS: &str = "target/tools";

/// Run everything that can be tested here
#[derive(Args)]
pub struct Test {
    /// Fewer seeds, and no check of the dependencies unless its tool is there
    #[arg(long)]
    quick: bool,
    /// Leave out the virtual machines
    #[arg(long)]
    no_lab: bool,
}

struct Section {
    name: &'static str,
    good: bool,
    took: Duration,
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Section {
    fn of(name: &'static str, work: impl FnOnce() -> anyhow::Result<Watched>) -> Self {
        let begun = Instant::now();
        let watched = work().unwrap_or_else(|error| {
            println!("{name}: {error:#}");
            Watched { success: false, printed: String::new() }
        });
        let (passed, failed, ignored) = counts(&watched.printed);
        let section = Section { name, good: watched.success, took: begun.elapsed(), passed, failed, ignored };
        println!("== {name}: {} in {}", if section.good { "good" } else { "FAILED" }, time(section.took));
        section
    }
}

struct Run {
    quick: bool,
    /// Virtual machines run beside it.
    beside: bool,
    sections: Vec<Section>,
}

impl Test {
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let begun = Instant::now();
        command::end_with_all()?;
        let no_lab = self.no_lab;
        let mut run = Run { quick: self.quick, beside: false, sections: Vec::new() };
        run.section("packages", |_| {
            packages::ensure(&packages::PRODUCT)?;
            packages::ensure(&packages::EXT4)?;
            packages::ensure(&packages::SANDBOX)?;
            packages::ensure(&packages::BROKER)?;
            if !no_lab {
                packages::ensure(&packages::LAB)?;
            }
            Ok(Watched { success: true, printed: String::new() })
        });
        // Their image takes minutes to build, and is needed once the program is there.
        let lab = if self.no_lab { None } else { Some(lab::Preparation::begin()?) };
        let deny = Deny::prepare(self.quick)?;
        run.cargo("format", &["fmt", "--all", "--check"], 2);
        run.cargo("build", &["build", "--workspace", "--bins", "--tests"], 25);
        let others = test_programs()?;
        run.cargo("unit tests", &["test", "--workspace", "--lib", "--bins", "--no-fail-fast"], 10);
        let mut parts = vec!["test", "--workspace", "--no-fail-fast"];
        parts.extend(others.iter().flat_map(|name| ["--test", name.as_str()]));
        run.cargo("real parts and processes", &parts, 20);
        // Emulated machines take the longest, and leave some time of two processors: what no short time counts in is run beside them, and gives way.
        let lab = lab.map(|lab| {
            run.beside = true;
            println!("\n== virtual machines: they run beside what follows; their lines begin with a word of their own");
            std::thread::spawn(move || Section::of("virtual machines", || lab.run()))
        });
        run.cargo("simulation", &["test", "--workspace", "--no-fail-fast", "--test", SIMULATION], 25);
        run.cargo("kills", &["test", "--workspace", "--no-fail-fast", "--test", CRASH], 20);
        run.cargo("lints", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], 15);
        match lab {
            Some(lab) => run.sections.push(lab.join().map_err(|_| anyhow::anyhow!("the virtual machines' section panicked"))?),
            None => {
                println!("\n== virtual machines: LEFT OUT, by --no-lab: nothing that ZFS, iSCSI and device-mapper do was tested")
            }
        }
        if let Some(deny) = deny {
            run.section("dependencies", |_| deny.check());
        }
        Ok(run.end(begun))
    }
}

impl Run {
    fn cargo(&mut self, name: &'static str, words: &[&str], minutes: u64) {
        let beside = self.beside;
        self.section(name, |quick| {
            let mut command = if beside { nice_cargo(words) } else { cargo(words) };
            command.env("CARGO_TERM_COLOR", "never").env("RUST_BACKTRACE", "0");
            if quick {
                command.env("IMG_STORAGE_QUICK", "1");
            }
            println!("cargo {}", words.join(" "));
            watch(&mut command, Duration::from_secs(60 * minutes))
        });
    }

    fn section(&mut self, name: &'static str, work: impl FnOnce(bool) -> anyhow::Result<Watched>) {
        println!("\n== {name}");
        let quick = self.quick;
        self.sections.push(Section::of(name, || work(quick)));
    }

    fn end(self, begun: Instant) -> ExitCode {
        println!("\n== summary");
        for section in &self.sections {
            let tests = if section.passed + section.failed > 0 {
                format!("{} passed, {} failed, {} ignored", section.passed, section.failed, section.ignored)
            } else {
                String::new()
            };
            let how = if section.good { "good" } else { "FAILED" };
            println!("{:<26}{how:<8}{:>8}  {tests}", section.name, time(section.took));
        }
        println!("{:<34}{:>8}", "in all", time(begun.elapsed()));
        let good = self.sections.iter().all(|section| section.good);
        let sum = |of: fn(&Section) -> u64| self.sections.iter().map(of).sum::<u64>();
        println!("\n{} passed, {} failed", sum(|s| s.passed), sum(|s| s.failed));
        if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

fn time(took: Duration) -> String {
    let tenths = took.as_millis() / 100;
    if tenths < 600 {
        format!("{}.{} s", tenths / 10, tenths % 10)
    } else {
        format!("{}:{:02} min", tenths / 600, tenths / 10 % 60)
    }
}

/// Passed, failed and ignored tests in what `cargo test` printed.
fn counts(printed: &str) -> (u64, u64, u64) {
    let mut sum = (0, 0, 0);
    for line in printed.lines().filter_map(|line| line.strip_prefix("test result: ")) {
        let number = |what: &str| {
            let part = line.split([';', '.']).map(str::trim).find_map(|part| part.strip_suffix(what));
            part.and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        sum.0 += number(" passed");
        sum.1 += number(" failed");
        sum.2 += number(" ignored");
    }
    sum
}

/// The workspace's test programs, but for those that have sections of their own.
fn test_programs() -> anyhow::Result<Vec<String>> {
    let text = command::output(&mut cargo(&["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&text)?;
    let targets =
        metadata["packages"].as_array().into_iter().flatten().flat_map(|p| p["targets"].as_array().into_iter().flatten());
    let tests = targets.filter(|t| t["kind"][0] == "test").filter_map(|t| t["name"].as_str());
    Ok(tests.filter(|name| ![SIMULATION, CRASH, lab::TARGET].contains(name)).map(str::to_owned).collect())
}

/// How long the crates may take to come that are needed on other systems alone.
const FETCHED: Duration = Duration::from_secs(10 * 60);

/// The check of licences, bans and sources by cargo-deny.
enum Deny {
    There(PathBuf),
    Building(Child, Group, PathBuf, tempfile::NamedTempFile),
}

impl Deny {
    /// Begins to build the tool when it is not there; nothing without it when `quick`.
    fn prepare(quick: bool) -> anyhow::Result<Option<Self>> {
        let tools = command::root().join(TOOLS);
        let own = tools.join("bin/cargo-deny");
        if let Some(path) = packages::find("cargo-deny").or_else(|| own.is_file().then_some(own.clone())) {
            return Ok(Some(Deny::There(path)));
        }
        if quick {
            return Ok(None);
        }
        println!("\nthere is no cargo-deny: it is built beside the rest, into {TOOLS}");
        let log = tempfile::NamedTempFile::new()?;
        let mut command = nice_cargo(&["install", "cargo-deny", "--locked", "--quiet", "--root"]);
        command.arg(&tools).current_dir(std::env::temp_dir());
        // A tool that runs for a second needs no optimizing: this halves the time it takes to build.
        command.env("CARGO_TARGET_DIR", tools.join("build")).env("CARGO_PROFILE_RELEASE_LTO", "off");
        command.env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1").env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "16");
        command.stdin(Stdio::null()).stdout(log.reopen()?).stderr(log.reopen()?).process_group(0);
        let child = command.spawn().with_context(|| format!("starting `{}`", command::line(&command)))?;
        let group = Group::of(&child)?;
        Ok(Some(Deny::Building(child, group, own, log)))
    }

    fn check(self) -> anyhow::Result<Watched> {
        let program = match self {
            Deny::There(program) => program,
            Deny::Building(mut child, _group, program, log) => {
                let status = child.wait()?;
                if !status.success() {
                    let printed = std::fs::read_to_string(log.path()).unwrap_or_default();
                    println!("{printed}\ncargo-deny could not be built: {status}");
                    return Ok(Watched { success: false, printed });
                }
                let _ = std::fs::remove_dir_all(command::root().join(TOOLS).join("build"));
                program
            }
        };
        // What other systems would need counts, too, and nothing before has fetched that on a new machine.
        let fetched = watch(cargo(&["fetch", "--locked"]).env("CARGO_TERM_COLOR", "never"), FETCHED)?;
        if !fetched.success {
            return Ok(fetched);
        }
        let mut command = Command::new(program);
        command.args(["--offline", "--workspace", "check", "licenses", "bans", "sources"]).current_dir(command::root());
        watch(&mut command, Duration::from_secs(120))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_cargo_test_are_counted() {
        let printed = "running 3 tests\ntest a ... ok\ntest result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 4 filtered out; \
                       finished in 0.01s\n\ntest result: FAILED. 10 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(counts(printed), (12, 3, 1));
        assert_eq!(counts("error: could not compile"), (0, 0, 0));
    }

    #[test]
    fn times_are_short() {
        assert_eq!(time(Duration::from_millis(1540)), "1.5 s");
        assert_eq!(time(Duration::from_secs(125)), "2:05 min");
    }
}
