//! Bad input, at the real program with real tools and files: every case ends with the right exit code, a message that names the
//! thing and the next step, nothing on stdout, and nothing changed.
//!
//! Tests of one file share a running service where one case cannot spoil another.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod api;
mod bed;
mod bus;
mod full;
mod images;
mod names;
mod start;
mod volumes;
