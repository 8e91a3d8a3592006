//! Stand-in until the host's qemu plane lands.
#![allow(missing_docs, clippy::unused_async, clippy::missing_errors_doc)]
use img_storage_model::{Fault, HostName, Interval};
use std::path::PathBuf;
pub struct UpOptions {
    pub dir: PathBuf,
    pub nodes: Option<u16>,
    pub frequency: Option<Interval>,
    pub config: Option<PathBuf>,
}
pub struct RoleOptions {
    pub dir: PathBuf,
    pub name: Option<HostName>,
    pub bus: Option<PathBuf>,
    pub frequency: Option<Interval>,
    pub config: Option<PathBuf>,
}
pub async fn up(_: UpOptions) -> Result<(), Fault> {
    Err(Fault::failed("stand-in"))
}
pub async fn frontend(_: RoleOptions) -> Result<(), Fault> {
    Err(Fault::failed("stand-in"))
}
pub async fn nas(_: RoleOptions) -> Result<(), Fault> {
    Err(Fault::failed("stand-in"))
}
pub async fn vm(_: RoleOptions) -> Result<(), Fault> {
    Err(Fault::failed("stand-in"))
}
