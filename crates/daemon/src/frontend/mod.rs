//! The front end: what the operator's commands talk to.
//!
//! [`desk`] speaks to the NASes over the bus, and moves images between files and volumes ([`transfers`]);
//! [`http`] is the API in front of it.

mod desk;
pub mod http;
mod transfers;

pub use desk::Desk;
pub use transfers::{TransferId, TransferView};
