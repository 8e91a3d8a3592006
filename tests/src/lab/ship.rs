//! The disk `ship`, made anew for each lab: the program under test, the scripts of `tests/lab/ship`, and keys that no other lab
//! has. A guest has it at `/opt/lab`.

use super::{GUESTS, HOST, address};
use anyhow::{Context as _, bail, ensure};
use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Stdio},
};

/// Makes `ship.erofs`, `root` (the key that opens the guests) and `known_hosts` in `dir`.
///
/// # Errors
/// When a tool is missing or fails.
pub fn make(dir: &Path, program: Option<&Path>) -> anyhow::Result<()> {
    let ship = dir.join("ship");
    fs::create_dir(&ship)?;
    let mut known = String::new();
    for guest in GUESTS {
        let key = keygen(&ship.join(format!("{guest}_host")))?;
        writeln!(known, "{guest},{},{} {key}", address("data", guest), address("control", guest))?;
    }
    let root = keygen(&dir.join("root"))?;
    keygen(&ship.join("stream"))?;
    fs::write(ship.join("root.pub"), format!("{root}\n"))?;
    fs::write(ship.join("known_hosts"), &known)?;
    fs::write(dir.join("known_hosts"), &known)?;
    for file in fs::read_dir(super::image::files().join("ship"))? {
        let file = file?;
        fs::copy(file.path(), ship.join(file.file_name()))?;
    }
    if let Some(program) = program {
        strip(program, &ship.join("img-storage"))?;
    }
    let image = dir.join("ship.erofs");
    run(Command::new("mkfs.erofs").args(["--quiet", "--all-root"]).arg(&image).arg(&ship))?;
    fs::remove_dir_all(&ship)?;
    Ok(())
}

/// A copy of a program without what only a debugger wants: a tenth of its size.
///
/// # Errors
/// When it cannot be made.
pub fn strip(program: &Path, copy: &Path) -> anyhow::Result<()> {
    run(Command::new("strip").arg("-o").arg(copy).arg(program))
}

/// What the guests know each other and this machine by.
pub fn hosts() -> String {
    let named = GUESTS.iter().chain([&HOST]).map(|name| format!("{name}:{}", address("data", name)));
    named.collect::<Vec<_>>().join(",")
}

/// Makes a key; its public half without the comment.
fn keygen(file: &Path) -> anyhow::Result<String> {
    run(Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f"]).arg(file))?;
    let text = fs::read_to_string(file.with_extension("pub"))?;
    let mut words = text.split_whitespace();
    match (words.next(), words.next()) {
        (Some(kind), Some(key)) => Ok(format!("{kind} {key}")),
        _ => bail!("ssh-keygen made a key that is none: {text}"),
    }
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("starting {program}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} failed with {}: {}", output.status, said.trim());
    Ok(())
}
