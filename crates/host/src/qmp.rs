//! A client of QMP, the control socket of `qemu-storage-daemon`.
//!
//! QEMU serves one client of a monitor at a time; a second one waits, without a greeting, for the first to go. So a
//! connection is opened for a piece of work and dropped after it, and [`Qmp::connect`] has a deadline.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::{Instant, timeout_at};

/// Events kept for [`Qmp::take_events`]; older ones are dropped.
const EVENTS_KEPT: usize = 256;
/// The longest message that is read; the answer to `query-named-block-nodes` of our graphs is a few tens of KiB.
const LONGEST: usize = 16 << 20;

/// Why a command got no good answer.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// The socket cannot be reached.
    #[error("cannot connect to the control socket {path}: {source}", path = path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The connection broke: the process ended, or it was never QMP.
    #[error("the control connection {path} broke during {command}: {why}", path = path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What was asked.
        command: String,
        /// What happened.
        why: String,
    },
    /// No answer in time; whether the command has an effect is not known: look again.
    #[error("no answer to {command} from {path} within {after:?}", path = path.display())]
    Deadline {
        /// The socket.
        path: PathBuf,
        /// What was asked.
        command: String,
        /// How long we waited.
        after: Duration,
    },
    /// QEMU refused the command.
    #[error("{command} refused ({class}): {desc}")]
    Refused {
        /// What was asked.
        command: String,
        /// The error class of the protocol (`GenericError`, `DeviceNotFound`, …).
        class: String,
        /// QEMU's words: for people, not for decisions.
        desc: String,
    },
}

impl QmpError {
    /// Whether QEMU read the command and refused it (so the process is alive and nothing happened).
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}

/// The version of QEMU from its greeting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct Version {
    /// Major version.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
    /// Patch level.
    pub micro: u32,
}

/// One connection to a monitor.
#[derive(Debug)]
pub struct Qmp {
    path: PathBuf,
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
    /// A line read so far: a read that was given up leaves its part here.
    line: Vec<u8>,
    /// Begins the ids of this connection's commands: the answer to one of an earlier connection, which may come only now, has another.
    name: String,
    next_id: u64,
    /// Set while a command is being written: a write that was given up makes the stream useless.
    torn: bool,
    events: Vec<Value>,
    version: Version,
}

impl Qmp {
    /// Connects, reads the greeting and enters command mode.
    pub async fn connect(path: &Path, deadline: Duration) -> Result<Self, QmpError> {
        let end = Instant::now() + deadline;
        let late = |command: &str| QmpError::Deadline { path: path.to_owned(), command: command.into(), after: deadline };
        let stream = timeout_at(end, UnixStream::connect(path))
            .await
            .map_err(|_| late("connect"))?
            .map_err(|source| QmpError::Connect { path: path.to_owned(), source })?;
        let (read, writer) = stream.into_split();
        let mut qmp = Self {
            path: path.to_owned(),
            reader: BufReader::with_capacity(64 << 10, read),
            writer,
            line: Vec::new(),
            name: unique(),
            next_id: 1,
            torn: false,
            events: Vec::new(),
            version: Version { major: 0, minor: 0, micro: 0 },
        };
        let greeting = timeout_at(end, qmp.greeting()).await.map_err(|_| late("greeting"))??;
        qmp.version = Version::deserialize(&greeting["version"]["qemu"])
            .map_err(|_| qmp.broken("greeting", "the greeting is not QMP's"))?;
        qmp.execute("qmp_capabilities", json!({}), end.saturating_duration_since(Instant::now())).await?;
        Ok(qmp)
    }

    /// QEMU's version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Runs one command and returns its result.
    pub async fn execute(&mut self, command: &str, arguments: Value, deadline: Duration) -> Result<Value, QmpError> {
        if self.torn {
            return Err(self.broken(command, "an earlier command was interrupted; connect again"));
        }
        let id = format!("{}.{}", self.name, self.next_id);
        self.next_id += 1;
        let mut text = json!({ "execute": command, "arguments": arguments, "id": id }).to_string();
        text.push('\n');
        let path = self.path.clone();
        let answer = async {
            self.torn = true;
            if let Err(error) = self.writer.write_all(text.as_bytes()).await {
                return Err(self.broken(command, &error.to_string()));
            }
            self.torn = false;
            loop {
                let mut message = self.message(command).await?;
                if message.get("event").is_some() {
                    self.keep_event(message);
                } else if message["id"] == id.as_str() {
                    if let Some(error) = message.get("error") {
                        let word = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
                        return Err(QmpError::Refused { command: command.into(), class: word("class"), desc: word("desc") });
                    }
                    return Ok(message["return"].take());
                }
                // Anything else answers a command that was given up.
            }
        };
        tokio::time::timeout(deadline, answer)
            .await
            .unwrap_or_else(|_| Err(QmpError::Deadline { path, command: command.into(), after: deadline }))
    }

    /// The events that arrived with the answers so far, oldest first.
    pub fn take_events(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.events)
    }

    fn keep_event(&mut self, event: Value) {
        if self.events.len() == EVENTS_KEPT {
            self.events.remove(0);
        }
        self.events.push(event);
    }

    /// The greeting. Before it may come what QEMU could not deliver to the client before us: the rest of a line, events, answers.
    async fn greeting(&mut self) -> Result<Value, QmpError> {
        let mut cut = true;
        loop {
            match self.message("greeting").await {
                Ok(mut message) if message.get("QMP").is_some() => return Ok(message["QMP"].take()),
                Ok(message) if message.is_object() => {}
                Err(QmpError::Broken { .. }) if std::mem::take(&mut cut) => {}
                Ok(_) => return Err(self.broken("greeting", "the greeting is not QMP's")),
                Err(error) => return Err(error),
            }
        }
    }

    async fn message(&mut self, command: &str) -> Result<Value, QmpError> {
        loop {
            let buffer = match self.reader.fill_buf().await {
                Ok([]) => return Err(self.broken(command, "the process closed it")),
                Ok(buffer) => buffer,
                Err(error) => {
                    let why = error.to_string();
                    return Err(self.broken(command, &why));
                }
            };
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let taken = end.map_or(buffer.len(), |at| at + 1);
            self.line.extend_from_slice(&buffer[..taken]);
            self.reader.consume(taken);
            if end.is_some() {
                let line = std::mem::take(&mut self.line);
                return serde_json::from_slice(&line).map_err(|error| self.broken(command, &format!("not JSON: {error}")));
            }
            if self.line.len() > LONGEST {
                return Err(self.broken(command, "a message without end"));
            }
        }
    }

    fn broken(&self, command: &str, why: &str) -> QmpError {
        QmpError::Broken { path: self.path.clone(), command: command.into(), why: why.into() }
    }
}

/// A name that no other connection of this or an earlier process had.
fn unique() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{:x}.{:x}.{}", std::process::id(), now.as_nanos(), NEXT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    const LONG: Duration = Duration::from_secs(5);

    /// Serves one client: for each line of the client one scripted answer.
    fn serve(path: &Path, greeting: &'static str, answers: Vec<&'static str>) {
        let listener = UnixListener::bind(path).expect("bind");
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("accept");
            let (read, mut write) = stream.into_split();
            let mut lines = BufReader::new(read).lines();
            write.write_all(greeting.as_bytes()).await.expect("write");
            for answer in answers {
                let Ok(Some(line)) = lines.next_line().await else { return };
                let asked: Value = serde_json::from_str(&line).expect("JSON");
                let answer = answer.replace("$ID", &asked["id"].to_string());
                write.write_all(answer.as_bytes()).await.expect("write");
            }
            let _ = lines.next_line().await;
            let _ = lines.next_line().await;
        });
    }

    /// With what a client before had not read.
    const HELLO: &str = "\"id\": 5}\r\n{\"event\": \"X\"}\r\n{\"return\": 3, \"id\": 1}\r\n{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 2, \"minor\": 0, \"major\": 10}}}}\r\n";

    #[tokio::test]
    async fn events_and_late_answers_do_not_confuse() {
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("s");
        serve(
            &path,
            HELLO,
            vec![
                "{\"return\": {}, \"id\": $ID}\r\n",
                "{\"event\": \"JOB_STATUS_CHANGE\"}\r\n{\"return\": 1, \"id\": 77}\r\n{\"return\": 42, \"id\": $ID}\r\n",
                "{\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": $ID}\r\n",
            ],
        );
        let mut qmp = Qmp::connect(&path, LONG).await.expect("connects");
        assert_eq!(qmp.version(), Version { major: 10, minor: 0, micro: 2 });
        assert_eq!(qmp.execute("a", json!({}), LONG).await.expect("answer"), 42);
        assert_eq!(qmp.take_events().len(), 1);
        let refused = qmp.execute("b", json!({}), LONG).await.expect_err("refused");
        assert_eq!(refused.to_string(), "b refused (GenericError): no");
        assert!(refused.is_refusal());
        let late = qmp.execute("c", json!({}), Duration::from_millis(30)).await.expect_err("late");
        assert!(matches!(late, QmpError::Deadline { .. }), "{late}");
        let closed = qmp.execute("d", json!({}), LONG).await.expect_err("closed");
        assert!(matches!(closed, QmpError::Broken { .. }), "{closed}");
    }

    #[tokio::test]
    async fn a_busy_monitor_is_a_deadline_and_a_stranger_is_named() {
        let dir = tempfile::tempdir().expect("directory");
        let busy = dir.path().join("busy");
        let _listener = UnixListener::bind(&busy).expect("bind");
        let error = Qmp::connect(&busy, Duration::from_millis(30)).await.expect_err("no greeting");
        assert!(matches!(error, QmpError::Deadline { .. }), "{error}");
        let stranger = dir.path().join("stranger");
        serve(&stranger, "hello\nhello\n", vec![]);
        let error = Qmp::connect(&stranger, LONG).await.expect_err("not QMP");
        assert!(error.to_string().contains("not JSON"), "{error}");
        let error = Qmp::connect(&dir.path().join("none"), LONG).await.expect_err("missing");
        assert!(matches!(error, QmpError::Connect { .. }), "{error}");
    }
}
