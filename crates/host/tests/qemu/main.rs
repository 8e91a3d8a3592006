//! The qemu plane's steps on real storage daemons, over TLS, under a guest that checks every block.
//!
//! `IMG_STORAGE_TEST_QEMU=DIR` takes the programs of another version.

mod accident;
mod bed;
mod image;
mod life;
mod silence;
mod speed;
mod writer;
