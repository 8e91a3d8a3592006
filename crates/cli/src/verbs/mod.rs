//! The verbs, one file each.

pub mod bring_back;
pub mod broker_setup;
pub mod completion;
pub mod config;
pub mod create;
pub mod delete;
pub mod devices;
pub mod doctor;
pub mod export;
pub mod frontend;
pub mod get;
pub mod hosts;
pub mod list;
pub mod map;
pub mod nas;
pub mod openapi;
pub mod pki;
pub mod resize;
pub mod role;
pub mod set;
pub mod show;
pub mod status;
pub mod stream;
pub mod sync;
pub mod target;
pub mod unmap;
pub mod unset;
pub mod up;
pub mod vm;

use crate::{
    args::{Cli, Ending, Global, Verb, Waiting, Watch},
    client::Client,
    follow::{self, Goal},
    output::Out,
    rows,
    stop::{Done, Stop, remark},
};
use img_storage_daemon::frontend::http::wire::Outcome;
use img_storage_model::{Fault, FaultKind, api::VolumeView};
use std::time::Duration;
use tokio::time::Instant;

/// Runs the verb.
pub fn run(cli: Cli) -> Done {
    let Cli { global, verb } = cli;
    match verb {
        Verb::Up(verb) => verb.run(&global),
        Verb::Frontend(verb) => verb.run(&global),
        Verb::Nas(verb) => verb.run(&global),
        Verb::Vm(verb) => verb.run(&global),
        Verb::Completion(verb) => verb.run(),
        Verb::Stream(verb) => verb.run(),
        Verb::Config(verb) => verb.run(&global),
        Verb::Doctor(verb) => verb.run(&global),
        Verb::Pki(verb) => verb.run(&global),
        Verb::BrokerSetup(verb) => verb.run(&global),
        Verb::Openapi(verb) => verb.run(&global),
        verb => {
            let context = Context::new(&global)?;
            follow::block_on(async {
                match verb {
                    Verb::Status(verb) => verb.run(context).await,
                    Verb::Create(verb) => verb.run(context).await,
                    Verb::List(verb) => verb.run(context).await,
                    Verb::Show(verb) => verb.run(context).await,
                    Verb::Resize(verb) => verb.run(context).await,
                    Verb::Export(verb) => verb.run(context).await,
                    Verb::Delete(verb) => verb.run(context).await,
                    Verb::Map(verb) => verb.run(context).await,
                    Verb::Unmap(verb) => verb.run(context).await,
                    Verb::Sync(verb) => verb.run(context).await,
                    Verb::BringBack(verb) => verb.run(context).await,
                    Verb::Set(verb) => verb.run(context).await,
                    Verb::Get(verb) => verb.run(context).await,
                    Verb::Unset(verb) => verb.run(context).await,
                    Verb::Rocks(verb) => verb.run(context).await,
                    Verb::Devices(verb) => verb.run(context).await,
                    Verb::Hosts(verb) => verb.run(context).await,
                    Verb::Up(_)
                    | Verb::Frontend(_)
                    | Verb::Nas(_)
                    | Verb::Vm(_)
                    | Verb::Completion(_)
                    | Verb::Stream(_)
                    | Verb::Config(_)
                    | Verb::Doctor(_)
                    | Verb::Pki(_)
                    | Verb::BrokerSetup(_)
                    | Verb::Openapi(_) => Ok(()),
                }
            })
        }
    }
}

/// What verbs that talk to the front end need.
pub struct Context {
    /// The front end.
    pub client: Client,
    /// Stdout.
    pub out: Out,
}

impl Context {
    fn new(global: &Global) -> Result<Self, Fault> {
        Ok(Context { client: Client::new(global.socket()?), out: Out::new(global.output) })
    }

    /// Says what a dry run found.
    fn would(&mut self, outcome: &Outcome) -> Done {
        if !self.out.format.for_people() {
            return self.out.value(outcome, None);
        }
        if outcome.would.is_empty() {
            return self.out.line("nothing to do");
        }
        outcome.would.iter().try_for_each(|step| self.out.line(&format!("would {step}")))
    }

    /// Ends a verb that leaves a volume: `done` for people, the volume for programs.
    fn volume(&mut self, volume: Option<&VolumeView>, done: &str) -> Done {
        if self.out.format.for_people() {
            return self.out.line(done);
        }
        match volume {
            Some(volume) => self.out.value(volume, Some(&rows::volume_records(std::slice::from_ref(volume)))),
            None => self.out.value(&serde_json::Value::Null, Some(&[])),
        }
    }

    /// Waits for a phase when asked to.
    async fn wait(&self, volume: VolumeView, waiting: &Waiting, from: Instant) -> Result<VolumeView, Fault> {
        match waiting.wait {
            Some(Some(phase)) => {
                let deadline = from + waiting.timeout.unwrap_or(follow::DAY);
                follow::volume(&self.client, volume, Goal::Phase(phase), deadline).await
            }
            _ => Ok(volume),
        }
    }
}

/// The seconds an order that is answered at its end may take: short when the end is not waited for.
fn timeout(ending: &Ending, default: Duration) -> u64 {
    if ending.no_wait { 1 } else { ending.waiting.timeout.unwrap_or(default).as_secs() }
}

/// With `--no-wait`, what is not over yet is fine.
fn under_way(answer: Result<Outcome, Fault>, ending: &Ending, volume: &VolumeView, what: &str) -> Result<Option<Outcome>, Fault> {
    match answer {
        Err(fault) if ending.no_wait && fault.kind == FaultKind::Unfinished => {
            remark(&format!("{what} of {} is under way", volume.full_name()));
            Ok(None)
        }
        other => other.map(Some),
    }
}

/// Shows something once, or again and again.
async fn again<F>(context: &mut Context, watch: &Watch, mut show: F) -> Done
where
    F: AsyncFnMut(&mut Context) -> Done,
{
    let Some(every) = watch.watch else { return show(context).await };
    let terminal = context.out.screen.width.is_some();
    loop {
        if terminal {
            context.out.text("\x1b[H\x1b[2J")?;
            context.out.screen = crate::output::Screen::of_stdout();
        }
        match show(context).await {
            Err(Stop::Fault(fault)) if terminal && fault.kind == FaultKind::Unreachable => {
                context.out.text(&crate::stop::text(&fault, context.out.screen.colour))?;
            }
            other => other?,
        }
        tokio::time::sleep(every.duration()).await;
        if !terminal && context.out.format.for_people() {
            context.out.line("")?;
        }
    }
}

/// A path the front end can use, whatever its working directory is.
fn absolute(path: &std::path::Path) -> Result<std::path::PathBuf, Fault> {
    std::path::absolute(path).map_err(|error| Fault::invalid(format!("{:?} is no path: {error}", path)))
}
