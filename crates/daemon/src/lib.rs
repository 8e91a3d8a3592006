//! The daemons of img-storage: NAS, node and front end, the bus between them, and their ledgers.
//!
//! Decisions come from `img-storage-model`, effects go through `img-storage-host`; what is here is the glue: actors that
//! observe, plan, make durable and do.

pub mod broker_setup;
pub mod bus;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod doctor;
pub mod frontend;
mod greeting;
pub mod layout;
pub mod nas;
pub mod node;
pub mod pki;
mod rate;
mod retry;
pub mod roles;
mod steps;
pub mod store;
pub mod tasks;
