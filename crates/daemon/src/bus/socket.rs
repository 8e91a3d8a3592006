//! The embedded bus for roles in other processes of one machine: a unix socket, one JSON message a line.
//!
//! The front end's process serves it. The first line of a connection is the name, answered by `null` or by the fault
//! that refuses it. A client whose server went away tries again, with growing pauses, and goes on where it was: what was
//! sent meanwhile is lost, as messages may be.

use super::{Delivery, Exchange, Member, Post, Wire};
use img_storage_model::{Fault, HostName, messages::Envelope};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    sync::mpsc,
};

/// The longest message, in bytes; a longer one ends the connection.
const LONGEST: u64 = 16 << 20;

/// Serves the exchange on `listener` until dropped.
pub async fn serve(exchange: Arc<Exchange>, listener: UnixListener) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let exchange = Arc::clone(&exchange);
                connections.spawn(async move {
                    if let Err(why) = member(exchange, stream).await {
                        tracing::info!("a bus connection ended: {why}");
                    }
                });
            }
            Err(why) => {
                tracing::warn!("the bus socket does not accept: {why}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn line<R: tokio::io::AsyncBufRead + Unpin, T: serde::de::DeserializeOwned>(reader: &mut R) -> std::io::Result<Option<T>> {
    let mut text = Vec::new();
    if (&mut *reader).take(LONGEST).read_until(b'\n', &mut text).await? == 0 {
        return Ok(None);
    }
    serde_json::from_slice(&text).map(Some).map_err(std::io::Error::other)
}

fn encode<T: serde::Serialize>(value: &T) -> std::io::Result<Vec<u8>> {
    let mut text = serde_json::to_vec(value)?;
    text.push(b'\n');
    Ok(text)
}

async fn member(exchange: Arc<Exchange>, stream: UnixStream) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    let Some(name) = line::<_, HostName>(&mut read).await? else { return Ok(()) };
    let (sender, mut inbox) = mpsc::unbounded_channel();
    let entered = exchange.enter(&name, sender);
    write.write_all(&encode(&entered.as_ref().err())?).await?;
    if entered.is_err() {
        return Ok(());
    }
    let outward = async {
        while let Some(delivery) = inbox.recv().await {
            let (returned, message) = match delivery {
                Delivery::Message(message) => (false, message),
                Delivery::Unroutable(message) => (true, message),
                Delivery::Foreign(_) | Delivery::Unsent { .. } | Delivery::Connected => continue,
            };
            write.write_all(&encode(&(returned, message))?).await?;
        }
        Ok(())
    };
    let inward = async {
        while let Some(message) = line::<_, Envelope>(&mut read).await? {
            if message.from == name {
                exchange.route(message);
            } else {
                tracing::warn!("{name} sent a message as {}: dropped", message.from);
            }
        }
        Ok(())
    };
    tokio::select! { done = outward => done, done = inward => done }
}

/// Joins the bus that another process serves on `path`. Waits for it to come up; refused names are an error.
///
/// # Errors
/// [`img_storage_model::FaultKind::Refused`] when the name is taken.
pub async fn join(path: &Path, name: &HostName) -> Result<Member, Fault> {
    let (outbox, to_send) = mpsc::unbounded_channel();
    let (deliver, inbox) = mpsc::unbounded_channel();
    let stream = connect(path, name).await?;
    tokio::spawn(stay(path.to_owned(), name.clone(), stream, to_send, deliver));
    Ok(Member { post: Post { name: name.clone(), wire: Wire::Socket(outbox) }, inbox })
}

async fn connect(path: &Path, name: &HostName) -> Result<UnixStream, Fault> {
    let mut pause = Duration::from_millis(20);
    let mut said = false;
    loop {
        match introduce(path, name).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(fault)) => return Err(fault),
            Err(why) => {
                if !said {
                    tracing::info!("waiting for the bus at {}: {why}", path.display());
                    said = true;
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(2));
            }
        }
    }
}

async fn introduce(path: &Path, name: &HostName) -> std::io::Result<Result<UnixStream, Fault>> {
    let mut stream = UnixStream::connect(path).await?;
    stream.write_all(&encode(name)?).await?;
    // Byte by byte up to the line's end: what follows belongs to the messages.
    let mut answer = Vec::new();
    loop {
        match stream.read_u8().await? {
            b'\n' => break,
            byte => answer.push(byte),
        }
    }
    let refused: Option<Fault> = serde_json::from_slice(&answer).map_err(std::io::Error::other)?;
    Ok(refused.map_or(Ok(stream), Err))
}

async fn stay(
    path: PathBuf,
    name: HostName,
    mut stream: UnixStream,
    mut to_send: mpsc::UnboundedReceiver<Envelope>,
    deliver: mpsc::UnboundedSender<Delivery>,
) {
    loop {
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read);
        let outward = async {
            while let Some(message) = to_send.recv().await {
                write.write_all(&encode(&message)?).await?;
            }
            Ok(true)
        };
        let inward = async {
            while let Some((returned, message)) = line::<_, (bool, Envelope)>(&mut read).await? {
                let delivery = if returned { Delivery::Unroutable(message) } else { Delivery::Message(message) };
                if deliver.send(delivery).is_err() {
                    return Ok(true);
                }
            }
            Ok(false)
        };
        let done: std::io::Result<bool> = tokio::select! { done = outward => done, done = inward => done };
        match done {
            Ok(true) => return,
            Ok(false) => tracing::warn!("the bus at {} went away", path.display()),
            Err(why) => tracing::warn!("the bus at {} broke: {why}", path.display()),
        }
        let again = loop {
            match connect(&path, &name).await {
                Ok(stream) => break stream,
                Err(fault) => {
                    tracing::warn!("{fault}");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        };
        stream = again;
        // What was meant for the bus while it was away is old news by now.
        while to_send.try_recv().is_ok() {}
        if deliver.send(Delivery::Connected).is_err() {
            return;
        }
    }
}
