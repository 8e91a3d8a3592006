//! Orders to QEMU itself, over its socket.

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use std::{path::Path, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::UnixStream,
};

/// What one order may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Gives one order and waits for its answer.
///
/// # Errors
/// When QEMU is not there, does not answer in time or refuses.
pub async fn order(socket: &Path, order: &str, arguments: Value) -> anyhow::Result<Value> {
    let whole = async {
        let mut stream = BufReader::new(UnixStream::connect(socket).await?);
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        answer(&mut stream, &json!({"execute": "qmp_capabilities"})).await?;
        answer(&mut stream, &json!({"execute": order, "arguments": arguments})).await
    };
    let answered = tokio::time::timeout(PATIENCE, whole).await;
    answered.context("QEMU does not answer").flatten().with_context(|| format!("`{order}` at {}", socket.display()))
}

async fn answer(stream: &mut BufReader<UnixStream>, order: &Value) -> anyhow::Result<Value> {
    stream.write_all(format!("{order}\n").as_bytes()).await?;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            bail!("QEMU has gone");
        }
        let mut said: Value = serde_json::from_str(&line)?;
        if let Some(error) = said.get("error") {
            bail!("QEMU refuses: {error}");
        }
        // What it says unasked are events.
        if said.get("return").is_some() {
            return Ok(said["return"].take());
        }
    }
}
