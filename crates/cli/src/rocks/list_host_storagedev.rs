//! `list host storagedev`: the devices of a VM container.

use super::{
    sheet::{Sheet, lasted},
    words::{Words, parsed},
};
use crate::{stop::Done, verbs::Context};
use img_storage_model::{
    HostName,
    messages::Role,
    original::{OnNode, devices},
};
use jiff::Timestamp;

const HEADINGS: [&str; 11] =
    ["host", "volume", "sync", "target", "device", "status", "size (GB)", "block dev", "is started", "synced", "time"];

pub async fn run(context: &mut Context, words: Words) -> Done {
    let [host] = words.positional(["host"])?;
    let host: HostName = parsed("host", &host)?;
    super::known(context, &host, Role::Node).await?;
    let volumes = context.client.volumes(None).await?;
    let now = Timestamp::now().as_second();
    let mut sheet = Sheet::new(&HEADINGS);
    for (name, device) in devices(volumes.iter().filter(|v| v.node.as_ref() == Some(&host)).map(OnNode::of).collect()) {
        sheet.row(vec![
            Some(host.to_string()),
            Some(name),
            Some(device.sync.to_owned()),
            device.target,
            Some(device.device),
            device.status.map(str::to_owned),
            device.size.map(|gb| gb.to_string()),
            None,
            device.started.map(|started| started.to_string()),
            device.synced,
            device.time.map(|since| lasted(now - since)),
        ]);
    }
    sheet.print(context, &words)
}
