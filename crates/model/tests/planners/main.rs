//! What the planners decide: tables of the situations that matter, and what they must never do whatever they are shown.
//!
//! Whether what they decide leads anywhere is tested by the simulation; here each decision is looked at alone.

mod carried;
#[path = "../common/mod.rs"]
mod common;
mod kernel_nas;
mod kernel_node;
mod moving;
mod nas;
mod node;
mod things;
mod timing;
mod warm;
