//! `status`: everything on one screen.

use super::Context;
use crate::{
    args::Watch,
    human, rows,
    stop::{Done, remark, text},
    table::{Table, elastic, number, text as column},
};
use clap::Args;
use img_storage_daemon::frontend::http::wire;
use img_storage_model::size::human_bytes;
use jiff::Timestamp;

/// Shows hosts, volumes by phase, transfers, and what is stuck and why
#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    watch: Watch,
}

impl Status {
    pub async fn run(self, mut context: Context) -> Done {
        super::again(&mut context, &self.watch, async |context| {
            let status: wire::Status = context.client.get("/api/status").await?;
            if context.out.format.for_people() { print(context, &status) } else { context.out.value(&status, None) }
        })
        .await
    }
}

fn plural(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn print(context: &mut Context, status: &wire::Status) -> Done {
    let wide = context.out.format == crate::output::Output::Wide;
    let now = Timestamp::now();
    let away = status.hosts.iter().filter(|h| h.away).count();
    let away = if away > 0 { format!(" ({away} away)") } else { String::new() };
    let phases: Vec<_> = status.phases.iter().map(|(phase, count)| format!("{count} {phase}")).collect();
    let phases = if phases.is_empty() { String::new() } else { format!(": {}", phases.join(", ")) };
    let volumes = plural(usize::try_from(status.volumes).unwrap_or(usize::MAX), "volume");
    let hosts = plural(status.hosts.len(), "host");
    context.out.line(&format!("img-storage {}: {hosts}{away}, {volumes}{phases}", status.version))?;
    if let Some(trouble) = &status.trouble {
        text(trouble, false).lines().for_each(remark);
    }
    if !status.stuck.is_empty() {
        let mut table = Table::new(vec![
            elastic("STUCK"),
            column("PHASE"),
            column("HOST"),
            number("SINCE"),
            number("NEXT TRY"),
            elastic("WHY"),
        ]);
        for v in &status.stuck {
            if let Some(t) = &v.stuck {
                let next = t.next_try.map_or_else(|| "by you".to_owned(), |at| human::age(now, at));
                let row =
                    vec![v.full_name(), v.phase.to_string(), t.host.to_string(), human::age(t.since, now), next, t.why.clone()];
                table.row(row, true);
            }
        }
        context.out.line("")?;
        context.out.table(&table)?;
    }
    if !status.moving.is_empty() {
        let mut table = Table::new(vec![
            elastic("MOVING"),
            column("PHASE"),
            elastic("NODE"),
            number("DONE"),
            number("OF"),
            number("RATE"),
            number("ETA"),
        ]);
        for v in &status.moving {
            if let Some(p) = v.progress {
                let rate = v.rate.filter(|r| *r > 0);
                table.row(
                    vec![
                        v.full_name(),
                        v.phase.to_string(),
                        v.node.as_ref().map(ToString::to_string).unwrap_or_default(),
                        format!("{}%", human::percent(p.done, p.total)),
                        human_bytes(p.total),
                        rate.map(|r| format!("{}/s", human_bytes(r))).unwrap_or_default(),
                        rate.map(|r| human::seconds(p.total.saturating_sub(p.done).div_ceil(r))).unwrap_or_default(),
                    ],
                    false,
                );
            }
        }
        context.out.line("")?;
        context.out.table(&table)?;
    }
    if !status.hosts.is_empty() {
        context.out.line("")?;
        context.out.table(&rows::hosts(&status.hosts, wide))?;
    }
    Ok(())
}
