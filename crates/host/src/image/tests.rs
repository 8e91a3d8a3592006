use super::*;
use proptest::prelude::*;
use std::process::Command;

fn qemu_img(dir: &Path, args: &[&str]) {
    let status = Command::new("qemu-img").current_dir(dir).args(args).output().expect("qemu-img runs");
    assert!(status.status.success(), "{args:?}: {}", String::from_utf8_lossy(&status.stderr));
}

/// A disk of 4 MiB with something in it, in every format.
fn images() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("directory");
    let at = dir.path();
    let mut disk = vec![0u8; 4 << 20];
    for (i, byte) in disk[1 << 20..3 << 20].iter_mut().enumerate() {
        *byte = (i * 7 % 251) as u8;
    }
    std::fs::write(at.join("a.raw"), &disk).expect("write");
    for (name, options) in [
        ("a.qcow2", ["-O", "qcow2"].as_slice()),
        ("c.qcow2", &["-c", "-O", "qcow2"]),
        ("a.vmdk", &["-O", "vmdk"]),
        ("s.vmdk", &["-O", "vmdk", "-o", "subformat=streamOptimized"]),
        ("f.vmdk", &["-O", "vmdk", "-o", "subformat=monolithicFlat"]),
        ("a.vhdx", &["-O", "vhdx"]),
        ("a.vdi", &["-O", "vdi"]),
        ("a.vhd", &["-O", "vpc"]),
        ("d.qcow2", &["-O", "qcow2", "-o", "data_file=data.bin"]),
    ] {
        qemu_img(at, &[&["convert", "-f", "raw"], options, &["a.raw", name]].concat());
    }
    qemu_img(at, &["create", "-q", "-f", "qcow2", "-b", "a.raw", "-F", "raw", "b.qcow2"]);
    qemu_img(at, &["create", "-q", "-f", "vmdk", "-b", "a.vmdk", "-F", "vmdk", "b.vmdk"]);
    dir
}

async fn refused(path: &Path) -> String {
    let error = inspect(path).await.expect_err("refused");
    assert!(matches!(error, ImageError::Refused { .. }), "{error}");
    error.to_string()
}

#[tokio::test]
async fn formats_are_told_apart() {
    let dir = images();
    for (name, format) in [
        ("a.raw", ImageFormat::Raw),
        ("a.qcow2", ImageFormat::Qcow2),
        ("c.qcow2", ImageFormat::Qcow2),
        ("a.vmdk", ImageFormat::Vmdk),
        ("s.vmdk", ImageFormat::Vmdk),
        ("a.vhdx", ImageFormat::Vhdx),
    ] {
        let info = inspect(&dir.path().join(name)).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((info.format, info.virtual_size), (format, 4 << 20), "{name}");
    }
    let odd = dir.path().join("a,b=c:d.qcow2");
    std::fs::copy(dir.path().join("a.qcow2"), &odd).expect("copy");
    assert_eq!(inspect(&odd).await.expect("accepted").format, ImageFormat::Qcow2);
}

#[tokio::test]
async fn what_refers_elsewhere_is_refused() {
    let dir = images();
    for (name, word) in [
        ("b.qcow2", "backing file"),
        ("d.qcow2", "another file"),
        ("b.vmdk", "parent"),
        ("f.vmdk", "descriptor"),
        ("a.vdi", "VirtualBox"),
        ("a.vhd", "VHD"),
    ] {
        let why = refused(&dir.path().join(name)).await;
        assert!(why.contains(word), "{name}: {why}");
    }
    assert!(refused(dir.path()).await.contains("directory"));
    assert!(refused(Path::new("/dev/null")).await.contains("device"));
    assert!(matches!(inspect(Path::new("/no/such/file")).await, Err(ImageError::Io { .. })));
}

#[tokio::test]
async fn what_is_cut_off_is_refused() {
    let dir = images();
    for name in ["a.qcow2", "c.qcow2", "a.vmdk", "s.vmdk", "a.vhdx"] {
        let whole = std::fs::read(dir.path().join(name)).expect("read");
        for part in [whole.len() / 2, whole.len() / 4, 1024, 20] {
            let cut = dir.path().join(format!("cut.{name}"));
            std::fs::write(&cut, &whole[..part]).expect("write");
            let found = inspect(&cut).await;
            assert!(found.is_err(), "{name} cut to {part} of {}: {found:?}", whole.len());
        }
    }
}

#[tokio::test]
async fn the_last_cluster_counts_when_it_is_data() {
    let dir = images();
    let whole = std::fs::read(dir.path().join("a.qcow2")).expect("read");
    let cut = dir.path().join("cut.qcow2");
    std::fs::write(&cut, &whole[..whole.len() - 4096]).expect("write");
    assert!(refused(&cut).await.contains("cut off"));
    // A fresh image ends within its last table.
    qemu_img(dir.path(), &["create", "-q", "-f", "qcow2", "e.qcow2", "1G"]);
    inspect(&dir.path().join("e.qcow2")).await.expect("accepted");
}

#[test]
fn progress_is_read_from_pieces() {
    assert_eq!(transfer::newest("    (0.00/100%)\r    (12.34/100%)\r"), Some(1234));
    assert_eq!(transfer::newest("    (100.00/100%)\r\n"), Some(10000));
    assert_eq!(transfer::newest("    (3"), None);
}

proptest! {
    #[test]
    fn no_header_makes_us_panic(mut head in prop::collection::vec(any::<u8>(), 0..200), magic in 0usize..4) {
        let magic: &[u8] = [b"".as_slice(), b"QFI\xfb", b"KDMV", b"QFI\xfb\0\0\0\x03"][magic];
        let n = magic.len().min(head.len());
        head[..n].copy_from_slice(&magic[..n]);
        let _ = recognise(&head, head.len() as u64);
    }
}
