//! `rocks`: the original's commands, with its grammar, its tables and its words for states.
//!
//! [`words`] takes a command line apart as Rocks does, [`sheet`] prints as it does; each command is a file of its own and does its
//! work through the same API as this program's own verbs.

mod add_host_storagemap;
mod list_host_storageattr;
mod list_host_storagedev;
mod list_host_storagemap;
mod list_host_zvolattr;
mod remove_host_storageimg;
mod remove_host_storagemap;
mod set_host_storageattr;
mod set_host_zvolattr;
mod sheet;
mod words;

use crate::{
    stop::{Done, Stop},
    verbs::Context,
};
use clap::Args;
use img_storage_model::{Fault, HostName, messages::Role};
use words::Words;

/// Runs a command of the original
///
/// As `rocks` does on a cluster of the original: `add host storagemap`, `remove host storagemap|storageimg`,
/// `list host storagemap|storagedev|storageattr|zvolattr`, `set host storageattr|zvolattr`. Arguments can be given by their names, as
/// name=value; `help` after a command shows them.
#[derive(Debug, Args)]
pub struct Rocks {
    /// The command and its arguments, such as: add host storagemap nas-0-0 tank vol1 compute-0-0 35 img_sync=yes
    #[arg(value_name = "WORD", required = true)]
    words: Vec<String>,
}

/// The original's commands: their words, and how they are used.
const COMMANDS: [(&str, &str); 9] = [
    ("add host storagemap", "{nas} {zpool} {volume} {remotehost} {size} [remotepool=string] [img_sync=bool]"),
    ("remove host storagemap", "{nas} {volume}"),
    ("remove host storageimg", "{nas} {zpool} {volume}"),
    ("list host storagemap", "{nas}"),
    ("list host storagedev", "{host}"),
    ("list host storageattr", "{nas}..."),
    ("set host storageattr", "{nas} {attr} {value}"),
    ("list host zvolattr", "{nas} {zvol}"),
    ("set host zvolattr", "{nas} {zvol} {attr} {value}"),
];

impl Rocks {
    pub async fn run(self, mut context: Context) -> Done {
        let (command, usage, words) = Words::of(&self.words, &COMMANDS)?;
        if words.wants_help() {
            return context.out.line(&format!("rocks {command} {usage}"));
        }
        let context = &mut context;
        let done = match command {
            "add host storagemap" => add_host_storagemap::run(context, words).await,
            "remove host storagemap" => remove_host_storagemap::run(context, words).await,
            "remove host storageimg" => remove_host_storageimg::run(context, words).await,
            "list host storagemap" => list_host_storagemap::run(context, words).await,
            "list host storagedev" => list_host_storagedev::run(context, words).await,
            "list host storageattr" => list_host_storageattr::run(context, words).await,
            "set host storageattr" => set_host_storageattr::run(context, words).await,
            "list host zvolattr" => list_host_zvolattr::run(context, words).await,
            _ => set_host_zvolattr::run(context, words).await,
        };
        done.map_err(|stop| match stop {
            // Wrong usage says how it is used, as Rocks does.
            Stop::Fault(fault) if fault.next == words::USAGE => {
                Fault { next: format!("rocks {command} {usage}"), ..fault }.into()
            }
            other => other,
        })
    }
}

/// A host of a role that the front end knows.
async fn known(context: &Context, name: &HostName, role: Role) -> Result<img_storage_model::api::HostView, Fault> {
    let what = if role == Role::Nas { "NAS" } else { "VM container" };
    let hosts = context.client.hosts().await?;
    let found = hosts.into_iter().find(|host| host.name == *name && host.role == role);
    found.ok_or_else(|| Fault::not_found(format!("there is no {what} {name}")).next("see img-storage hosts"))
}

/// Says that it is done.
fn success(context: &mut Context) -> Done {
    if context.out.format.for_people() {
        return context.out.line("Success");
    }
    context.out.value(&serde_json::json!({ "result": "success" }), Some(&[vec![("result", "success".to_owned())]]))
}
