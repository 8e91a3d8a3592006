//! A storage daemon's block graph, jobs and exports as they are at one moment.

use std::collections::BTreeMap;

use img_storage_model::node::{Job, JobState};
use serde::Deserialize;
use serde_json::Value;

/// A named dirty bitmap.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct BitmapInfo {
    /// Its name.
    pub name: String,
    /// Whether writes are recorded now.
    pub recording: bool,
    /// Bytes marked.
    pub count: u64,
}

/// What was seen.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    /// Nodes and their bitmaps, oldest first.
    nodes: BTreeMap<String, Vec<BitmapInfo>>,
    /// What a node has below it, by node and edge.
    below: BTreeMap<(String, String), String>,
    /// Jobs, also those that are over.
    pub jobs: BTreeMap<String, Job>,
    /// Exports and the node they are on.
    pub exports: BTreeMap<String, String>,
    /// Objects: credentials, throttle groups, access lists.
    pub objects: Vec<String>,
}

#[derive(Deserialize)]
struct DebugGraph {
    nodes: Vec<DebugNode>,
    edges: Vec<DebugEdge>,
}

#[derive(Deserialize)]
struct DebugNode {
    id: u64,
    #[serde(rename = "type")]
    kind: String,
    name: String,
}

#[derive(Deserialize)]
struct DebugEdge {
    parent: u64,
    child: u64,
    name: String,
}

/// Something QEMU said that we do not understand.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the storage daemon describes its {what} in a way that is not understood: {why}")]
pub struct NotUnderstood {
    what: &'static str,
    why: String,
}

fn parse<T: for<'de> Deserialize<'de>>(what: &'static str, value: &Value) -> Result<T, NotUnderstood> {
    T::deserialize(value).map_err(|error| NotUnderstood { what, why: error.to_string() })
}

impl Graph {
    /// Reads the answers to `x-debug-query-block-graph`, `query-named-block-nodes`, `query-jobs`, `query-block-jobs`,
    /// `query-block-exports` and `qom-list` of `/objects`.
    ///
    /// # Errors
    /// When an answer is not what QEMU's reference says; then nothing is known.
    pub fn read(answers: &[Value; 6]) -> Result<Self, NotUnderstood> {
        let [edges, nodes, jobs, block_jobs, exports, objects] = answers;
        let mut graph = Self::default();
        let debug: DebugGraph = parse("graph", edges)?;
        let names: BTreeMap<u64, &str> =
            debug.nodes.iter().filter(|node| node.kind == "block-driver").map(|node| (node.id, node.name.as_str())).collect();
        for edge in &debug.edges {
            if let (Some(parent), Some(child)) = (names.get(&edge.parent), names.get(&edge.child)) {
                graph.below.insert(((*parent).to_owned(), edge.name.clone()), (*child).to_owned());
            }
        }
        for node in parse::<Vec<Value>>("nodes", nodes)? {
            let name: String = parse("nodes", &node["node-name"])?;
            let mut bitmaps = Vec::new();
            for bitmap in node["dirty-bitmaps"].as_array().into_iter().flatten() {
                // Those without a name belong to jobs and filters.
                if bitmap.get("name").is_some() {
                    bitmaps.push(parse("bitmaps", bitmap)?);
                }
            }
            // QEMU lists the newest first.
            bitmaps.reverse();
            graph.nodes.insert(name, bitmaps);
        }
        graph.jobs = read_jobs(jobs, block_jobs)?;
        for export in parse::<Vec<Value>>("exports", exports)? {
            graph.exports.insert(parse("exports", &export["id"])?, parse("exports", &export["node-name"])?);
        }
        for object in parse::<Vec<Value>>("objects", objects)? {
            graph.objects.push(parse("objects", &object["name"])?);
        }
        Ok(graph)
    }

    /// Whether the node exists.
    pub fn has(&self, node: &str) -> bool {
        self.nodes.contains_key(node)
    }

    /// The nodes whose names begin with `prefix`, without it.
    pub fn named<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a str> + 'a {
        self.nodes.keys().filter_map(move |name| name.strip_prefix(prefix))
    }

    /// The node's bitmaps, oldest first.
    pub fn bitmaps(&self, node: &str) -> &[BitmapInfo] {
        self.nodes.get(node).map_or(&[], Vec::as_slice)
    }

    /// Whether the node has this bitmap.
    pub fn has_bitmap(&self, node: &str, bitmap: &str) -> bool {
        self.bitmaps(node).iter().any(|b| b.name == bitmap)
    }

    /// What lies directly under a node or filter.
    pub fn under(&self, node: &str) -> Option<&str> {
        // Mirrors and commits call what they filter their backing file.
        let child = |edge: &str| self.below.get(&(node.to_owned(), edge.to_owned()));
        child("file").or_else(|| child("backing")).map(String::as_str)
    }

    /// Everything under a node, nearest first.
    pub fn chain<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a str> + 'a {
        std::iter::successors(self.under(node), |node| self.under(node))
    }
}

/// Reads the answers to `query-jobs` and `query-block-jobs`.
///
/// # Errors
/// As [`Graph::read`].
pub fn read_jobs(jobs: &Value, block_jobs: &Value) -> Result<BTreeMap<String, Job>, NotUnderstood> {
    let block_jobs: Vec<Value> = parse("block jobs", block_jobs)?;
    let mut found = BTreeMap::new();
    for job in parse::<Vec<RawJob>>("jobs", jobs)? {
        // Reopening and draining pause a job for a moment, too; only an error keeps it so.
        let block_job = block_jobs.iter().find(|b| b["device"] == job.id.as_str());
        let speed = block_job.and_then(|b| b["speed"].as_u64()).unwrap_or(0);
        let held = block_job.and_then(|b| match b["io-status"].as_str() {
            Some("nospace") => Some("no space left on the device"),
            Some("failed") => Some("an I/O error"),
            _ => None,
        });
        found.insert(job.id.clone(), job.understand(held, speed)?);
    }
    Ok(found)
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawJob {
    id: String,
    status: String,
    current_progress: u64,
    total_progress: u64,
    error: Option<String>,
}

impl RawJob {
    /// `held`: it stands still until somebody resumes it, and why.
    fn understand(&self, held: Option<&str>, speed: u64) -> Result<Job, NotUnderstood> {
        let state = match (self.status.as_str(), held) {
            ("paused" | "standby", Some(why)) => JobState::Paused(why.to_owned()),
            ("undefined" | "created" | "running" | "paused" | "waiting" | "aborting", _) => JobState::Running,
            ("ready" | "standby", _) => JobState::Ready,
            ("pending", _) => JobState::Pending,
            ("concluded" | "null", _) => match &self.error {
                Some(why) => JobState::Failed(why.clone()),
                None => JobState::Done,
            },
            (other, _) => return Err(NotUnderstood { what: "jobs", why: format!("status {other:?}") }),
        };
        Ok(Job { state, done: self.current_progress, total: self.total_progress, speed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_push_under_way_is_seen() {
        let node = |id: u64, name: &str| json!({"id": id, "type": "block-driver", "name": name});
        let edge = |parent: u64, child: u64, name: &str| json!({"parent": parent, "child": child, "name": name, "perm": [], "shared-perm": []});
        let bitmap =
            |name: &str, recording: bool| json!({"name": name, "recording": recording, "count": 65536, "granularity": 65536});
        let graph = Graph::read(&[
            json!({
                "nodes": [node(1, "top"), node(2, "cbw"), node(3, "local"), node(4, "fl"), {"id": 5, "type": "block-backend", "name": ""}],
                "edges": [edge(5, 1, "root"), edge(1, 2, "file"), edge(2, 3, "file"), edge(2, 4, "target")],
            }),
            json!([
                {"node-name": "top", "dirty-bitmaps": [bitmap("wb.b", true), bitmap("wb.a", false), {"count": 0}]},
                {"node-name": "cbw"}, {"node-name": "local"}, {"node-name": "fl"},
            ]),
            json!([
                {"id": "copy", "status": "paused", "current-progress": 1, "total-progress": 2, "type": "mirror"},
                {"id": "x", "status": "paused", "current-progress": 1, "total-progress": 2, "type": "mirror"},
                {"id": "y", "status": "concluded", "current-progress": 1, "total-progress": 2, "type": "mirror", "error": "no"},
            ]),
            json!([{"device": "copy", "paused": true, "io-status": "nospace"}, {"device": "x", "paused": false}]),
            json!([{"id": "guest", "node-name": "top"}]),
            json!([{"name": "type", "type": "string"}, {"name": "tls", "type": "child<tls>"}]),
        ])
        .expect("understood");
        assert_eq!(graph.chain("top").collect::<Vec<_>>(), ["cbw", "local"]);
        assert_eq!(graph.bitmaps("top").iter().map(|b| b.name.as_str()).collect::<Vec<_>>(), ["wb.a", "wb.b"]);
        let states: Vec<&JobState> = graph.jobs.values().map(|job| &job.state).collect();
        assert_eq!(
            states,
            [&JobState::Paused("no space left on the device".into()), &JobState::Running, &JobState::Failed("no".into())]
        );
        assert_eq!(graph.exports["guest"], "top");
    }

    #[test]
    fn what_is_not_understood_is_not_absence() {
        let empty = || json!([]);
        let answers = [json!({}), empty(), empty(), empty(), empty(), empty()];
        assert!(Graph::read(&answers).is_err());
    }
}
