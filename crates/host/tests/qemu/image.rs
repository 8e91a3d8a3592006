//! Images in and out, over TLS.

use std::time::Duration;

use img_storage_host::image::{self, ImageError, ImageFormat, Served};
use img_storage_model::{
    Epoch, Size,
    nas::{NasLayer, qemu::NasStep},
};

use crate::bed::{Bed, free_port, peer};

const LONG: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn in_and_out_again() {
    let bed = Bed::new().await;
    let dir = bed.dir.path();
    let mut content = vec![0u8; 48 << 20];
    for (i, byte) in content[8 << 20..20 << 20].iter_mut().enumerate() {
        *byte = (i % 249) as u8;
    }
    std::fs::write(dir.join("a.raw"), &content).expect("write");
    let convert = ["convert", "-f", "raw", "-O", "qcow2", "a.raw", "a.qcow2"];
    assert!(std::process::Command::new("qemu-img").current_dir(dir).args(convert).status().expect("runs").success());
    let info = image::inspect(&dir.join("a.qcow2")).await.expect("accepted");
    assert_eq!((info.format, info.virtual_size), (ImageFormat::Qcow2, 48 << 20));

    bed.nas(NasStep::CreateDisk { size: Size::exact(48 << 20).expect("size") }).await;
    let (name, port) = ("e0.import".to_owned(), bed.port);
    bed.nas(NasStep::StartExport { epoch: Epoch(0), name, peer: peer(), port, layer: NasLayer::Disk }).await;
    let certificates = dir.join("node-0");
    let target = Served { endpoint: bed.endpoint(port, "e0.import"), certificates: certificates.clone() };
    let mut seen = Vec::new();
    image::import(&dir.join("a.qcow2"), info.format, &target, LONG, |percent| seen.push(percent)).await.expect("imports");
    assert_eq!(seen.last(), Some(&10000));
    bed.nas(NasStep::StopExport).await;
    assert!(bed.read_disk() == content);
    let allocated = bed.nas_facts().await.disk.known().copied().flatten().expect("a disk").allocated;
    assert!(allocated < 14 << 20, "it stays sparse: {allocated}");

    let port = free_port();
    bed.nas(NasStep::StartReader { peer: peer(), port }).await;
    let source = Served { endpoint: bed.endpoint(port, "reader"), certificates };
    let out = dir.join("out.vmdk");
    image::export(&source, &out, ImageFormat::Vmdk, LONG, |_| {}).await.expect("exports");
    let again = image::export(&source, &out, ImageFormat::Vmdk, LONG, |_| {}).await.expect_err("exists");
    assert!(matches!(again, ImageError::Refused { .. }), "{again}");
    bed.nas(NasStep::StopReader).await;
    assert_eq!(image::inspect(&out).await.expect("good").format, ImageFormat::Vmdk);
    let compare = ["compare", "-f", "raw", "-F", "vmdk", "a.raw", "out.vmdk"];
    assert!(std::process::Command::new("qemu-img").current_dir(dir).args(compare).status().expect("runs").success());
    let failed = image::export(&source, &dir.join("b.raw"), ImageFormat::Raw, LONG, |_| {}).await;
    assert!(failed.is_err() && !dir.join("b.raw.part").exists() && !dir.join("b.raw").exists());
}
