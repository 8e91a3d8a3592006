//! The front end's API over its unix socket.

use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, body::Bytes};
use hyper_util::rt::TokioIo;
use img_storage_daemon::frontend::http::wire;
use img_storage_model::{
    Fault, RequestId, Selector,
    api::{HostView, VolumeView},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::{net::UnixStream, time::Instant};

/// How long a question may take.
const QUESTION: Duration = Duration::from_secs(15);
/// How much longer than the order's own timeout its answer may take.
const MARGIN: Duration = Duration::from_secs(5);
/// How long a front end that was there may be gone, as when it is restarted.
const ABSENCE: Duration = Duration::from_secs(10);

/// A front end.
pub struct Client {
    socket: PathBuf,
}

/// Why a call came to nothing.
enum Lost {
    /// Nobody is there.
    Nobody(Fault),
    /// Somebody was; asking again with the same request id is safe.
    Broken(String),
    /// Asking again does not help.
    Final(Fault),
}

impl Client {
    /// The front end that serves `socket`.
    pub fn new(socket: PathBuf) -> Self {
        Client { socket }
    }

    /// A fresh request id.
    pub fn id() -> RequestId {
        RequestId(uuid::Uuid::now_v7())
    }

    /// The volumes.
    pub async fn volumes(&self, selector: Option<&Selector>) -> Result<Vec<VolumeView>, Fault> {
        Ok(read::<wire::Volumes>(&self.volumes_unread(selector).await?)?.volumes)
    }

    /// The volumes as they come, for [`read`].
    pub async fn volumes_unread(&self, selector: Option<&Selector>) -> Result<Bytes, Fault> {
        let query = selector.map(|s| format!("?selector={}", encode(&s.to_string()))).unwrap_or_default();
        self.bytes(&format!("/api/volumes{query}")).await
    }

    /// One volume.
    pub async fn volume(&self, selector: &Selector) -> Result<VolumeView, Fault> {
        self.get(&format!("/api/volumes/{}", encode(&selector.to_string()))).await
    }

    /// The hosts.
    pub async fn hosts(&self) -> Result<Vec<HostView>, Fault> {
        Ok(self.get::<wire::Hosts>("/api/hosts").await?.hosts)
    }

    /// What a GET answers.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Fault> {
        read(&self.bytes(path).await?)
    }

    async fn bytes(&self, path: &str) -> Result<Bytes, Fault> {
        let late = || {
            Fault::unreachable(format!("the front end at {} does not answer", self.socket.display()))
                .next("see its log; img-storage status tells when it is back")
        };
        tokio::time::timeout(QUESTION, self.call(Method::GET, path, Bytes::new())).await.map_err(|_| late())?
    }

    /// An order to a volume: `map`, `unmap`, …
    pub async fn order(&self, volume: &VolumeView, verb: &str, order: &impl wire::Order) -> Result<wire::Outcome, Fault> {
        self.post(&format!("/api/volumes/{}/{verb}", encode(&volume.full_name())), order).await
    }

    /// What an order answers.
    pub async fn post(&self, path: &str, order: &impl wire::Order) -> Result<wire::Outcome, Fault> {
        let limit = order.common().deadline()? + MARGIN;
        let body = serde_json::to_vec(order).map_err(|error| Fault::failed(format!("cannot write the request: {error}")))?;
        let late =
            || Fault::unfinished("no answer before the timeout; it goes on").next("img-storage status shows how far it is");
        read(&tokio::time::timeout(limit, self.call(Method::POST, path, body.into())).await.map_err(|_| late())??)
    }

    /// Asks, and asks again while a front end that was there is away for a moment.
    async fn call(&self, method: Method, path: &str, body: Bytes) -> Result<Bytes, Fault> {
        let mut away: Option<(Instant, String)> = None;
        loop {
            match (self.once(&method, path, body.clone()).await, &away) {
                (Ok(bytes), _) => return Ok(bytes),
                (Err(Lost::Final(fault)), _) | (Err(Lost::Nobody(fault)), None) => return Err(fault),
                (Err(Lost::Nobody(_)), Some(_)) => {}
                (Err(Lost::Broken(why)), _) => away = Some(away.map_or((Instant::now(), why.clone()), |(since, _)| (since, why))),
            }
            if let Some((since, why)) = &away
                && since.elapsed() > ABSENCE
            {
                return Err(Fault::unreachable(format!("the front end at {} went away: {why}", self.socket.display()))
                    .next("see its log; what was asked may have been begun: img-storage status"));
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }

    async fn once(&self, method: &Method, path: &str, body: Bytes) -> Result<Bytes, Lost> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|error| Lost::Nobody(nobody(&self.socket, &error)))?;
        let broken = |error: hyper::Error| Lost::Broken(error.to_string());
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let connection = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "img-storage")
            .header("content-type", "application/json")
            .body(Full::new(body))
            .map_err(|error| Lost::Final(Fault::failed(format!("cannot write the request: {error}"))))?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        let bytes = answer.into_body().collect().await.map_err(broken)?.to_bytes();
        connection.abort();
        if status == StatusCode::OK {
            return Ok(bytes);
        }
        Err(Lost::Final(serde_json::from_slice::<Fault>(&bytes).unwrap_or_else(|_| {
            Fault::failed(format!("{} answered {status}, and not as img-storage does", self.socket.display()))
                .next("see that --socket names the front end's socket")
        })))
    }
}

/// An answer, understood.
pub fn read<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Fault> {
    serde_json::from_slice(bytes).map_err(|error| {
        Fault::failed(format!("the front end's answer cannot be read: {error}"))
            .next("see that the command and the front end are of the same version")
    })
}

fn nobody(socket: &Path, error: &std::io::Error) -> Fault {
    let shown = socket.display();
    let start = "start it with img-storage up, or name another one with --dir or --socket";
    match error.kind() {
        ErrorKind::NotFound => Fault::unreachable(format!("img-storage does not run: there is no socket {shown}")).next(start),
        ErrorKind::ConnectionRefused => {
            Fault::unreachable(format!("img-storage does not run: nobody serves {shown}")).next(start)
        }
        ErrorKind::PermissionDenied => Fault::unreachable(format!("{shown} may not be used by this user"))
            .next("run the command as the user that runs img-storage, or as root"),
        ErrorKind::InvalidInput => Fault::invalid(format!("{shown} cannot be a socket: {error}")).next("choose a shorter path"),
        _ => Fault::unreachable(format!("cannot reach img-storage at {shown}: {error}")).next(start),
    }
}

/// Percent-encodes everything but what is safe in every part of a URI.
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len() + 8);
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// A value as JSON.
pub fn json<T: Serialize>(value: &T) -> Result<serde_json::Value, Fault> {
    serde_json::to_value(value).map_err(|error| Fault::failed(format!("cannot write the result: {error}")))
}
