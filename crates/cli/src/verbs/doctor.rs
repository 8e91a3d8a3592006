//! `doctor`: what differs on this host from what should be, who holds it, and what to do.

use crate::{
    args::{Global, configuration},
    output::{Out, csv_record::Record},
    stop::{Done, Stop, clean, remark},
};
use clap::Args;
use img_storage_daemon::doctor::{self, Examined};
use img_storage_model::{
    Fault, Selector,
    doctor::{Finding, Level, Unseen},
};
use std::path::PathBuf;

/// Looks for what is wrong on this host, and says who holds it and what to do; changes nothing, and needs no daemon
///
/// The ledgers in the state directory and the configuration are compared with what is there: files and storage daemons, zvols,
/// snapshots, exports, sessions, device-mapper. Exit code 6 when something differs, 1 when nothing was found but not everything
/// could be seen. Run it as root, on the NAS and on the node, with the --dir and --config that the daemon has.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Only this volume, NAS:POOL/NAME or any shorter part of it that is unique, and its hosts as a whole
    #[arg(value_name = "VOLUME")]
    volume: Option<Selector>,
    /// The configuration: a file, or a directory with config.toml and conf.d [default: /etc/img-storage] [env: IMG_STORAGE_CONFIG]
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
}

impl Doctor {
    pub fn run(self, global: &Global) -> Done {
        let options = doctor::Options { dir: global.dir()?, config: configuration(self.config), volume: self.volume };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Fault::failed(format!("cannot start: {error}")))?;
        let examined = runtime.block_on(doctor::examine(&options))?;
        let mut out = Out::new(global.output);
        let found = &examined.diagnosis;
        if out.format.for_people() {
            out.text(&text(&examined))?;
            remark(&summary(&examined));
        } else {
            let mut records: Vec<Record> = found.findings.iter().map(finding_record).collect();
            records.extend(found.unseen.iter().map(unseen_record));
            out.value(&examined, Some(&records))?;
        }
        if found.differing() > 0 {
            return Err(Stop::Found);
        }
        if found.unseen.is_empty() {
            return Ok(());
        }
        let which =
            found.unseen.iter().map(|unseen| format!("{} on {}", unseen.what, unseen.host)).collect::<Vec<_>>().join(", ");
        Err(Fault::failed(format!("nothing was found, but not everything could be seen: {which}"))
            .next("it is not known whether all is well; see why above")
            .into())
    }
}

fn text(examined: &Examined) -> String {
    let mut text = String::new();
    let mut paragraph = |head: String, lines: &[(&str, &str)]| {
        text.push_str(&clean(&head));
        text.push('\n');
        for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
            text.push_str(&format!("  {name:<9} {}\n", clean(value)));
        }
        text.push('\n');
    };
    for finding in &examined.diagnosis.findings {
        let Finding { host, thing, is, should_be, next, .. } = finding;
        let word = if finding.level == Level::Note { "note: " } else { "" };
        let of = finding.volume.as_ref().map(|volume| format!(" of {volume}")).unwrap_or_default();
        let held = finding.held_by.join(", ");
        paragraph(
            format!("{word}{thing}{of}, on {host}"),
            &[("is", is), ("should be", should_be), ("held by", &held), ("next", next)],
        );
    }
    for Unseen { host, what, why } in &examined.diagnosis.unseen {
        paragraph(format!("could not be seen: {what}, on {host}"), &[("why", why)]);
    }
    text
}

fn summary(examined: &Examined) -> String {
    let hosts: Vec<String> = examined
        .hosts
        .iter()
        .map(|host| {
            let daemon = host.daemon.map_or_else(|| "no daemon seen".to_owned(), |pid| format!("daemon {pid}"));
            format!("{} ({} volumes, {daemon})", host.name, host.volumes)
        })
        .collect();
    let (differs, unseen) = (examined.diagnosis.differing(), examined.diagnosis.unseen.len());
    let found = match (differs, unseen) {
        (0, 0) => "nothing differs".to_owned(),
        (0, _) => format!("nothing was found, and {unseen} could not be seen"),
        (_, 0) => format!("{differs} differ"),
        _ => format!("{differs} differ, and {unseen} could not be seen"),
    };
    format!("{}: {found}", hosts.join(", "))
}

fn finding_record(finding: &Finding) -> Record {
    let level = if finding.level == Level::Note { "note" } else { "differs" };
    vec![
        ("level", level.to_owned()),
        ("host", finding.host.to_string()),
        ("volume", finding.volume.clone().unwrap_or_default()),
        ("thing", finding.thing.clone()),
        ("is", finding.is.clone()),
        ("should_be", finding.should_be.clone()),
        ("held_by", finding.held_by.join(", ")),
        ("next", finding.next.clone()),
    ]
}

fn unseen_record(unseen: &Unseen) -> Record {
    vec![
        ("level", "unseen".to_owned()),
        ("host", unseen.host.to_string()),
        ("volume", String::new()),
        ("thing", unseen.what.clone()),
        ("is", unseen.why.clone()),
        ("should_be", String::new()),
        ("held_by", String::new()),
        ("next", String::new()),
    ]
}
