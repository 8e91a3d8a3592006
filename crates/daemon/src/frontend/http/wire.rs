//! The bodies of the API that are not the model's own types.

use crate::frontend::TransferId;
use img_storage_model::{
    Fault, HostName, RequestId, Selector, Size, VolumeId,
    api::{Event, HostView, Phase, VolumeView},
    attribute::{AttributeView, Changes},
    messages::DeviceKind,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, path::PathBuf, time::Duration};
use utoipa::ToSchema;

/// How long an order waits for its answer when it does not say.
pub const DEFAULT_TIMEOUT: u64 = 30;
/// How long an order may wait: a day.
pub const LONGEST_TIMEOUT: u64 = 86_400;

/// What every order has.
pub trait Order: Serialize {
    /// Identity, timeout, dry run, expected volume.
    fn common(&self) -> Common;
}

/// What every order has.
#[derive(Clone, Copy, Debug)]
pub struct Common {
    /// See the orders.
    pub id: Option<RequestId>,
    /// See the orders.
    pub timeout: Option<u64>,
    /// See the orders.
    pub dry_run: bool,
    /// See the orders.
    pub expect: Option<VolumeId>,
}

impl Common {
    /// The deadline.
    ///
    /// # Errors
    /// [`img_storage_model::FaultKind::Invalid`] outside a second and a day.
    pub fn deadline(&self) -> Result<Duration, Fault> {
        match self.timeout.unwrap_or(DEFAULT_TIMEOUT) {
            seconds @ 1..=LONGEST_TIMEOUT => Ok(Duration::from_secs(seconds)),
            seconds => Err(Fault::invalid(format!("a timeout of {seconds} s is not between a second and a day"))),
        }
    }
}

macro_rules! order {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            /// Identity of the request. Sent again with the same id, it gets the stored answer; without one it is a new request.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schema(value_type = Option<uuid::Uuid>)]
            pub id: Option<RequestId>,
            /// Seconds to wait for the end, 1 to 86400, by default 30. What is not finished then goes on (status 504).
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schema(minimum = 1, maximum = 86400)]
            pub timeout: Option<u64>,
            /// Only check, and say what would be done.
            #[serde(default)]
            pub dry_run: bool,
            /// The identity the named volume must have. With it and a name that begins with its NAS a repeated request is answered
            /// even after the volume is gone.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            #[schema(value_type = Option<uuid::Uuid>)]
            pub expect: Option<VolumeId>,
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl Order for $name {
            fn common(&self) -> Common {
                Common { id: self.id, timeout: self.timeout, dry_run: self.dry_run, expect: self.expect }
            }
        }
    };
}

order!(
    /// An order that needs to say nothing more than which volume.
    #[derive(Default)]
    Plain {}
);
order!(
    /// A new volume.
    Create {
        /// `NAS:POOL/NAME`; NAS and pool may be left out where there is just one.
        #[schema(value_type = String, example = "nas-0-0:tank/vol1")]
        name: Selector,
        /// Bytes, a multiple of 64 KiB. With an image at least its size, and by default that.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<u64>)]
        size: Option<Size>,
        /// An image on the front end's host to fill it from: raw, qcow2, vmdk or vhdx; an absolute path.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Option<String>)]
        from: Option<PathBuf>,
    }
);
order!(
    /// Map the volume to a node.
    Map {
        /// The node.
        #[schema(value_type = String)]
        node: HostName,
        /// Move the guest onto a local copy.
        #[serde(default)]
        sync: bool,
        /// How the guest wants it.
        #[serde(default)]
        #[schema(value_type = super::doc::DeviceKind)]
        device: DeviceKind,
    }
);
order!(
    /// End the mapping.
    #[derive(Default)]
    Unmap {
        /// Cut off whoever uses the device.
        #[serde(default)]
        force: bool,
    }
);
order!(
    /// Make the volume longer.
    Resize {
        /// Bytes, a multiple of 64 KiB.
        #[schema(value_type = u64)]
        size: Size,
    }
);
order!(
    /// Write the volume into a new file.
    Export {
        /// The file on the front end's host; an absolute path to where nothing is.
        #[schema(value_type = String)]
        file: PathBuf,
        /// Its format.
        #[serde(default)]
        format: Format,
    }
);

order!(
    /// Change attributes, all or none.
    Set {
        /// By name: `frequency`, `next-sync`, `download-speed`, `upload-speed`, of a NAS also `sync-workers`. `null` takes one away:
        /// what is inherited counts again.
        #[schema(value_type = BTreeMap<String, Option<String>>, example = json!({ "frequency": "5m", "upload-speed": "10M" }))]
        changes: Changes,
        /// Of a NAS: an unknown name is one of a note, which is kept without effect; otherwise it is an error.
        #[serde(default)]
        notes: bool,
    }
);

/// The format of an image file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The bytes as they are.
    #[default]
    Raw,
    /// QEMU's.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// Hyper-V's.
    Vhdx,
}

impl Format {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
            Format::Vmdk => "vmdk",
            Format::Vhdx => "vhdx",
        }
    }
}

/// What came of an order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Outcome {
    /// Nothing was done.
    pub dry_run: bool,
    /// Of a dry run: what would be done, step by step; empty when there is nothing to do.
    pub would: Vec<String>,
    /// The volume as it is now; nothing when it is gone.
    pub volume: Option<VolumeView>,
    /// Of an export: ask for it at `/api/transfers/{id}`.
    #[schema(value_type = Option<uuid::Uuid>)]
    pub transfer: Option<TransferId>,
    /// Of changed attributes: what counts now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attributes: Vec<AttributeView>,
}

/// The attributes of a NAS or a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Attributes {
    /// As they count, in their order.
    pub attributes: Vec<AttributeView>,
}

/// The answer to `GET /api/volumes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Volumes {
    /// Sorted by NAS, pool and name.
    pub volumes: Vec<VolumeView>,
}

/// The answer to `GET /api/hosts`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Hosts {
    /// All that were heard of.
    pub hosts: Vec<HostView>,
}

/// The answer to `GET /api/history`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct History {
    /// Oldest first.
    pub events: Vec<Event>,
}

/// The answer to `GET /api/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The front end's version.
    pub version: String,
    /// All hosts that were heard of.
    pub hosts: Vec<HostView>,
    /// How many volumes there are.
    pub volumes: u64,
    /// How many of them in each phase.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub phases: BTreeMap<Phase, u64>,
    /// Volumes that do not go on.
    pub stuck: Vec<VolumeView>,
    /// Volumes with a transfer under way.
    pub moving: Vec<VolumeView>,
    /// Why the volumes cannot all be told.
    #[schema(value_type = Option<super::doc::Fault>)]
    pub trouble: Option<Fault>,
}
