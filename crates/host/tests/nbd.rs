//! The NBD client against a real storage daemon.

use img_storage_host::{
    digest::digest,
    nbd::{ALLOCATION, Nbd, bitmap_context},
    qsd::Qsd,
};
use img_storage_model::{Extent, Extents};
use serde_json::json;
use std::{fs::File, path::Path, time::Duration};

const LONG: Duration = Duration::from_secs(10);
const SIZE: u64 = 8 << 20;

async fn served(dir: &Path, size: u64) -> (Qsd, std::path::PathBuf) {
    File::create(dir.join("disk.raw")).and_then(|file| file.set_len(size)).expect("file");
    let qsd = Qsd::new("qemu-storage-daemon", dir.join("qsd"));
    let socket = qsd.socket("nbd.sock").expect("short");
    let file = json!({"driver": "file", "filename": dir.join("disk.raw"), "discard": "unmap"});
    let args = [
        ("--blockdev", json!({"driver": "raw", "node-name": "disk", "discard": "unmap", "file": file})),
        ("--nbd-server", json!({"addr": {"type": "unix", "path": socket}})),
    ];
    let args: Vec<String> = args.iter().flat_map(|(option, value)| [(*option).to_owned(), value.to_string()]).collect();
    let mut qmp = qsd.start(&(), &args).await.expect("starts");
    let bitmap = json!({"node": "disk", "name": "b", "granularity": 65536});
    qmp.execute("block-dirty-bitmap-add", bitmap, LONG).await.expect("bitmap");
    let export = json!({"type": "nbd", "id": "e", "node-name": "disk", "name": "x", "writable": true, "bitmaps": ["b"]});
    qmp.execute("block-export-add", export, LONG).await.expect("export");
    (qsd, socket)
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_it_can_do() {
    let dir = tempfile::tempdir().expect("directory");
    let (qsd, socket) = served(dir.path(), SIZE).await;
    let contexts = [ALLOCATION.to_owned(), bitmap_context("b")];
    let nbd = Nbd::unix(&socket, "x", &contexts, LONG).await.expect("connects");
    assert_eq!((nbd.info().size, nbd.info().read_only()), (SIZE, false));
    let data: Vec<u8> = (0..200_000u32).map(|i| (i % 253) as u8).collect();
    nbd.write(1 << 20, &data).await.expect("writes");
    nbd.flush().await.expect("flushes");
    assert_eq!(nbd.read(1 << 20, data.len() as u32).await.expect("reads"), data);
    nbd.write(4 << 20, &[7; 4096]).await.expect("writes");
    nbd.write_zeroes(5 << 20, 65536).await.expect("zeroes");
    nbd.trim(4 << 20, 65536).await.expect("trims");
    let dirty: Vec<Extent> = nbd.dirty("b").await.expect("dirty").into();
    let range = |offset, length| Extent { offset, length };
    assert_eq!(dirty, [range(1 << 20, 4 << 16), range(4 << 20, 1 << 16), range(5 << 20, 1 << 16)]);
    let allocated = nbd.block_status(ALLOCATION, range(0, SIZE)).await.expect("status");
    assert_eq!(allocated.iter().map(|piece| piece.length).sum::<u64>(), SIZE);
    assert!(allocated[0].flags == 3 && allocated[1].flags == 0, "{allocated:?}");
    let beyond = nbd.read(SIZE - 512, 1024).await.expect_err("refused");
    assert!(beyond.to_string().contains("fails to read"), "{beyond}");
    nbd.read(0, 512).await.expect("the connection is still good");

    let missing = Nbd::unix(&socket, "y", &[], LONG).await.err().expect("refused").to_string();
    assert!(missing.contains("\"y\""), "{missing}");
    let missing = Nbd::unix(&socket, "x", &["qemu:dirty-bitmap:no".to_owned()], LONG).await.err().expect("refused").to_string();
    assert!(missing.contains("dirty-bitmap:no"), "{missing}");

    let ranges = Extents::new(vec![range(0, 4096), range(1 << 20, data.len() as u64 + 1_500_000)]);
    let mut expected = blake3::Hasher::new();
    for each in ranges.iter() {
        expected.update(&each.offset.to_le_bytes()).update(&each.length.to_le_bytes());
        let mut content = vec![0; each.length as usize];
        if each.offset > 0 {
            content[..data.len()].copy_from_slice(&data);
        }
        expected.update(&content);
    }
    assert_eq!(digest(&nbd, &ranges).await.expect("digest").0, expected.finalize().to_hex().to_string());
    nbd.disconnect().await;
    qsd.stop(LONG).await.expect("stops");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_goes_away_ends_what_is_in_flight() {
    let dir = tempfile::tempdir().expect("directory");
    let (qsd, socket) = served(dir.path(), SIZE).await;
    let nbd = Nbd::unix(&socket, "x", &[], LONG).await.expect("connects");
    qsd.stop(LONG).await.expect("stops");
    let error = nbd.read(0, 512).await.expect_err("broken");
    assert!(error.to_string().contains("broke"), "{error}");
}
