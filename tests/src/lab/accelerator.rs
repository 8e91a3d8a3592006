//! Whether this machine runs guests itself or QEMU has to emulate them.

use super::{image::Image, namespace::Namespace};
use std::{fmt, fs, time::Duration};

/// How guests are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// By the processor.
    Kvm,
    /// By QEMU, which takes some ten times as long.
    Emulation,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accelerator::Kvm => "by the processor (KVM)",
            Accelerator::Emulation => "emulated: ten times as slow as on hardware",
        })
    }
}

impl Accelerator {
    /// QEMU's options.
    pub fn options(self) -> &'static str {
        match self {
            Accelerator::Kvm => "-accel kvm -cpu host",
            // What the emulated processor can do more saves time: checksums, above all.
            Accelerator::Emulation => "-accel tcg,thread=multi -cpu max",
        }
    }

    /// Tries it: there are machines where /dev/kvm opens, and a kernel started with it never says a word. Remembered until the
    /// machine is started again.
    pub async fn of_this_machine(image: &Image, namespace: &Namespace) -> Self {
        if !fs::exists("/dev/kvm").unwrap_or(false) {
            return Accelerator::Emulation;
        }
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let memory = image.dir.with_extension("kvm");
        if let Ok(known) = fs::read_to_string(&memory)
            && let Some((when, works)) = known.split_once(' ')
            && when == boot.trim()
        {
            return if works.trim() == "works" { Accelerator::Kvm } else { Accelerator::Emulation };
        }
        let mut words = image.program("qemu-system-x86_64");
        let rest = format!(
            "-machine pc-i440fx-7.2 -accel kvm -cpu host -m 256 -nodefaults -no-user-config -display none -no-reboot -L {} -L {} \
             -kernel {} -initrd {} -append rdinit=/probe",
            image.part("usr/share/seabios"),
            image.part("usr/share/qemu"),
            image.file("vmlinuz"),
            image.file("initrd.img"),
        );
        words.extend(rest.split_whitespace().map(str::to_owned));
        // The guest switches itself off as soon as it runs.
        let works = namespace.run(&words, Duration::from_secs(8)).await.is_ok();
        let _ = fs::write(&memory, format!("{} {}\n", boot.trim(), if works { "works" } else { "does-not" }));
        if works { Accelerator::Kvm } else { Accelerator::Emulation }
    }
}
