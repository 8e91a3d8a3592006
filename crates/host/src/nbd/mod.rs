//! An NBD client: for digests of what was moved, and for tests that check every block through the guest's door.
//!
//! [`Nbd`] may be shared: requests of several callers are in flight at once. Plain sockets only; TLS connections are made by
//! QEMU itself.

mod wire;

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use img_storage_model::{Extent, Extents};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub use wire::{ExportInfo, Malformed, Status};

/// The metadata context that tells data from holes.
pub const ALLOCATION: &str = "base:allocation";
/// How long the handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How much of an export one block-status request asks for; lengths are 32 bits.
const STATUS_STEP: u64 = 2 << 30;

/// The name of the metadata context of a dirty bitmap that QEMU exports.
pub fn bitmap_context(bitmap: &str) -> String {
    format!("qemu:dirty-bitmap:{bitmap}")
}

/// Why a request came to nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NbdError {
    /// The connection cannot be made.
    #[error("cannot connect to the NBD server {address}: {why}")]
    Connect {
        /// Where.
        address: String,
        /// What the system said.
        why: String,
    },
    /// The server refuses something in the handshake.
    #[error("the NBD server refuses {what} for export {export:?} (code {code:#x}): {text}")]
    Option {
        /// What was asked for.
        what: &'static str,
        /// The export.
        export: String,
        /// The protocol's number.
        code: u32,
        /// The server's words.
        text: String,
    },
    /// The server could not do what was asked; the connection is good.
    #[error("the NBD server fails to {what}: error {errno} {text}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// The error number, Linux's numbering for the common ones.
        errno: u32,
        /// The server's words.
        text: String,
    },
    /// The connection is of no use any more.
    #[error("the NBD connection broke: {0}")]
    Broken(String),
    /// No answer in time.
    #[error("the NBD server did not {what} within {after:?}")]
    Deadline {
        /// What was asked for.
        what: &'static str,
        /// How long we waited.
        after: Duration,
    },
    /// The export has no such metadata context.
    #[error("the export has no metadata context {0:?}")]
    NoContext(String),
}

impl From<Malformed> for NbdError {
    fn from(malformed: Malformed) -> Self {
        Self::Broken(malformed.to_string())
    }
}

impl From<io::Error> for NbdError {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

type Done = Result<Answer, NbdError>;

/// What a finished request brings.
#[derive(Debug, Default)]
struct Answer {
    data: Vec<u8>,
    statuses: Vec<(u32, Vec<Status>)>,
}

/// A request the server has not answered to its end.
struct Pending {
    what: &'static str,
    offset: u64,
    length: u32,
    answer: Answer,
    /// Bytes of a read that have arrived.
    filled: u64,
    error: Option<(u32, String)>,
    done: oneshot::Sender<Done>,
}

type InFlight = Arc<Mutex<Result<HashMap<u64, Pending>, NbdError>>>;

/// A connection to one export.
pub struct Nbd {
    info: ExportInfo,
    contexts: Vec<(u32, String)>,
    writer: tokio::sync::Mutex<Option<Box<dyn AsyncWrite + Send + Unpin>>>,
    in_flight: InFlight,
    next: AtomicU64,
    deadline: Duration,
    reader: JoinHandle<()>,
}

impl Drop for Nbd {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// A request that is on its way; its answer is taken with [`InTransit::wait`].
pub struct InTransit {
    what: &'static str,
    deadline: Duration,
    done: oneshot::Receiver<Done>,
}

impl InTransit {
    async fn answer(self) -> Done {
        match tokio::time::timeout(self.deadline, self.done).await {
            Err(_) => Err(NbdError::Deadline { what: self.what, after: self.deadline }),
            Ok(Err(_)) => Err(NbdError::Broken("it was closed".into())),
            Ok(Ok(done)) => done,
        }
    }

    /// Waits for the end; a read's data.
    pub async fn wait(self) -> Result<Vec<u8>, NbdError> {
        self.answer().await.map(|answer| answer.data)
    }
}

impl Nbd {
    /// Connects to `export` behind a unix socket. `deadline` is for each request.
    pub async fn unix(path: &Path, export: &str, contexts: &[String], deadline: Duration) -> Result<Self, NbdError> {
        let address = path.display().to_string();
        let stream = connect(&address, UnixStream::connect(path)).await?;
        let (read, write) = stream.into_split();
        Self::start(read, Box::new(write), export, contexts, deadline).await
    }

    /// Connects to `export` behind a TCP port.
    pub async fn tcp(host: &str, port: u16, export: &str, contexts: &[String], deadline: Duration) -> Result<Self, NbdError> {
        let address = format!("{host}:{port}");
        let stream = connect(&address, TcpStream::connect((host, port))).await?;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        Self::start(read, Box::new(write), export, contexts, deadline).await
    }

    async fn start(
        read: impl AsyncRead + Send + Unpin + 'static,
        mut writer: Box<dyn AsyncWrite + Send + Unpin>,
        export: &str,
        wanted: &[String],
        deadline: Duration,
    ) -> Result<Self, NbdError> {
        let mut reader = BufReader::with_capacity(64 << 10, read);
        let handshake = handshake(&mut reader, &mut writer, export, wanted);
        let (info, contexts) = tokio::time::timeout(HANDSHAKE, handshake)
            .await
            .map_err(|_| NbdError::Deadline { what: "shake hands", after: HANDSHAKE })??;
        let in_flight: InFlight = Arc::new(Mutex::new(Ok(HashMap::new())));
        let shared = in_flight.clone();
        let reader = tokio::spawn(async move {
            let why = match receive(reader, &shared).await {
                Ok(()) => NbdError::Broken("the server closed it".into()),
                Err(error) => error,
            };
            let mut in_flight = lock(&shared);
            if let Ok(pending) = std::mem::replace(&mut *in_flight, Err(why.clone())) {
                for (_, request) in pending {
                    let _ = request.done.send(Err(why.clone()));
                }
            }
        });
        let writer = tokio::sync::Mutex::new(Some(writer));
        Ok(Self { info, contexts, writer, in_flight, next: AtomicU64::new(1), deadline, reader })
    }

    /// What the server says about the export.
    pub fn info(&self) -> ExportInfo {
        self.info
    }

    /// Sends a read into `buffer` (its length and contents do not matter; it is recycled) without waiting for the answer.
    pub async fn start_read(&self, offset: u64, length: u32, mut buffer: Vec<u8>) -> Result<InTransit, NbdError> {
        buffer.resize(length as usize, 0);
        self.submit("read", wire::CMD_READ, offset, length, &[], buffer).await
    }

    /// Sends a write without waiting for the answer.
    pub async fn start_write(&self, offset: u64, data: &[u8]) -> Result<InTransit, NbdError> {
        let length = u32::try_from(data.len()).map_err(|_| NbdError::Broken("a write is too long".into()))?;
        self.submit("write", wire::CMD_WRITE, offset, length, data, Vec::new()).await
    }

    /// Reads.
    pub async fn read(&self, offset: u64, length: u32) -> Result<Vec<u8>, NbdError> {
        self.start_read(offset, length, Vec::new()).await?.wait().await
    }

    /// Writes; on stable storage only after a [`Nbd::flush`].
    pub async fn write(&self, offset: u64, data: &[u8]) -> Result<(), NbdError> {
        self.start_write(offset, data).await?.wait().await.map(drop)
    }

    /// Puts every answered write on stable storage.
    pub async fn flush(&self) -> Result<(), NbdError> {
        self.submit("flush", wire::CMD_FLUSH, 0, 0, &[], Vec::new()).await?.wait().await.map(drop)
    }

    /// Gives space back.
    pub async fn trim(&self, offset: u64, length: u32) -> Result<(), NbdError> {
        self.submit("trim", wire::CMD_TRIM, offset, length, &[], Vec::new()).await?.wait().await.map(drop)
    }

    /// Writes zeroes, as a hole where possible.
    pub async fn write_zeroes(&self, offset: u64, length: u32) -> Result<(), NbdError> {
        self.submit("write zeroes", wire::CMD_WRITE_ZEROES, offset, length, &[], Vec::new()).await?.wait().await.map(drop)
    }

    /// The pieces of a range in metadata context `context`, which must have been asked for at the connection. They cover the
    /// range without gaps.
    pub async fn block_status(&self, context: &str, range: Extent) -> Result<Vec<Status>, NbdError> {
        let missing = || NbdError::NoContext(context.to_owned());
        let (id, _) = self.contexts.iter().find(|(_, name)| name == context).ok_or_else(missing)?;
        let (mut at, mut all) = (range.offset, Vec::new());
        while at < range.end() {
            let length = u32::try_from((range.end() - at).min(STATUS_STEP)).unwrap_or(u32::MAX);
            let transit = self.submit("tell the block status", wire::CMD_BLOCK_STATUS, at, length, &[], Vec::new()).await?;
            let answer = transit.answer().await?;
            let (_, pieces) = answer.statuses.into_iter().find(|(found, _)| found == id).ok_or_else(missing)?;
            all.extend(pieces);
            at = all.last().map_or(range.end(), |last: &Status| last.offset + last.length);
        }
        Ok(all)
    }

    /// The ranges a dirty bitmap marks; it must have been asked for with [`bitmap_context`].
    pub async fn dirty(&self, bitmap: &str) -> Result<Extents, NbdError> {
        let whole = Extent { offset: 0, length: self.info.size };
        let pieces = self.block_status(&bitmap_context(bitmap), whole).await?;
        let dirty = pieces.iter().filter(|piece| piece.flags & 1 != 0);
        Ok(Extents::new(dirty.map(|piece| Extent { offset: piece.offset, length: piece.length }).collect()))
    }

    /// Says goodbye. The server may still work on requests that were not waited for.
    pub async fn disconnect(self) {
        let mut writer = self.writer.lock().await;
        if let Some(mut writer) = writer.take() {
            let _ = writer.write_all(&wire::request(wire::CMD_DISC, 0, 0, 0)).await;
            let _ = writer.shutdown().await;
        }
    }

    async fn submit(
        &self,
        what: &'static str,
        command: u16,
        offset: u64,
        length: u32,
        payload: &[u8],
        data: Vec<u8>,
    ) -> Result<InTransit, NbdError> {
        let cookie = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, done) = oneshot::channel();
        let answer = Answer { data, statuses: Vec::new() };
        let pending = Pending { what, offset, length, answer, filled: 0, error: None, done: sender };
        match &mut *lock(&self.in_flight) {
            Ok(in_flight) => drop(in_flight.insert(cookie, pending)),
            Err(why) => return Err(why.clone()),
        }
        let mut guard = self.writer.lock().await;
        // Taken while in use: a write that is given up half way leaves a stream nobody can use, and says so.
        let mut writer = guard.take().ok_or_else(|| NbdError::Broken("an earlier request was interrupted".into()))?;
        let send = async {
            writer.write_all(&wire::request(command, cookie, offset, length)).await?;
            writer.write_all(payload).await
        };
        tokio::time::timeout(self.deadline, send)
            .await
            .map_err(|_| NbdError::Deadline { what: "take a request", after: self.deadline })??;
        *guard = Some(writer);
        Ok(InTransit { what, deadline: self.deadline, done })
    }
}

fn lock(in_flight: &InFlight) -> std::sync::MutexGuard<'_, Result<HashMap<u64, Pending>, NbdError>> {
    in_flight.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn connect<S>(address: &str, stream: impl Future<Output = io::Result<S>>) -> Result<S, NbdError> {
    let failed = |why: String| NbdError::Connect { address: address.to_owned(), why };
    match tokio::time::timeout(HANDSHAKE, stream).await {
        Err(_) => Err(failed(format!("no answer within {HANDSHAKE:?}"))),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Ok(Ok(stream)) => Ok(stream),
    }
}

/// Reads what a server says first, before TLS too; its flags.
///
/// # Errors
/// When it does not speak NBD, or breaks off.
pub async fn greeting(reader: &mut (impl AsyncRead + Unpin)) -> Result<u16, NbdError> {
    let (magic, option_magic) = (reader.read_u64().await?, reader.read_u64().await?);
    let flags = reader.read_u16().await?;
    if magic != wire::MAGIC || option_magic != wire::OPTION_MAGIC || flags & wire::FIXED_NEWSTYLE == 0 {
        return Err(Malformed("the server does not speak fixed newstyle NBD").into());
    }
    Ok(flags)
}

async fn handshake(
    reader: &mut (impl AsyncRead + Unpin),
    writer: &mut (impl AsyncWrite + Unpin),
    export: &str,
    wanted: &[String],
) -> Result<(ExportInfo, Vec<(u32, String)>), NbdError> {
    let flags = greeting(reader).await?;
    writer.write_all(&u32::from(wire::FIXED_NEWSTYLE | (flags & wire::NO_ZEROES)).to_be_bytes()).await?;
    let mut ask = Ask { reader, writer, export };
    ask.option("structured replies", wire::OPT_STRUCTURED_REPLY, &[]).await?;
    let mut contexts = Vec::new();
    if !wanted.is_empty() {
        let data = wire::contexts(export, wanted);
        for (_, data) in ask.option("metadata contexts", wire::OPT_SET_META_CONTEXT, &data).await? {
            contexts.push(wire::context(&data)?);
        }
        if let Some(missing) = wanted.iter().find(|name| !contexts.iter().any(|(_, have)| have == *name)) {
            return Err(NbdError::NoContext(missing.clone()));
        }
    }
    let mut info = ExportInfo { size: 0, flags: 0, longest: 32 << 20 };
    for (kind, data) in ask.option("the export", wire::OPT_GO, &wire::go(export)).await? {
        if kind == wire::REP_INFO {
            wire::info(&data, &mut info)?;
        }
    }
    Ok((info, contexts))
}

struct Ask<'a, R, W> {
    reader: &'a mut R,
    writer: &'a mut W,
    export: &'a str,
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Ask<'_, R, W> {
    /// Sends an option and collects the replies before its acknowledgement.
    async fn option(&mut self, what: &'static str, kind: u32, data: &[u8]) -> Result<Vec<(u32, Vec<u8>)>, NbdError> {
        self.writer.write_all(&wire::option(kind, data)).await?;
        let mut replies = Vec::new();
        loop {
            let mut header = [0; wire::OptionReply::HEADER];
            self.reader.read_exact(&mut header).await?;
            let reply = wire::OptionReply::parse(&header)?;
            let mut data = vec![0; reply.length as usize];
            self.reader.read_exact(&mut data).await?;
            if reply.option != kind {
                return Err(Malformed("the server answers another option than the one asked for").into());
            }
            if reply.is_error() {
                let text = String::from_utf8_lossy(&data).into_owned();
                return Err(NbdError::Option { what, export: self.export.to_owned(), code: reply.kind, text });
            }
            match reply.kind {
                wire::REP_ACK => return Ok(replies),
                wire::REP_INFO | wire::REP_META_CONTEXT => replies.push((reply.kind, data)),
                _ => return Err(Malformed("the server sends an unknown kind of reply").into()),
            }
        }
    }
}

/// Reads replies until the connection ends.
async fn receive(mut reader: impl AsyncRead + Unpin, in_flight: &InFlight) -> Result<(), NbdError> {
    let mut header = [0; 16];
    loop {
        let magic = match reader.read_u32().await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        let header = &mut header[..wire::Reply::header(magic)?];
        reader.read_exact(header).await?;
        let reply = wire::Reply::parse(magic, header)?;
        let (wire::Reply::Simple { cookie, .. } | wire::Reply::Chunk { cookie, .. }) = reply;
        // Out of the table while its data is read: whoever waits for it holds the other end.
        let mut request = match &mut *lock(in_flight) {
            Ok(in_flight) => in_flight.remove(&cookie).ok_or(Malformed("the server answers what nobody asked"))?,
            Err(why) => return Err(why.clone()),
        };
        match chunk(&mut reader, reply, &mut request).await {
            Err(error) => {
                let _ = request.done.send(Err(error.clone()));
                return Err(error);
            }
            Ok(true) => finish(request),
            Ok(false) => {
                if let Ok(in_flight) = &mut *lock(in_flight) {
                    in_flight.insert(cookie, request);
                }
            }
        }
    }
}

/// Reads the rest of one reply or chunk; whether the request is over.
async fn chunk(reader: &mut (impl AsyncRead + Unpin), reply: wire::Reply, request: &mut Pending) -> Result<bool, NbdError> {
    let (flags, kind, length) = match reply {
        wire::Reply::Simple { error, .. } => {
            if error != 0 {
                request.error = Some((error, String::new()));
            } else if !request.answer.data.is_empty() {
                return Err(Malformed("the server answers a read without structure").into());
            }
            return Ok(true);
        }
        wire::Reply::Chunk { flags, kind, length, .. } => (flags, kind, length),
    };
    // A range of the read's buffer.
    let place = |offset: u64, length: usize, buffer: usize| {
        let begin = offset.checked_sub(request.offset).and_then(|begin| usize::try_from(begin).ok());
        begin
            .and_then(|begin| Some(begin..begin.checked_add(length)?))
            .filter(|place| place.end <= buffer)
            .ok_or(Malformed("the server sends data that was not asked for"))
    };
    match kind {
        wire::CHUNK_NONE if length == 0 => {}
        wire::CHUNK_DATA if length > 8 => {
            let (offset, length) = (reader.read_u64().await?, length as usize - 8);
            let place = place(offset, length, request.answer.data.len())?;
            reader.read_exact(&mut request.answer.data[place]).await?;
            request.filled += length as u64;
        }
        wire::CHUNK_HOLE if length == 12 => {
            let (offset, length) = (reader.read_u64().await?, reader.read_u32().await? as usize);
            let place = place(offset, length, request.answer.data.len())?;
            request.answer.data[place].fill(0);
            request.filled += length as u64;
        }
        _ if length > wire::LONGEST => return Err(Malformed("a reply is too long").into()),
        _ => {
            let mut data = vec![0; length as usize];
            reader.read_exact(&mut data).await?;
            if kind == wire::CHUNK_BLOCK_STATUS {
                let end = request.offset.saturating_add(request.length.into());
                request.answer.statuses.push(wire::statuses(&data, request.offset, end)?);
            } else if kind & wire::CHUNK_ERROR != 0 {
                request.error = Some(wire::error(&data)?);
            } else {
                return Err(Malformed("a reply is of an unknown kind").into());
            }
        }
    }
    Ok(flags & wire::CHUNK_DONE != 0)
}

fn finish(request: Pending) {
    let done = match request.error {
        Some((errno, text)) => Err(NbdError::Refused { what: request.what, errno, text }),
        None if request.filled < request.answer.data.len() as u64 => {
            Err(NbdError::Broken("the server sent less than was asked for".into()))
        }
        None => Ok(request.answer),
    };
    let _ = request.done.send(done);
}
