//! `list host storagemap`: the volumes of a NAS and where they are.

use super::{
    sheet::{Sheet, lasted},
    words::{Words, parsed},
};
use crate::{stop::Done, verbs::Context};
use img_storage_model::{
    HostName,
    api::HostView,
    messages::Role,
    original::{Behind, Row},
};
use jiff::{Timestamp, tz::TimeZone};

const HEADINGS: [&str; 10] =
    ["nas", "zvol", "zpool", "remotehost", "remotepool", "target", "state", "time", "nextsync", "locked"];

pub async fn run(context: &mut Context, words: Words) -> Done {
    let [nas] = words.positional(["nas"])?;
    let nas: HostName = parsed("nas", &nas)?;
    super::known(context, &nas, Role::Nas).await?;
    let (volumes, hosts) = tokio::join!(context.client.volumes(None), context.client.hosts());
    let (volumes, hosts) = (volumes?, hosts?);
    let now = Timestamp::now();
    let mut sheet = Sheet::new(&HEADINGS);
    for view in volumes.iter().filter(|v| v.nas == nas) {
        let pool = |host: &HostView| host.pools.first().map(|pool| pool.name.clone());
        let copied = view.sync || view.transfer_since.is_some();
        let node = hosts.iter().find(|h| copied && view.node.as_ref() == Some(&h.name));
        let nextsync = view.next_sync.map(Timestamp::as_second);
        let row = Row::new(view, Behind { remotepool: node.and_then(pool), nextsync, ..Behind::default() });
        let state = row.state();
        let due = view.next_sync.filter(|_| state == "mapped");
        sheet.row(vec![
            Some(nas.to_string()),
            Some(row.zvol.clone()),
            Some(row.zpool.clone()),
            row.remotehost.clone(),
            row.remotepool.clone(),
            row.iscsi_target.clone(),
            Some(state.to_owned()),
            row.time.map(|since| lasted(now.as_second() - since)),
            due.map(|at| at.to_zoned(TimeZone::system()).strftime("%a %H:%M.%S").to_string()),
            row.locked.as_ref().map(|_| "True".to_owned()),
        ]);
    }
    sheet.print(context, &words)
}
