//! The front end's process, and what it is asked to ask.

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use std::{path::Path, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

/// Debian's own, which has the package of the client library.
const PYTHON: &str = "/usr/bin/python3";
/// The original's front end would wait for ever.
const PATIENCE: Duration = Duration::from_secs(150);

/// A front end in the original's manner, written with the library that it uses.
pub struct FrontEnd {
    _child: Child,
    commands: ChildStdin,
    results: Lines<BufReader<ChildStdout>>,
}

impl FrontEnd {
    /// Starts one that logs in as told, and signs its messages if at all.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(port: u16, pki: &Path, login: &str, signed_by: Option<&str>) -> anyhow::Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/front_end/front_end.py");
        let mut child = Command::new(PYTHON)
            .arg(script)
            .args(["localhost", &port.to_string()])
            .arg(pki)
            .arg(login)
            .args(signed_by)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {PYTHON}"))?;
        let commands = child.stdin.take().context("no stdin")?;
        let results = BufReader::new(child.stdout.take().context("no stdout")?).lines();
        Ok(FrontEnd { _child: child, commands, results })
    }

    /// Sends a command, whose result [`FrontEnd::result`] gives.
    ///
    /// # Errors
    /// When the process has ended.
    pub async fn send(&mut self, to: &str, body: &str) -> anyhow::Result<()> {
        let line = format!("{}\n", json!({"to": to, "body": body}));
        Ok(self.commands.write_all(line.as_bytes()).await?)
    }

    /// What came of the command.
    ///
    /// # Errors
    /// When nothing came, or nothing that the original's front end can read.
    pub async fn result(&mut self) -> anyhow::Result<Value> {
        let line = timeout(PATIENCE, self.results.next_line()).await.context("no answer")??.context("it has ended")?;
        let result: Value = serde_json::from_str(&line)?;
        let Some(answer) = result["answer"].as_str() else { return Ok(result) };
        let properties = &result["properties"];
        ensure!(properties["app_id"] == "rocks.RabbitMQClient" && properties["delivery_mode"] == 1, "{properties}");
        ensure!(properties["content_type"].is_null() && properties["timestamp"].is_u64(), "{properties}");
        ensure!(properties["message_id"].as_str().is_some_and(|id| id.parse::<u64>().is_ok()), "{properties}");
        Ok(serde_json::from_str(answer)?)
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// As [`FrontEnd::result`].
    pub async fn ask(&mut self, to: &str, message: &Value) -> anyhow::Result<Value> {
        self.ask_text(to, &message.to_string()).await
    }

    /// The same with a body that may be anything.
    ///
    /// # Errors
    /// As [`FrontEnd::result`].
    pub async fn ask_text(&mut self, to: &str, body: &str) -> anyhow::Result<Value> {
        self.send(to, body).await?;
        self.result().await
    }
}
