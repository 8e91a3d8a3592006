//! Getting through to a broker: TCP, TLS by rustls, the AMQP handshake; and what went wrong when it did not work.

use super::{Broker, Login, Settings, Tls};
use async_rs::{Runtime, Tokio, traits::Reactor, util::RuntimeParts};
use futures_core::Stream;
use lapin::{
    Connection, ConnectionProperties, ErrorKind,
    auth::AuthProvider,
    tcp::AsyncTcpStream,
    types::{LongString, ShortString},
    uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo},
};
use std::{
    fs,
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    path::Path,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead as _, AsyncWrite as _, ReadBuf},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        self, ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _},
    },
};

/// How long getting through may take.
const WITHIN: Duration = Duration::from_secs(10);
/// How long we wait for a broker to say what it does not like.
const LISTEN: Duration = Duration::from_secs(1);
/// The longest frame: the client keeps room for 64 of them.
const FRAME: u32 = 16 << 10;

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Trouble {
    /// There is no broker now, or it went away.
    Away(String),
    /// There is one, and it does not want us, or we do not trust it: somebody has to mend something.
    Refused(String),
    /// Another connection has our name.
    NameTaken,
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Trouble::Away(why) | Trouble::Refused(why) => f.write_str(why),
            Trouble::NameTaken => f.write_str("another daemon of this name is connected to the broker"),
        }
    }
}

impl Trouble {
    /// What the client library or the broker said, in `doing` something.
    pub(super) fn of(doing: &str, error: &lapin::Error) -> Self {
        match error.kind() {
            ErrorKind::ProtocolError(said) => {
                let text = format!("{doing}: the broker says: {}", said.get_message());
                // Refused access, unknown virtual host or user, things declared otherwise; the rest is the broker's own trouble.
                if matches!(said.get_id(), 402 | 403 | 404 | 405 | 406 | 530) {
                    Trouble::Refused(text)
                } else {
                    Trouble::Away(text)
                }
            }
            ErrorKind::IOError(error) => Self::of_io(doing, error),
            _ => Trouble::Away(format!("{doing}: {error}")),
        }
    }

    fn of_io(doing: &str, error: &io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::AlertReceived(alert)) => {
                Trouble::Refused(format!("{doing}: the broker refuses this host's certificate ({alert:?})"))
            }
            Some(rustls::Error::InvalidCertificate(why)) => {
                Trouble::Refused(format!("{doing}: the broker's certificate is not accepted: {why:?}"))
            }
            Some(why) => Trouble::Refused(format!("{doing}: TLS: {why}")),
            // What the library says to this is for programmers.
            None if error.kind() == io::ErrorKind::UnexpectedEof => Trouble::Away(format!("{doing}: the connection was closed")),
            None => Trouble::Away(format!("{doing}: {error}")),
        }
    }
}

/// Gets through to a broker and logs in.
///
/// With TLS 1.3 a broker says what is wrong with our certificate after the handshake, when we are writing already; a reset may
/// overtake it. So where the login breaks off without a reason, we ask once more, and listen before we speak.
pub(super) async fn dial(settings: &Settings, broker: &Broker, name: &str) -> Result<Connection, Trouble> {
    match attempt(settings, broker, name, Duration::ZERO).await {
        Err((trouble, true)) if settings.tls.is_some() => match attempt(settings, broker, name, LISTEN).await {
            Err((Trouble::Away(_), _)) => Err(trouble),
            other => other.map_err(|(trouble, _)| trouble),
        },
        other => other.map_err(|(trouble, _)| trouble),
    }
}

/// One attempt, and whether it ended in the login without a reason.
async fn attempt(settings: &Settings, broker: &Broker, name: &str, listen: Duration) -> Result<Connection, (Trouble, bool)> {
    let doing = format!("connecting to the broker {broker}");
    let login = match &settings.login {
        Login::External => Sasl::External,
        Login::Plain { user, password_file } => Sasl::Plain(user.clone(), password(password_file).map_err(known)?),
    };
    let late = |_| known(Trouble::Away(format!("{doing}: no answer within {} s", WITHIN.as_secs())));
    let mut stream = timeout(WITHIN, open(settings, broker, &doing)).await.map_err(late)?.map_err(known)?;
    let alert = stream.alert.clone();
    if !listen.is_zero() {
        let mut first = [0; 1];
        let heard = poll_fn(|cx| stream.poll_raw_read(cx, &mut ReadBuf::new(&mut first)));
        if let Ok(ended) = timeout(listen, heard).await {
            let why = ended.err().map_or_else(|| "it closed the connection".to_owned(), |e| e.to_string());
            return Err(known(refused(&alert).map_or_else(|| Trouble::Away(format!("{doing}: {why}")), |why| why.of(&doing))));
        }
    }
    let uri = AMQPUri {
        scheme: AMQPScheme::AMQP,
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo { username: String::new(), password: String::new() },
            host: broker.host.clone(),
            port: broker.port,
        },
        vhost: settings.vhost.clone(),
        query: AMQPQueryString {
            frame_max: Some(FRAME),
            heartbeat: Some(u16::try_from(settings.heartbeat.as_secs()).unwrap_or(10)),
            ..AMQPQueryString::default()
        },
    };
    let properties = ConnectionProperties::default().with_connection_name(name.into()).with_auth_provider(login);
    // The library connects once: there is one stream for it.
    let stream = Mutex::new(Some(stream));
    let runtime = Runtime::new(RuntimeParts::new(Tokio::current(), Streams(Tokio::current())));
    let connect = async move |_: AMQPUri, _: Runtime<Kit>| match stream.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(stream) => Ok(AsyncTcpStream::Plain(stream)),
        None => Err(io::Error::from(io::ErrorKind::NotConnected).into()),
    };
    let connected = timeout(WITHIN, Connection::connector(uri, runtime, connect, properties)).await.map_err(late)?;
    connected.map_err(|error| match refused(&alert) {
        Some(why) => known(why.of(&doing)),
        None => (Trouble::of(&doing, &error), matches!(error.kind(), ErrorKind::IOError(_))),
    })
}

fn known(trouble: Trouble) -> (Trouble, bool) {
    (trouble, false)
}

/// What the broker does not like about our certificate.
struct Dislike(String);

impl Dislike {
    fn of(self, doing: &str) -> Trouble {
        Trouble::Refused(format!("{doing}: the broker refuses this host's certificate ({})", self.0))
    }
}

fn refused(alert: &Mutex<Option<String>>) -> Option<Dislike> {
    alert.lock().unwrap_or_else(PoisonError::into_inner).take().map(Dislike)
}

pub(super) fn password(file: &Path) -> Result<String, Trouble> {
    let text = fs::read_to_string(file)
        .map_err(|e| Trouble::Refused(format!("the broker's password in {} cannot be read: {e}", file.display())))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

async fn open(settings: &Settings, broker: &Broker, doing: &str) -> Result<Line, Trouble> {
    let away = |e: io::Error| Trouble::Away(format!("{doing}: {e}"));
    let stream = TcpStream::connect((broker.host.as_str(), broker.port)).await.map_err(away)?;
    stream.set_nodelay(true).map_err(away)?;
    let alert = Arc::default();
    let Some(tls) = &settings.tls else { return Ok(Line { wire: Wire::Plain(stream), alert }) };
    let config = client(tls)?;
    let server = ServerName::try_from(broker.host.clone()).map_err(|e| Trouble::Refused(format!("{doing}: {e}")))?;
    let stream = TlsConnector::from(Arc::new(config)).connect(server, stream).await.map_err(|e| Trouble::of_io(doing, &e))?;
    Ok(Line { wire: Wire::Tls(Box::new(stream)), alert })
}

/// What TLS needs, read anew for each connection: certificates are renewed while daemons run.
pub(super) fn client(tls: &Tls) -> Result<ClientConfig, Trouble> {
    fn bad(what: &str, path: &Path, why: &dyn std::fmt::Display) -> Trouble {
        Trouble::Refused(format!("the {what} {} cannot be used: {why}", path.display()))
    }
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&tls.ca).map_err(|e| bad("CA certificate", &tls.ca, &e))? {
        let certificate = certificate.map_err(|e| bad("CA certificate", &tls.ca, &e))?;
        roots.add(certificate).map_err(|e| bad("CA certificate", &tls.ca, &e))?;
    }
    if roots.is_empty() {
        return Err(bad("CA certificate", &tls.ca, &"there is none in it"));
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|e| Trouble::Refused(format!("TLS: {e}")))?
        .with_root_certificates(roots);
    let Some((certificate, key)) = &tls.identity else { return Ok(config.with_no_client_auth()) };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|e| bad("certificate", certificate, &e))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|e| bad("key", key, &e))?;
    config.with_client_auth_cert(chain, secret).map_err(|e| bad("certificate", certificate, &e))
}

/// How we say who we are.
enum Sasl {
    External,
    Plain(String, String),
}

impl AuthProvider for Sasl {
    fn mechanism(&self) -> ShortString {
        match self {
            Sasl::External => "EXTERNAL",
            Sasl::Plain(..) => "PLAIN",
        }
        .into()
    }

    fn auth_starter(&self) -> Result<LongString, String> {
        Ok(match self {
            Sasl::External => String::new(),
            Sasl::Plain(user, password) => format!("\0{user}\0{password}"),
        }
        .into())
    }
}

enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// The bytes to and from a broker.
pub(super) struct Line {
    wire: Wire,
    /// Why the other side ended it. With TLS 1.3 it says so after the handshake, when we may be writing already.
    alert: Arc<Mutex<Option<String>>>,
}

impl Line {
    fn heard(&self, error: io::Error) -> io::Error {
        if let Some(rustls::Error::AlertReceived(alert)) = error.get_ref().and_then(|e| e.downcast_ref()) {
            *self.alert.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{alert:?}"));
        }
        error
    }

    fn poll_raw_read(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let done = match &mut self.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_read(cx, into),
            Wire::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, into),
        };
        done.map_err(|e| self.heard(e))
    }
}

impl futures_io::AsyncRead for Line {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(into);
        ready!(self.poll_raw_read(cx, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }
}

impl futures_io::AsyncWrite for Line {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let done = match &mut self.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Wire::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, bytes),
        };
        if let Poll::Ready(Err(_)) = &done {
            // It may have said why before it closed.
            let mut last = [0; 512];
            let _ = self.poll_raw_read(cx, &mut ReadBuf::new(&mut last));
        }
        done
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Wire::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.wire {
            Wire::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Wire::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}

/// Tokio, but for what a stream is: the library's own TLS would drag in PKCS #12 and another way to make certificates known.
#[derive(Clone, Debug)]
pub(super) struct Streams(Tokio);

type Kit = RuntimeParts<Tokio, Streams>;

impl Reactor for Streams {
    type TcpStream = Line;
    type Sleep = <Tokio as Reactor>::Sleep;

    fn register<H>(&self, _: H) -> io::Result<impl futures_io::AsyncRead + futures_io::AsyncWrite + Send + Unpin + 'static> {
        Err::<Line, _>(io::Error::from(io::ErrorKind::Unsupported))
    }

    fn sleep(&self, dur: Duration) -> Self::Sleep {
        self.0.sleep(dur)
    }

    fn interval(&self, dur: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(dur)
    }

    fn tcp_connect_addr(&self, _: SocketAddr) -> impl Future<Output = io::Result<Line>> + Send + 'static {
        std::future::ready(Err(io::Error::from(io::ErrorKind::Unsupported)))
    }
}
