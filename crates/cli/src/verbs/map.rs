//! `map`: gives a volume to a node.

use super::Context;
use crate::{
    args::{Dry, Waiting},
    client::Client,
    follow::{self, Goal},
    rows,
    stop::{Done, remark},
};
use clap::{Args, ValueEnum};
use img_storage_daemon::frontend::http::wire;
use img_storage_model::{
    Fault, FaultKind, HostName, Selector, Size,
    api::{Phase, VolumeView},
    messages::{DeviceKind, Role},
};
use std::time::Duration;
use tokio::time::Instant;

/// Maps a volume to a node and prints the device for the guest, as soon as it can be used
#[derive(Debug, Args)]
pub struct Map {
    /// NAS:POOL/NAME or any shorter part of it that is unique
    #[arg(value_name = "VOLUME")]
    volume: Selector,
    /// The node
    #[arg(value_name = "HOST")]
    node: HostName,
    /// Create the volume with this size if it does not exist, such as 35G (powers of 1024)
    #[arg(long, value_name = "SIZE")]
    size: Option<Size>,
    /// Move the guest onto a local copy on the node
    #[arg(long, overrides_with = "no_sync")]
    sync: bool,
    /// Let the guest work on the NAS over the network [default]
    #[arg(long)]
    no_sync: bool,
    /// How the guest reaches it: an NBD or a vhost-user-blk server on a unix socket
    #[arg(long, value_enum, value_name = "KIND", default_value_t)]
    device: Device,
    #[command(flatten)]
    waiting: Waiting,
    #[command(flatten)]
    dry: Dry,
}

#[derive(Clone, Copy, Debug, Default, ValueEnum)]
enum Device {
    #[default]
    Nbd,
    VhostUserBlk,
}

impl Map {
    pub async fn run(self, mut context: Context) -> Done {
        let sync = self.sync && !self.no_sync;
        let goal = match self.waiting.wait {
            None => None,
            Some(None) => Some(if sync { Phase::Local } else { Phase::Remote }),
            Some(Some(phase @ (Phase::Remote | Phase::Attaching))) => Some(phase),
            Some(Some(phase @ (Phase::Copying | Phase::Switching | Phase::Local))) if sync => Some(phase),
            Some(Some(phase @ (Phase::Copying | Phase::Switching | Phase::Local))) => {
                return Err(Fault::invalid(format!("without --sync the volume will not become {phase}"))
                    .next("give --sync")
                    .into());
            }
            Some(Some(phase)) => {
                return Err(Fault::invalid(format!("mapping a volume does not make it {phase}"))
                    .next("wait for remote or local")
                    .into());
            }
        };
        let begun = Instant::now();
        let Some(volume) = self.volume(&mut context).await? else {
            let people = context.out.format.for_people();
            return if people { context.out.line(&format!("would map it to {}", self.node)) } else { Ok(()) };
        };
        let usable = self.waiting.timeout.unwrap_or(Duration::from_secs(120));
        let order = wire::Map {
            id: Some(Client::id()),
            timeout: Some(usable.as_secs()),
            dry_run: self.dry.dry_run,
            expect: Some(volume.id),
            node: self.node.clone(),
            sync,
            device: match self.device {
                Device::Nbd => DeviceKind::Nbd,
                Device::VhostUserBlk => DeviceKind::VhostUserBlk,
            },
        };
        let outcome = context.client.order(&volume, "map", &order).await?;
        if outcome.dry_run {
            return context.would(&outcome);
        }
        let people = context.out.format.for_people();
        let mut volume = follow::volume(&context.client, outcome.volume.unwrap_or(volume), Goal::Usable, begun + usable).await?;
        if people && let Some(device) = &volume.device {
            context.out.line(device)?;
        }
        if let Some(phase) = goal {
            let deadline = begun + self.waiting.timeout.unwrap_or(follow::DAY);
            volume = follow::volume(&context.client, volume, Goal::Phase(phase), deadline).await?;
            if people {
                remark(&format!("{} is {} on {}", volume.full_name(), volume.phase, self.node));
            }
        }
        if people { Ok(()) } else { context.out.value(&volume, Some(&rows::volume_records(std::slice::from_ref(&volume)))) }
    }

    /// The volume, made if need be; nothing in a dry run of one that is not there.
    async fn volume(&self, context: &mut Context) -> Result<Option<VolumeView>, crate::stop::Stop> {
        let size = match (context.client.volume(&self.volume).await, self.size) {
            (Err(fault), Some(size)) if fault.kind == FaultKind::NotFound => size,
            (Err(fault), None) if fault.kind == FaultKind::NotFound => {
                let next = if fault.next.is_empty() { "img-storage list shows what there is".to_owned() } else { fault.next };
                return Err(Fault::not_found(fault.message).next(format!("{next}; with --size it is created")).into());
            }
            (Err(fault), _) => return Err(fault.into()),
            (Ok(volume), size) => {
                if let Some(size) = size.filter(|size| *size != volume.size) {
                    remark(&format!("{} exists and is {}; --size {size} does not change that", volume.full_name(), volume.size));
                }
                return Ok(Some(volume));
            }
        };
        let order = wire::Create {
            id: Some(Client::id()),
            timeout: self.waiting.timeout.map(|t| t.as_secs()),
            dry_run: self.dry.dry_run,
            expect: None,
            name: self.volume.clone(),
            size: Some(size),
            from: None,
        };
        let outcome = context.client.post("/api/volumes", &order).await?;
        if outcome.dry_run {
            if !context.client.hosts().await?.iter().any(|host| host.name == self.node && host.role == Role::Node) {
                let fault = Fault::unreachable(format!("no node {} is known or connected", self.node));
                return Err(fault.next("img-storage hosts shows those that are").into());
            }
            context.would(&outcome)?;
            return Ok(None);
        }
        let volume = outcome.volume.ok_or_else(|| Fault::failed("the front end did not say which volume it created"))?;
        remark(&format!("created {} of {size}", volume.full_name()));
        Ok(Some(volume))
    }
}
