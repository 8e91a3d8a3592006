//! The original's front-end protocol against the real daemons, on simulated hosts and the embedded bus, in paused time.
//!
//! [`bed`] has the hosts and asks as the original's front end does: once, and then it waits. [`recorded`] plays every recorded
//! conversation; [`orders`] what each order does and every way that it is refused; [`restart`] daemons that are killed in the middle.

mod bed;
mod orders;
mod recorded;
mod restart;
