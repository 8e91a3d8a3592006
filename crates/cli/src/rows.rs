//! Volumes and hosts as rows of a table and as records of CSV.

use crate::{
    human,
    output::csv_record::Record,
    table::{Column, Table, elastic, number, text},
};
use img_storage_model::{
    api::{HostView, Phase, Trouble, VolumeView},
    messages::{Progress, Role},
    size::human_bytes,
};
use jiff::Timestamp;
use serde::Deserialize;
use std::borrow::Cow;

fn some<T: ToString>(value: Option<T>) -> String {
    value.map(|v| v.to_string()).unwrap_or_default()
}

/// As much of a [`VolumeView`] as a table shows, borrowed from the answer: thousands of them are read and forgotten at once.
#[derive(Debug, Deserialize)]
pub struct Line<'a> {
    #[serde(borrow)]
    pub nas: Cow<'a, str>,
    #[serde(borrow)]
    pool: Cow<'a, str>,
    #[serde(borrow)]
    name: Cow<'a, str>,
    size: u64,
    allocated: Option<u64>,
    pub phase: Phase,
    #[serde(borrow)]
    pub node: Option<Cow<'a, str>>,
    epoch: u64,
    #[serde(borrow)]
    device: Option<Cow<'a, str>>,
    lag: Option<u64>,
    dirty: Option<u64>,
    progress: Option<Progress>,
    rate: Option<u64>,
    write_backs: u64,
    stuck: Option<Trouble>,
    #[serde(borrow)]
    notice: Option<Cow<'a, str>>,
    #[serde(borrow)]
    created: Cow<'a, str>,
}

/// The answer to `GET /api/volumes`.
#[derive(Debug, Deserialize)]
pub struct Lines<'a> {
    #[serde(borrow)]
    pub volumes: Vec<Line<'a>>,
}

/// Volumes.
pub fn volumes(volumes: &[Line], wide: bool, now: Timestamp) -> Table {
    let mut columns: Vec<Column> = vec![elastic("VOLUME"), number("SIZE"), text("PHASE"), elastic("NODE"), number("LAG")];
    if wide {
        columns.extend([
            number("ALLOCATED"),
            number("DIRTY"),
            number("EPOCH"),
            number("WRITE-BACKS"),
            number("AGE"),
            elastic("DEVICE"),
        ]);
    }
    columns.push(elastic("NOTE"));
    let mut table = Table::new(columns);
    for v in volumes {
        table.cell(|to| to.extend([&*v.nas, ":", &*v.pool, "/", &*v.name]));
        table.cell(|to| to.push_str(&human_bytes(v.size)));
        table.cell(|to| to.push_str(&v.phase.to_string()));
        table.cell(|to| to.push_str(v.node.as_deref().unwrap_or_default()));
        table.cell(|to| to.extend(v.lag.map(human::seconds)));
        if wide {
            table.cell(|to| to.extend(v.allocated.map(human_bytes)));
            table.cell(|to| to.extend(v.dirty.map(human_bytes)));
            table.cell(|to| to.push_str(&v.epoch.to_string()));
            table.cell(|to| to.push_str(&v.write_backs.to_string()));
            table.cell(|to| to.extend(v.created.parse().ok().map(|created| human::age(created, now))));
            table.cell(|to| to.push_str(v.device.as_deref().unwrap_or_default()));
        }
        let (stuck, notice) = (v.stuck.as_ref(), v.notice.as_deref());
        table.cell(|to| to.push_str(&remarks(stuck, v.progress, v.rate, notice, now)));
        table.end_row(stuck.is_some());
    }
    table
}

/// What a volume's phase does not tell.
pub fn note(v: &VolumeView, now: Timestamp) -> String {
    remarks(v.stuck.as_ref(), v.progress, v.rate, v.notice.as_deref(), now)
}

fn remarks(
    trouble: Option<&Trouble>,
    progress: Option<Progress>,
    rate: Option<u64>,
    notice: Option<&str>,
    now: Timestamp,
) -> String {
    if let Some(trouble) = trouble {
        return stuck(trouble, now);
    }
    let moving = progress.map(|p| format!("{}%, {}", human::percent(p.done, p.total), human::pace(p.done, p.total, rate)));
    match (moving, notice) {
        (Some(moving), Some(notice)) => format!("{moving}; {notice}"),
        (Some(moving), None) => moving,
        (None, notice) => notice.unwrap_or_default().to_owned(),
    }
}

/// `stuck 3m on compute-0-0: why; next try in 10s`.
pub fn stuck(trouble: &Trouble, now: Timestamp) -> String {
    let next = match trouble.next_try {
        Some(at) => format!("next try in {}", human::age(now, at)),
        None => "waits for you".to_owned(),
    };
    format!("stuck {} on {}: {}; {next}", human::age(trouble.since, now), trouble.host, trouble.why)
}

/// Volumes for CSV.
pub fn volume_records(volumes: &[VolumeView]) -> Vec<Record> {
    let record = |v: &VolumeView| {
        vec![
            ("id", v.id.to_string()),
            ("nas", v.nas.to_string()),
            ("pool", v.pool.to_string()),
            ("name", v.name.to_string()),
            ("size", v.size.bytes().to_string()),
            ("allocated", some(v.allocated)),
            ("phase", v.phase.to_string()),
            ("node", some(v.node.as_ref())),
            ("epoch", v.epoch.to_string()),
            ("device", some(v.device.as_ref())),
            ("sync", v.sync.to_string()),
            ("lag", some(v.lag)),
            ("frequency", some(v.frequency)),
            ("next_sync", some(v.next_sync)),
            ("dirty", some(v.dirty)),
            ("done", some(v.progress.map(|p| p.done))),
            ("total", some(v.progress.map(|p| p.total))),
            ("rate", some(v.rate)),
            ("write_backs", v.write_backs.to_string()),
            ("last_write_back", some(v.last_write_back.as_ref().map(|w| w.at))),
            ("stuck", some(v.stuck.as_ref().map(|t| &t.why))),
            ("notice", some(v.notice.as_ref())),
            ("created", v.created.to_string()),
            ("mapped", some(v.mapped)),
        ]
    };
    volumes.iter().map(record).collect()
}

/// The role's name.
pub fn role(role: Role) -> &'static str {
    match role {
        Role::Nas => "nas",
        Role::Node => "node",
        Role::Frontend => "frontend",
    }
}

/// Hosts.
pub fn hosts(hosts: &[HostView], wide: bool) -> Table {
    let mut columns = vec![text("HOST"), text("ROLE"), text("STATE"), number("HEARD"), number("VOLUMES"), elastic("POOLS")];
    if wide {
        columns.extend([elastic("DATA ADDRESS"), text("VERSION"), elastic("PLANES"), text("WARM COPIES")]);
    }
    let mut table = Table::new(columns);
    for h in hosts {
        let mut row = vec![
            h.name.to_string(),
            role(h.role).to_owned(),
            if h.away { "away" } else { "here" }.to_owned(),
            human::seconds(h.heard),
            h.volumes.to_string(),
            h.pools
                .iter()
                .map(|p| format!("{} {} free of {}", p.name, human_bytes(p.free), human_bytes(p.size)))
                .collect::<Vec<_>>()
                .join(", "),
        ];
        if wide {
            row.extend([h.addresses.join(","), h.version.clone(), h.planes.join(","), warm(h)]);
        }
        table.row(row, h.away);
    }
    table
}

/// How many copies a node keeps for the next start there, what they take, and how many it could not remove.
fn warm(h: &HostView) -> String {
    if h.warm.is_empty() {
        return String::new();
    }
    let bytes = human_bytes(h.warm.iter().map(|copy| copy.used).sum());
    match h.warm.iter().filter(|copy| copy.stays.is_some()).count() {
        0 => format!("{}, {bytes}", h.warm.len()),
        stay => format!("{}, {bytes}; {stay} cannot go", h.warm.len()),
    }
}

/// Hosts for CSV.
pub fn host_records(hosts: &[HostView]) -> Vec<Record> {
    let record = |h: &HostView| {
        vec![
            ("name", h.name.to_string()),
            ("role", role(h.role).to_owned()),
            ("away", h.away.to_string()),
            ("heard", h.heard.to_string()),
            ("volumes", h.volumes.to_string()),
            ("pools", h.pools.iter().map(|p| format!("{}={}/{}", p.name, p.free, p.size)).collect::<Vec<_>>().join(" ")),
            ("version", h.version.clone()),
            ("planes", h.planes.join(" ")),
            ("addresses", h.addresses.join(" ")),
            ("warm_copies", h.warm.len().to_string()),
            ("warm_bytes", h.warm.iter().map(|copy| copy.used).sum::<u64>().to_string()),
        ]
    };
    hosts.iter().map(record).collect()
}
