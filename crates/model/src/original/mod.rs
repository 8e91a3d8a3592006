//! The words of the original's front end: its requests taken apart, its answers put together.
//!
//! Requests become [`NasRequest`] and [`NodeRequest`], with every field in this program's own types; whatever cannot become one
//! is a [`Refusal`], which is an answer too, for the original's front end waits for one for ever. [`Reply`] is what is answered, with the
//! original's field names; [`Row`] and [`Device`] say our phases in its words. Nothing is decided here but what a message means.

mod answer;
mod attributes;
mod field;
mod request;
mod rows;

pub use answer::{Reply, VolumeAttributes, say};
pub use attributes::{nas_values, volume_values};
pub use field::gigabytes;
pub use request::{Action, LONGEST, MapZvol, NasRequest, NodeRequest, Refusal, VOLUME_ATTRIBUTES, nas_request, node_request};
pub use rows::{Behind, Device, OnNode, Row, devices, locked};
