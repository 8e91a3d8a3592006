//! What can be given on the command line. Names, sizes and times are parsed here, by the model's own types.

use crate::{output::Output, verbs};
use clap::{Args, Parser, Subcommand};
use img_storage_model::{Fault, api::Phase, size::Interval};
use std::{path::PathBuf, time::Duration};

/// Moves VM disk images between a NAS and compute nodes.
///
/// A VOLUME is named NAS:POOL/NAME, or by any shorter part of that which is unique.
#[derive(Debug, Parser)]
#[command(name = "img-storage", version, disable_help_subcommand = true, max_term_width = 120, after_help = CODES)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

const CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused, 4 not finished before the timeout (it goes on), \
                     5 could not reach the service, 6 doctor found something.";

/// Flags of every verb.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Everywhere")]
pub struct Global {
    /// Where the daemons keep their state [default: ~/.local/share/img-storage; for root /var/lib/img-storage] [env: IMG_STORAGE_DIR]
    #[arg(long, global = true, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// The front end's socket [default: DIR/api.sock] [env: IMG_STORAGE_SOCKET]
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// How results are printed
    #[arg(short, long, global = true, value_enum, value_name = "FORMAT", default_value_t)]
    pub output: Output,
}

impl Global {
    /// The state directory.
    pub fn dir(&self) -> Result<PathBuf, Fault> {
        if let Some(dir) = given(self.dir.as_ref(), "IMG_STORAGE_DIR") {
            return std::path::absolute(&dir).map_err(|error| Fault::failed(format!("cannot tell where {dir:?} is: {error}")));
        }
        if rustix::process::geteuid().is_root() {
            return Ok("/var/lib/img-storage".into());
        }
        match std::env::var_os("HOME").filter(|home| !home.is_empty()) {
            Some(home) => Ok(PathBuf::from(home).join(".local/share/img-storage")),
            None => Err(Fault::invalid("HOME is not set, so there is no default directory").next("give one with --dir")),
        }
    }

    /// The front end's socket.
    pub fn socket(&self) -> Result<PathBuf, Fault> {
        // --dir counts more than a socket from the environment.
        let variable = if self.dir.is_some() { "" } else { "IMG_STORAGE_SOCKET" };
        match given(self.socket.as_ref(), variable) {
            Some(path) => Ok(path),
            None => Ok(self.dir()?.join("api.sock")),
        }
    }
}

/// What was given, else the variable's value (read here, so that clap does not show it in its usage lines); empty is nothing.
fn given(path: Option<&PathBuf>, variable: &str) -> Option<PathBuf> {
    let from_variable = || if variable.is_empty() { None } else { std::env::var_os(variable).map(PathBuf::from) };
    path.cloned().or_else(from_variable).filter(|path| !path.as_os_str().is_empty())
}

/// The configuration that was given, if any.
pub fn configuration(path: Option<PathBuf>) -> Option<PathBuf> {
    given(path.as_ref(), "IMG_STORAGE_CONFIG")
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    Up(verbs::up::Up),
    Frontend(verbs::frontend::Frontend),
    Nas(verbs::nas::Nas),
    Vm(verbs::vm::Vm),
    Status(verbs::status::Status),
    Create(verbs::create::Create),
    #[command(visible_alias = "ls")]
    List(verbs::list::List),
    Show(verbs::show::Show),
    Resize(verbs::resize::Resize),
    Export(verbs::export::Export),
    Delete(verbs::delete::Delete),
    Map(verbs::map::Map),
    Unmap(verbs::unmap::Unmap),
    Sync(verbs::sync::Sync),
    BringBack(verbs::bring_back::BringBack),
    Set(verbs::set::Set),
    Get(verbs::get::Get),
    Unset(verbs::unset::Unset),
    Devices(verbs::devices::Devices),
    Hosts(verbs::hosts::Hosts),
    Doctor(verbs::doctor::Doctor),
    Config(verbs::config::Config),
    Pki(verbs::pki::Pki),
    BrokerSetup(verbs::broker_setup::BrokerSetup),
    Rocks(crate::rocks::Rocks),
    Completion(verbs::completion::Completion),
    #[command(hide = true)]
    Stream(verbs::stream::Stream),
    Openapi(verbs::openapi::Openapi),
}

/// Flags of what takes its time.
#[derive(Debug, Clone, Args)]
pub struct Waiting {
    /// Wait for PHASE, or without one until everything is done
    #[arg(long, value_name = "PHASE", num_args = 0..=1)]
    pub wait: Option<Option<Phase>>,
    /// Give up waiting after this long, such as 90s, 10m or 1h; what was begun goes on (exit code 4)
    #[arg(long, value_name = "TIME", value_parser = timeout)]
    pub timeout: Option<Duration>,
}

/// The same, of what by itself waits to the end.
#[derive(Debug, Clone, Args)]
pub struct Ending {
    #[command(flatten)]
    pub waiting: Waiting,
    /// Return as soon as it is under way
    #[arg(long, conflicts_with = "wait")]
    pub no_wait: bool,
}

/// Flags of what changes something.
#[derive(Debug, Clone, Args)]
pub struct Dry {
    /// Only check, and say what would be done
    #[arg(long)]
    pub dry_run: bool,
}

/// Flags of what is shown again and again.
#[derive(Debug, Clone, Args)]
pub struct Watch {
    /// Show it again every so often, until interrupted
    #[arg(long, value_name = "TIME", num_args = 0..=1, require_equals = true, default_missing_value = "2s")]
    pub watch: Option<Interval>,
}

/// A timeout: at least a second, at most a day.
pub fn timeout(text: &str) -> Result<Duration, Fault> {
    let time = text.parse::<Interval>()?.duration();
    if time.as_secs() > 86_400 {
        return Err(Fault::invalid(format!("a timeout of {text} is longer than a day")));
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use proptest::prelude::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    proptest! {
        #[test]
        fn no_words_make_the_parser_panic(words in proptest::collection::vec(word(), 0..6)) {
            let _ = Cli::try_parse_from(std::iter::once("img-storage".to_owned()).chain(words));
        }

        #[test]
        fn timeouts_that_parse_are_within_the_limits(text in "[0-9]{0,8}[smhdw]?|.{0,12}") {
            if let Ok(time) = timeout(&text) {
                prop_assert!((1..=86_400).contains(&time.as_secs()));
            }
        }
    }

    /// Words of the grammar and words that are none.
    fn word() -> impl Strategy<Value = String> {
        let known = [
            "map",
            "unmap",
            "create",
            "list",
            "export",
            "delete",
            "resize",
            "show",
            "--size",
            "--size=1G",
            "--wait",
            "--wait=local",
            "--timeout",
            "5m",
            "-o",
            "json",
            "--dry-run",
            "--yes",
            "--force",
            "--watch",
            "--watch=0",
            "--sync",
            "--no-sync",
            "--device",
            "nbd",
            "tank/vol1",
            "nas-0-0:tank/vol1",
            "compute-0-0",
            "35G",
            "--",
            "-",
            "--dir",
            "--from",
        ];
        prop_oneof![proptest::sample::select(known.to_vec()).prop_map(str::to_owned), ".{0,20}"]
    }
}
