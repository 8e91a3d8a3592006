//! Who is connected to a guest's socket.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use img_storage_model::messages::Holder;

use crate::HostError;
use crate::exec;
use crate::qemu::during;

const LOOK: Duration = Duration::from_secs(10);

/// Whether nobody at all is connected, not even we ourselves.
pub(super) fn none(sockets: &[PathBuf]) -> bool {
    fs::read("/proc/net/unix").is_ok_and(|table| connected(&table, sockets).is_empty())
}

/// The kernel's table says how many connections there are; `ss` knows the other ends, as far as we may see them.
pub(super) async fn of(sockets: &[PathBuf]) -> Result<Vec<Holder>, HostError> {
    let table = fs::read("/proc/net/unix").map_err(during("read /proc/net/unix"))?;
    let ours: BTreeSet<u64> = connected(&table, sockets);
    if ours.is_empty() {
        return Ok(Vec::new());
    }
    let (ours, peers) = match exec::run("ss", &["-xpnH"], LOOK).await {
        Ok(output) => {
            let output = String::from_utf8_lossy(&output.stdout);
            let left = left(&output);
            (&ours - &left, peers(&output, &ours))
        }
        Err(error) => {
            tracing::debug!(%error, "cannot tell who is connected");
            (ours, Vec::new())
        }
    };
    let unseen = ours.len().saturating_sub(peers.len());
    // We ourselves read through the same server.
    let peers = peers.into_iter().filter(|holder| holder.pid != Some(std::process::id()));
    Ok(peers.chain((0..unseen).map(|_| Holder { pid: None, command: None })).collect())
}

/// The inodes of the connected sockets with one of these names: the ends of the connections that the daemon has accepted.
fn connected(table: &[u8], sockets: &[PathBuf]) -> BTreeSet<u64> {
    let inode = |line: &[u8]| {
        let mut words = line.splitn(8, |byte| *byte == b' ').filter(|word| !word.is_empty());
        let state = words.by_ref().nth(5)?;
        let rest = line.splitn(7, |byte| *byte == b' ').nth(6)?;
        let rest = rest.trim_ascii_start();
        let (inode, path) = rest.split_at(rest.iter().position(|byte| *byte == b' ')?);
        let ours = sockets.iter().any(|socket| socket.as_os_str().as_bytes() == &path[1..]);
        (state == b"03" && ours).then(|| std::str::from_utf8(inode).ok()?.parse().ok())?
    };
    table.split(|byte| *byte == b'\n').filter_map(inode).collect()
}

/// The inodes of connected sockets whose other end is closed: who was there has left, and the daemon is about to see that.
fn left(output: &str) -> BTreeSet<u64> {
    let lonely = |line: &str| {
        // The path before it may have spaces.
        let words: Vec<&str> = line.split_whitespace().collect();
        words.windows(3).rev().find(|three| three[1] == "*" && three[2] == "0").and_then(|three| three[0].parse().ok())
    };
    output.lines().filter_map(lonely).collect()
}

/// The processes at the other ends of the sockets `ours`, from the output of `ss -xpnH`:
/// `u_str ESTAB 0 0 PATH INODE * PEER users:(("NAME",pid=1,fd=2))`.
fn peers(output: &str, ours: &BTreeSet<u64>) -> Vec<Holder> {
    let holder = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let peer: u64 = words.get(7)?.parse().ok()?;
        let users = words.get(8..).map(|rest| rest.join(" ")).unwrap_or_default();
        let quoted = |text: &str| text.split('"').nth(1).map(str::to_owned);
        let pid = users.split("pid=").nth(1).and_then(|rest| rest.split(',').next()?.parse().ok());
        ours.contains(&peer).then(|| Holder { pid, command: quoted(&users) })
    };
    output.lines().filter_map(holder).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_and_their_other_ends_are_found() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 10 /run/a b/guest.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03    11 /run/a b/guest.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03    12 /run/other.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03    13\n";
        let ours = connected(table, &["/run/a b/guest.sock".into()]);
        assert_eq!(ours, BTreeSet::from([11]));
        let output = "u_str ESTAB 0 0 /run/a.sock 11 * 13 users:((\"qemu-storage-da\",pid=5,fd=9))\n\
            u_str ESTAB 0 0 * 13 * 11 users:((\"qemu-system-x86\",pid=7,fd=8))\n\
            u_str ESTAB 0 0 * 14 * 12\n";
        let expected = Holder { pid: Some(7), command: Some("qemu-system-x86".into()) };
        assert_eq!(peers(output, &ours), [expected]);
        assert_eq!(left(output), BTreeSet::new());
        assert_eq!(left("u_str ESTAB 0 0 /run/a b.sock 11 * 0 users:((\"qemu-storage-da\",pid=5,fd=9))\n"), ours);
    }
}
