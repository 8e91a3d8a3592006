//! Images to fill a volume from, and to write one into.

use super::bed::{Bed, allocated, checksum, complains, idle, tool, up};
use std::{
    fs::{self, File, OpenOptions},
    os::unix::{
        fs::{FileExt as _, PermissionsExt as _, symlink},
        process::CommandExt as _,
    },
    path::Path,
};

/// A disk of 12 MiB with something in five places.
fn disk(path: &Path) {
    let file = File::create(path).unwrap();
    file.set_len(12 << 20).unwrap();
    let mut state = 88_172_645_463_325_252_u64;
    for (offset, length) in
        [(0, 65536), (1 << 20, 300_000), (5 << 20, 1 << 20), ((8 << 20) + 12_288, 4096), ((12 << 20) - 4096, 4096)]
    {
        let data: Vec<u8> = (0..length)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state.to_le_bytes()[0]
            })
            .collect();
        file.write_all_at(&data, offset).unwrap();
    }
}

fn patch(path: &Path, at: u64, bytes: &[u8]) {
    OpenOptions::new().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

fn cut(from: &str, to: &str, length: u64) {
    fs::copy(from, to).unwrap();
    OpenOptions::new().write(true).open(to).unwrap().set_len(length).unwrap();
}

/// Every path given is in the bed's directory.
struct Images<'a>(&'a Bed);

impl Images<'_> {
    fn path(&self, name: &str) -> String {
        self.0.text(name)
    }

    fn make(&self, name: &str, words: &[&str], after: &[&str]) -> String {
        let path = self.path(name);
        tool("qemu-img", &[&["create", "-q"], words, &[&path], after].concat());
        path
    }
}

#[tokio::test]
async fn images_that_are_damaged_or_name_other_files_are_refused() {
    let bed = up(&[]).await;
    let images = Images(&bed);
    let raw = images.path("good.raw");
    disk(Path::new(&raw));
    let secret = images.path("secret.raw");
    fs::write(&secret, "root:$6$secret\n".repeat(10_000)).unwrap();
    let secrets = checksum(Path::new(&secret));
    let good = images.path("good.qcow2");
    tool("qemu-img", &["convert", "-O", "qcow2", &raw, &good]);
    let whole = fs::metadata(&good).unwrap().len();

    let mut cases: Vec<(String, i32, &str)> = Vec::new();
    for length in [4, 20, 71, 1000, 65536, 200_000, whole / 2, whole - 65536] {
        let path = images.path(&format!("cut-{length}.qcow2"));
        cut(&good, &path, length);
        cases.push((path, 3, "cut off"));
    }
    let changed = |name: &str, at: u64, bytes: &[u8]| {
        let path = images.path(name);
        fs::copy(&good, &path).unwrap();
        patch(Path::new(&path), at, bytes);
        path
    };
    cases.push((changed("version.qcow2", 4, &9u32.to_be_bytes()), 3, "version 9"));
    cases.push((changed("corrupt.qcow2", 72, &2u64.to_be_bytes()), 3, "corrupt"));
    cases.push((changed("features.qcow2", 72, &(1u64 << 40).to_be_bytes()), 3, "features"));
    cases.push((changed("tables.qcow2", 40, &(1u64 << 50).to_be_bytes()), 3, "damaged"));
    cases.push((changed("l1.qcow2", 36, &u32::MAX.to_be_bytes()), 3, "damaged"));
    cases.push((changed("bits.qcow2", 20, &63u32.to_be_bytes()), 3, "damaged"));
    cases.push((changed("vast.qcow2", 24, &(1u64 << 62).to_be_bytes()), 3, "damaged"));

    let backing = ["-F", "raw", "-b"];
    cases.push((images.make("backing.qcow2", &["-f", "qcow2", backing[0], backing[1], backing[2], &secret], &[]), 3, "backing"));
    cases.push((
        images.make("backing2.qcow2", &["-f", "qcow2", "-o", "compat=0.10", "-F", "raw", "-b", &secret], &[]),
        3,
        "backing",
    ));
    for (n, name) in [
        "/etc/shadow",
        "nbd:localhost:10809",
        "nbd+unix:///disk?socket=/run/x.sock",
        "json:{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}",
        "ssh://root@localhost/etc/shadow",
        "/dev/vda",
    ]
    .iter()
    .enumerate()
    {
        let path = images.make(&format!("names{n}.qcow2"), &["-u", "-f", "qcow2", "-F", "raw", "-b", name], &["12M"]);
        cases.push((path, 3, "backing"));
    }
    let data = format!("data_file={},data_file_raw=on", images.path("data.raw"));
    let external = images.make("external.qcow2", &["-f", "qcow2", "-o", &data], &["12M"]);
    fs::remove_file(images.path("data.raw")).unwrap();
    symlink(&secret, images.path("data.raw")).unwrap();
    cases.push((external, 3, "another file"));
    let luks =
        ["--object", "secret,id=s,data=x", "-f", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"];
    cases.push((images.make("encrypted.qcow2", &luks, &["12M"]), 3, "encrypted"));
    let luks = ["--object", "secret,id=s,data=x", "-f", "luks", "-o", "key-secret=s,iter-time=10"];
    cases.push((images.make("encrypted.luks", &luks, &["12M"]), 3, "encrypted"));

    // VMDK: descriptors alone, and one that names a parent where one does not look.
    let flat = images.make("flat.vmdk", &["-f", "vmdk", "-o", "subformat=monolithicFlat"], &["12M"]);
    let text = fs::read_to_string(&flat).unwrap().replace("flat-flat.vmdk", &secret);
    assert!(text.contains(&secret));
    fs::write(&flat, text).unwrap();
    cases.push((flat, 3, "descriptor"));
    let sparse = images.make("extents.vmdk", &["-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"], &["12M"]);
    cases.push((sparse, 3, "descriptor"));
    let hidden = images.path("hidden.vmdk");
    tool("qemu-img", &["convert", "-O", "vmdk", &raw, &hidden]);
    // QEMU reads ten KiB of it.
    let descriptor = format!(
        "# Disk DescriptorFile\nversion=1\nCID=12345678\ncreateType=\"monolithicSparse\"\n\nRW 24576 SPARSE \"hidden.vmdk\"\n{}parentCID=12345678\nparentFileNameHint=\"{secret}\"\n",
        "# filling\n".repeat(600)
    );
    patch(Path::new(&hidden), 512, descriptor.as_bytes());
    cases.push((hidden, 3, "backing"));
    let empty = images.path("nothing.vmdk");
    tool("qemu-img", &["convert", "-O", "vmdk", &raw, &empty]);
    patch(Path::new(&empty), 12, &0u64.to_le_bytes());
    cases.push((empty, 3, "without data"));
    for format in ["vmdk", "vhdx"] {
        let whole = images.path(&format!("whole.{format}"));
        tool("qemu-img", &["convert", "-O", format, &raw, &whole]);
        let path = images.path(&format!("cut.{format}"));
        cut(&whole, &path, fs::metadata(&whole).unwrap().len() / 2);
        cases.push((path, 3, "cut off"));
    }

    for (format, name) in [("vdi", "VirtualBox"), ("vpc", "VHD"), ("qed", "QED"), ("parallels", "Parallels")] {
        let path = images.make(&format!("other.{format}"), &["-f", format], &["12M"]);
        cases.push((path, 3, name));
    }
    tool("gzip", &["-k", &good]);
    cases.push((images.path("good.qcow2.gz"), 3, "gzip"));
    tool("tar", &["-cf", &images.path("good.ova"), "-C", bed.dir.path().to_str().unwrap(), "good.raw"]);
    cases.push((images.path("good.ova"), 3, "tar"));

    // What is no file at all.
    fs::create_dir(bed.path("directory")).unwrap();
    cases.push((images.path("directory"), 3, "directory"));
    cases.push(("/dev/zero".into(), 3, "device"));
    cases.push(("/dev/null".into(), 3, "device"));
    tool("mkfifo", &[&images.path("fifo")]);
    cases.push((images.path("fifo"), 3, "regular file"));
    let _listener = std::os::unix::net::UnixListener::bind(bed.path("sock")).unwrap();
    cases.push((images.path("sock"), 3, "regular file"));
    File::create(bed.path("empty")).unwrap();
    cases.push((images.path("empty"), 3, "empty"));
    symlink("loop", bed.path("loop")).unwrap();
    cases.push((images.path("loop"), 1, "loop"));
    symlink("nowhere", bed.path("dangling")).unwrap();
    cases.push((images.path("dangling"), 1, "dangling"));
    cases.push((images.path("nowhere.raw"), 1, "nowhere.raw"));
    for name in [
        "json:{\"driver\":\"file\",\"filename\":\"/etc/shadow\"}",
        "nbd:localhost:10809",
        "nbd://localhost/x",
        "http://localhost/x",
        "fd:0",
        "-",
    ] {
        cases.push((name.to_owned(), 1, name));
    }

    for (image, code, why) in &cases {
        let from = format!("--from={image}");
        let ran = bed.refused(&["create", "vol1", &from, "--timeout=60s"], *code, &[image, why]).await;
        assert!(!ran.stderr.contains("$6$"), "{}", ran.stderr);
        // A dry run says the same.
        complains(&bed.run(&["create", "vol1", &from, "--dry-run"]).await, *code, &[image, why]);
    }
    for (size, said) in [("1M", "12M"), ("11M", "12M")] {
        bed.refused(&["create", "vol1", "--from", &good, "--size", size], 2, &["good.qcow2", size, said, "--size"]).await;
    }
    let vast = images.make("vast.raw.qcow2", &["-f", "qcow2"], &["100T"]);
    bed.refused(&["create", "vol1", "--from", &vast], 2, &["vast.raw.qcow2", "64T"]).await;
    let large = images.make("large.qcow2", &["-f", "qcow2"], &["60T"]);
    bed.refused(&["create", "vol1", "--from", &large, "--timeout=60s"], 1, &["tank/vol1", "60T", "room"]).await;
    assert_eq!(checksum(Path::new(&secret)), secrets);
    assert_eq!(bed.kept().keys().filter(|path| path.to_string_lossy().contains("vol1")).count(), 0);
}

#[tokio::test]
async fn what_the_daemon_may_not_read_is_said() {
    let mut bed = idle();
    let image = bed.text("private.raw");
    disk(Path::new(&image));
    fs::set_permissions(&image, fs::Permissions::from_mode(0o000)).unwrap();
    let root = rustix::process::geteuid().is_root();
    if root {
        // A daemon that is not root, as the guide allows.
        let (uid, gid) = (rustix::process::Uid::from_raw(65534), rustix::process::Gid::from_raw(65534));
        rustix::fs::chown(bed.service.dir(), Some(uid), Some(gid)).unwrap();
        fs::set_permissions(bed.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let copy = bed.path("img-storage");
        fs::copy(bed.service.program(), &copy).unwrap();
        bed.service.wrap(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env"]);
        bed.service = service_of(&bed, &copy);
    }
    bed.up(&[]).await;
    bed.refused(&["create", "vol1", "--from", &image], 1, &["private.raw", "ermission"]).await;
    // And where it may not write.
    fs::create_dir(bed.path("readonly")).unwrap();
    fs::set_permissions(bed.path("readonly"), fs::Permissions::from_mode(0o555)).unwrap();
    bed.ok(&["create", "vol1", "--size", "1M"]).await;
    let ran =
        bed.refused(&["export", "vol1", &bed.text("readonly/x.raw")], 1, &["tank/vol1", "readonly/x.raw", "ermission"]).await;
    assert!(ran.took.as_secs() < 20);
    // A volume works for it as for root.
    bed.ok(&["map", "vol1", "compute-0-0", "--sync", "--wait", "local"]).await;
    bed.ok(&["unmap", "vol1"]).await;
}

/// A service of the same directory whose program is a copy that other users may run.
fn service_of(bed: &Bed, program: &Path) -> img_storage_tests::service::Service {
    let mut service = img_storage_tests::service::Service::new(program.to_owned(), bed.dir.path()).unwrap();
    service.wrap(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env"]);
    service
}

#[tokio::test]
async fn good_images_arrive_byte_by_byte_and_leave_the_same() {
    let bed = up(&[]).await;
    let images = Images(&bed);
    let raw = images.path("good.raw");
    disk(Path::new(&raw));
    let contents = fs::read(&raw).unwrap();
    let sparse = allocated(Path::new(&raw));
    let convert = |name: &str, words: &[&str]| {
        let path = images.path(name);
        tool("qemu-img", &[&["convert"], words, &[&raw, &path]].concat());
        path
    };
    // Names that QEMU would take for something else than a file.
    let sources = [
        raw.clone(),
        convert("a,b=c.qcow2", &["-O", "qcow2"]),
        convert("old.qcow2", &["-O", "qcow2", "-o", "compat=0.10"]),
        convert("compressed.qcow2", &["-O", "qcow2", "-c"]),
        convert("zstd.qcow2", &["-O", "qcow2", "-c", "-o", "compression_type=zstd"]),
        convert("small clusters.img", &["-O", "qcow2", "-o", "cluster_size=4k,extended_l2=off"]),
        convert("extended.qcow2", &["-O", "qcow2", "-o", "extended_l2=on,cluster_size=128k"]),
        convert("sparse.vmdk", &["-O", "vmdk", "-o", "subformat=monolithicSparse"]),
        convert("stream.vmdk", &["-O", "vmdk", "-o", "subformat=streamOptimized"]),
        convert("dynamic.vhdx", &["-O", "vhdx", "-o", "subformat=dynamic"]),
        convert("fixed.vhdx", &["-O", "vhdx", "-o", "subformat=fixed"]),
    ];
    let colon = bed.path("nbd:x");
    fs::copy(&sources[1], &colon).unwrap();
    let link = bed.path("link");
    symlink(&sources[1], &link).unwrap();
    let sources = sources.into_iter().chain([colon, link].into_iter().map(|p| p.to_str().unwrap().to_owned()));
    for (n, source) in sources.enumerate() {
        let before = checksum(Path::new(&source));
        let name = format!("vol{n}");
        bed.ok(&["create", &name, "--from", &source]).await;
        let view = bed.service.volume(&name).await.unwrap();
        assert_eq!(view.size.bytes(), 12 << 20, "{source}");
        let arrived = bed.state(&format!("pools/nas-0-0/tank/{name}/disk.raw"));
        assert!(fs::read(&arrived).unwrap() == contents, "{source} arrived otherwise");
        // The file system may round every piece up.
        let takes = allocated(&arrived);
        assert!(takes <= sparse + (256 << 10), "{source}: {takes} bytes are taken, {sparse} have data");
        assert_eq!(checksum(Path::new(&source)), before, "{source} was changed");
    }
    // With room behind it, and one whose length is odd.
    bed.ok(&["create", "longer", "--from", &raw, "--size", "16M"]).await;
    let longer = fs::read(bed.state("pools/nas-0-0/tank/longer/disk.raw")).unwrap();
    assert!(longer.len() == 16 << 20 && longer[..12 << 20] == contents && longer[12 << 20..].iter().all(|b| *b == 0));
    fs::write(bed.path("odd.raw"), &contents[..(1 << 20) + 77]).unwrap();
    bed.ok(&["create", "odd", "--from", &images.path("odd.raw")]).await;
    let odd = fs::read(bed.state("pools/nas-0-0/tank/odd/disk.raw")).unwrap();
    assert!(odd.len().is_multiple_of(64 << 10) && odd[..(1 << 20) + 77] == contents[..(1 << 20) + 77]);

    for (file, format) in [
        ("out.raw", "raw"),
        ("out.qcow2", "qcow2"),
        ("out.vmdk", "vmdk"),
        ("out.vhdx", "vhdx"),
        ("out", "raw"),
        ("out,a=b.img", "raw"),
    ] {
        let target = images.path(file);
        bed.ok(&["export", "vol1", &target]).await;
        let target = Path::new(&target);
        if format == "raw" {
            assert!(fs::read(target).unwrap() == contents, "{file} is another disk");
            assert!(allocated(target) <= sparse + (256 << 10), "{file}: {} bytes", allocated(target));
        } else {
            tool("qemu-img", &["compare", "-f", "raw", "-F", format, &raw, target.to_str().unwrap()]);
        }
        let before = checksum(target);
        bed.refused(&["export", "vol1", target.to_str().unwrap()], 3, &[file, "there already"]).await;
        assert_eq!(checksum(target), before);
        assert!(!bed.path(&format!("{file}.part")).exists());
        // The round trip, except for what has a comma in a name that ends otherwise.
        let back = format!("back-{}", file.replace([',', '='], "-"));
        bed.ok(&["create", &back, "--from", target.to_str().unwrap()]).await;
        assert!(fs::read(bed.state(&format!("pools/nas-0-0/tank/{back}/disk.raw"))).unwrap() == contents, "{file}");
    }
    symlink("nowhere", bed.path("dangling.raw")).unwrap();
    bed.refused(&["export", "vol1", &images.path("dangling.raw")], 3, &["dangling.raw"]).await;
    assert!(!bed.path("nowhere").exists());
    bed.refused(&["export", "vol1", &images.path("nowhere/x.raw")], 1, &["nowhere"]).await;
    bed.refused(&["export", "vol1", bed.dir.path().to_str().unwrap()], 3, &["there already"]).await;
    fs::write(bed.path("half.raw.part"), "of somebody").unwrap();
    bed.refused(&["export", "vol1", &images.path("half.raw")], 1, &["half.raw.part", "remove"]).await;
    assert_eq!(fs::read(bed.path("half.raw.part")).unwrap(), b"of somebody");
    // A file is not exported into itself: the command's own file descriptors are no names.
    let mut command = std::process::Command::new(bed.service.program());
    command.arg0("img-storage").args(["export", "vol1", "/dev/stdout"]).env("IMG_STORAGE_DIR", bed.service.dir());
    assert_eq!(command.output().unwrap().status.code(), Some(3));
}
