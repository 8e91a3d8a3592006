//! The real daemons on simulated hosts and a simulated bus, in virtual time, with faults wherever one can be.
//!
//! [`site`] starts and restarts the daemons and asks them things; [`guest`] writes and verifies all the while; [`scenario`] is what an
//! operator does; [`plan`] says what goes wrong in one run; [`campaign`] makes all the runs. A run depends on its plan alone: the
//! same plan gives the same trace.

pub mod campaign;
pub mod guest;
pub mod plan;
pub mod run;
pub mod scenario;
pub mod site;
