//! `show`: one volume with its history.

use super::Context;
use crate::{
    human, rows,
    stop::{Done, clean},
};
use clap::Args;
use img_storage_daemon::frontend::http::wire::History;
use img_storage_model::{
    Selector,
    api::{Event, VolumeView},
    size::human_bytes,
};
use jiff::Timestamp;

/// Shows a volume and what happened to it
#[derive(Debug, Args)]
pub struct Show {
    /// NAS:POOL/NAME or any shorter part of it that is unique
    #[arg(value_name = "VOLUME")]
    volume: Selector,
    /// How many events to show, newest last
    #[arg(long, value_name = "NUMBER", default_value_t = 50)]
    events: usize,
}

#[derive(serde::Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    volume: &'a VolumeView,
    events: &'a [Event],
}

impl Show {
    pub async fn run(self, mut context: Context) -> Done {
        let volume = context.client.volume(&self.volume).await?;
        let path = format!("/api/history?selector={}", crate::client::encode(&volume.full_name()));
        let history: History = context.client.get(&path).await?;
        let events = &history.events[history.events.len().saturating_sub(self.events)..];
        if !context.out.format.for_people() {
            let records = rows::volume_records(std::slice::from_ref(&volume));
            return context.out.value(&Shown { volume: &volume, events }, Some(&records));
        }
        context.out.text(&text(&volume, events, Timestamp::now()))
    }
}

fn text(v: &VolumeView, events: &[Event], now: Timestamp) -> String {
    let mut lines = Vec::new();
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            lines.push(format!("{name:<11} {}", clean(&value)));
        }
    };
    line("volume", Some(v.full_name()));
    line("id", Some(v.id.to_string()));
    let allocated = v.allocated.map(|a| format!(", {} of it in use on {}", human_bytes(a), v.nas)).unwrap_or_default();
    line("size", Some(format!("{} ({} bytes){allocated}", v.size, v.size.bytes())));
    line("phase", Some(v.phase.to_string()));
    line("stuck", v.stuck.as_ref().map(|t| rows::stuck(t, now)));
    line(
        "progress",
        v.progress.map(|p| {
            let (done, total) = (human_bytes(p.done), human_bytes(p.total));
            format!("{}% ({done} of {total}), {}", human::percent(p.done, p.total), human::pace(p.done, p.total, v.rate))
        }),
    );
    line("notice", v.notice.clone());
    line(
        "node",
        v.node
            .as_ref()
            .map(|n| format!("{n}, epoch {}, {}", v.epoch, if v.sync { "on a local copy" } else { "over the network" })),
    );
    line("device", v.device.clone());
    line("mapped", v.mapped.map(|at| format!("{} ago ({at})", human::age(at, now))));
    line(
        "next sync",
        v.next_sync.map(|at| if at > now { format!("in {} ({at})", human::age(now, at)) } else { format!("due ({at})") }),
    );
    let frequency = v.frequency.map(|f| format!(", brought home every {}", human::seconds(f))).unwrap_or_default();
    line("lag", v.lag.map(|lag| format!("{}{frequency}", human::seconds(lag))));
    line("dirty", v.dirty.map(human_bytes));
    line(
        "last push",
        v.last_write_back.as_ref().map(|w| {
            let moved = w.moved.map(|m| format!(", {}", human_bytes(m))).unwrap_or_default();
            let took = w.took_ms.map(|ms| format!(" in {}.{:03} s", ms / 1000, ms % 1000)).unwrap_or_default();
            format!("{} ago{moved}{took}, {} in this mapping", human::age(w.at, now), v.write_backs)
        }),
    );
    line("created", Some(format!("{} ago ({})", human::age(v.created, now), v.created)));
    if !events.is_empty() {
        lines.push(String::new());
        lines.extend(events.iter().map(|event| format!("{}  {}", event.at, clean(&event.what))));
    }
    lines.push(String::new());
    lines.join("\n")
}
