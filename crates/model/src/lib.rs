//! The decisions of img-storage, and the words they are made of.
//!
//! This crate does no I/O, reads no clock and starts nothing: every function here is a table from what is known to what
//! should happen next, so that each can be tested in microseconds and the same code decides in production and in the
//! simulation. The effects it asks for are data ([`node::Step`], [`nas::Step`]); `img-storage-host` carries them out.

pub mod api;
pub mod attribute;
pub mod broker;
pub mod dataset;
pub mod decision;
pub mod doctor;
pub mod extents;
pub mod fact;
pub mod fault;
pub mod id;
pub mod messages;
pub mod name;
pub mod nas;
pub mod node;
pub mod original;
pub mod plane;
pub mod schedule;
pub mod size;
pub mod snapshot;
pub mod stream;

pub use dataset::{Dataset, Guid, Snapshot};
pub use decision::Decision;
pub use extents::{Extent, Extents};
pub use fact::Fact;
pub use fault::{Fault, FaultKind};
pub use id::{Epoch, RequestId, SnapshotId, VolumeId};
pub use name::{HostName, PoolName, Selector, VolumeName};
pub use plane::Plane;
pub use size::{Interval, Size};
