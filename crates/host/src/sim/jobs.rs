//! What moves by itself as time passes: jobs go on block by block, and connections notice that they lead nowhere.

use super::{
    RECONNECT,
    graph::{Conn, NodeVolume},
    nas_state::Nases,
    state::State,
};
use img_storage_model::{
    HostName, VolumeId,
    node::{JobState, Layer},
};
use tokio::time::Instant;

impl State {
    /// Lets every job do what it would have done until now.
    pub fn advance(&mut self) {
        let now = self.log.now;
        for (name, node) in &mut self.nodes {
            for volume in node.volumes.values_mut() {
                advance_copy(&self.nases, name, node.cut, node.full, volume, now);
                advance_push(&mut self.nases, name, node.cut, volume, now);
                advance_fill(&mut self.nases, name, node.cut, volume, now);
            }
        }
        let mut moved: Vec<VolumeId> = Vec::new();
        for (_, dir) in self.nases.dirs_mut() {
            let Some(commit) = dir.export.as_mut().and_then(|e| e.commit.as_mut()) else {
                continue;
            };
            while matches!(commit.state, JobState::Running | JobState::Ready) && commit.next <= now {
                match commit.todo.pop_first() {
                    Some(block) => {
                        let version = dir.overlay.as_ref().and_then(|o| o.blocks.get(&block).copied());
                        if let (Some(version), Some(disk)) = (version, &mut dir.disk) {
                            disk[block] = version;
                        }
                        moved.extend(dir.mark);
                    }
                    None => commit.state = JobState::Ready,
                }
                commit.next += commit.pace();
            }
        }
        self.sync_zvols();
        self.advance_streams();
        self.advance_merges();
        moved.dedup();
        for volume in moved {
            self.check_readable(volume, "the live commit went on");
        }
    }

    /// Lets every connection notice whether it leads somewhere.
    pub fn settle(&mut self) {
        let now = self.log.now;
        self.settle_sessions();
        for (name, node) in &mut self.nodes {
            for qsd in node.volumes.values_mut().filter_map(|v| v.qsd.as_mut()) {
                for conn in [&mut qsd.remote, &mut qsd.back].into_iter().flatten() {
                    match self.nases.target(name, node.cut, conn) {
                        Ok(_) => conn.lost = None,
                        Err(_) => conn.lost = Some(conn.lost.unwrap_or(now)),
                    }
                }
            }
        }
    }
}

/// Whether a request on a connection has waited long enough to fail.
pub(super) fn gave_up(conn: &Conn, now: Instant) -> bool {
    conn.lost.is_some_and(|lost| now.duration_since(lost) >= RECONNECT)
}

fn advance_copy(nases: &Nases, node: &HostName, cut: bool, full: bool, volume: &mut NodeVolume, now: Instant) {
    let Some(qsd) = volume.qsd.as_mut().filter(|q| q.top == Layer::Remote) else {
        return;
    };
    let (Some(copy), Some(conn), Some(local)) = (&mut qsd.copy, &qsd.remote, &mut volume.local) else {
        return;
    };
    while copy.state == JobState::Running && copy.next <= now {
        if copy.todo.is_empty() {
            copy.state = JobState::Ready;
            return;
        }
        match nases.target(node, cut, conn) {
            Ok(target) if full => {
                drop(target);
                copy.state = JobState::Paused("no space left on device".to_owned());
            }
            Ok(target) if !nases.held(&target) => {
                let block = copy.todo.pop_first().unwrap_or(0);
                if let (Some(to), Some(from)) = (local.data.get_mut(block), nases.contents(&target).get(block)) {
                    *to = *from;
                }
            }
            // In its first instant the job does not pause but ends.
            Err(why) if gave_up(conn, copy.next) && copy.todo.len() == copy.total => copy.state = JobState::Failed(why),
            Err(why) if gave_up(conn, copy.next) => copy.state = JobState::Paused(why),
            _ => {}
        }
        copy.next += copy.pace();
    }
}

fn advance_push(nases: &mut Nases, node: &HostName, cut: bool, volume: &mut NodeVolume, now: Instant) {
    loop {
        let Some(qsd) = &mut volume.qsd else {
            return;
        };
        let (Some((_, job)), Some(conn)) = (&mut qsd.push, &qsd.incoming) else {
            return;
        };
        if job.state != JobState::Running || job.next > now {
            return;
        }
        if qsd.broken {
            job.state = JobState::Failed("the point in time is broken".to_owned());
            return;
        }
        job.next += job.pace();
        match nases.target(node, cut, conn) {
            Err(why) => job.state = JobState::Failed(why),
            Ok(target) => match job.todo.pop_first() {
                None => job.state = JobState::Done,
                Some(block) => {
                    let version = volume.point_in_time(block);
                    nases.write(&target, block, version);
                }
            },
        }
    }
}

fn advance_fill(nases: &mut Nases, node: &HostName, cut: bool, volume: &mut NodeVolume, now: Instant) {
    let (Some(qsd), Some(local)) = (&mut volume.qsd, &volume.local) else {
        return;
    };
    let (Some(job), Some(conn)) = (&mut qsd.back_fill, &qsd.back) else {
        return;
    };
    while job.state == JobState::Running && job.next <= now {
        job.next += job.pace();
        match nases.target(node, cut, conn) {
            Err(why) => job.state = JobState::Failed(why),
            Ok(target) => match job.todo.pop_first() {
                None => job.state = JobState::Done,
                Some(block) => {
                    nases.write(&target, block, local.data[block]);
                }
            },
        }
    }
}
