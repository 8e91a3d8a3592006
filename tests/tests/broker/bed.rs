//! What the tests of this program share: one broker, places on it, and a client that is none of ours.

use img_storage_daemon::bus::{
    Delivery, Member,
    amqp::{self, Broker as At, Joined, Login, Settings, Tls},
};
use img_storage_model::{
    Fault, HostName, RequestId,
    api::Request,
    messages::{Body, Envelope, VERSION},
};
use img_storage_tests::broker::{Broker, PASSWORD, Until, VHOST};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer,
    options::{BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions},
    types::FieldTable,
};
use std::{
    path::Path,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::{sync::Mutex, time::timeout};
use uuid::Uuid;

/// The hosts that the shared broker knows: for each test its own, for a name is had once.
const HOSTS: [&str; 24] = [
    "frontend",
    "nas-0-0",
    "nas-0-1",
    "compute-0-0",
    "compute-0-1",
    "ant",
    "bat",
    "cat",
    "cow",
    "dog",
    "eel",
    "elk",
    "emu",
    "fly",
    "fox",
    "gnu",
    "hen",
    "jay",
    "kid",
    "owl",
    "pig",
    "ram",
    "rat",
    "yak",
];
/// The exchange of the original.
pub const EXCHANGE: &str = "rocks.vm-manage";
/// Whatever is waited for should long have come.
pub const SOON: Duration = Duration::from_secs(20);
/// Short, so that what depends on it is quick.
pub const HEARTBEAT: Duration = Duration::from_secs(1);

static SHARED: Mutex<Weak<Broker>> = Mutex::const_new(Weak::new());

/// The broker of the tests that run at the same time; it ends with the last of them.
pub async fn broker() -> Arc<Broker> {
    // What the bus has to say belongs to the test that fails.
    let filter =
        tracing_subscriber::EnvFilter::new(std::env::var("IMG_STORAGE_LOG").unwrap_or_else(|_| "lapin=off,info".to_owned()));
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
    let mut shared = SHARED.lock().await;
    if let Some(broker) = shared.upgrade() {
        return broker;
    }
    let broker = Arc::new(Broker::start(&HOSTS).await.unwrap());
    *shared = Arc::downgrade(&broker);
    broker
}

pub fn host(name: &str) -> HostName {
    name.parse().unwrap()
}

pub fn tls(dir: &Path) -> Tls {
    let identity = Some((dir.join("client-cert.pem"), dir.join("client-key.pem")));
    Tls { ca: dir.join("ca-cert.pem"), identity }
}

/// How a host reaches the broker by its certificate, through `port`.
pub fn settings(broker: &Broker, name: &str, port: u16) -> Settings {
    let dir = broker.authority().issue(name, Until::Later).unwrap();
    Settings {
        brokers: vec![At { host: "localhost".to_owned(), port }],
        vhost: VHOST.to_owned(),
        login: Login::External,
        tls: Some(tls(&dir)),
        heartbeat: HEARTBEAT,
        quit_without_broker: None,
    }
}

pub async fn try_join(settings: Settings, name: &str) -> Result<Joined, Fault> {
    timeout(SOON, amqp::join(settings, &host(name))).await.expect("an end to joining")
}

/// A place on the bus, which is there.
pub async fn join(broker: &Broker, name: &str) -> Member {
    let mut member = try_join(settings(broker, name, broker.port()), name).await.unwrap().member;
    assert!(matches!(next(&mut member).await, Delivery::Connected));
    member
}

pub async fn next(member: &mut Member) -> Delivery {
    timeout(SOON, member.inbox.recv()).await.expect("something arrives").expect("the bus is there")
}

/// The next message, which must be one.
pub async fn message(member: &mut Member) -> Envelope {
    match next(member).await {
        Delivery::Message(message) => message,
        other => panic!("{other:?}"),
    }
}

pub fn ask(id: u128) -> Body {
    Body::Request { id: RequestId(Uuid::from_u128(id)), request: Box::new(Request::Find { selector: None }) }
}

pub fn envelope(from: &str, to: &str, body: Body) -> Envelope {
    Envelope { v: VERSION, from: host(from), to: host(to), body }
}

/// A client that is none of ours, with a queue of its own.
pub struct Stranger {
    _connection: Connection,
    pub channel: Channel,
    pub queue: String,
    pub answers: Consumer,
}

impl Stranger {
    /// Logs in with a password.
    pub async fn connect(broker: &Broker, user: &str) -> Self {
        let password = PASSWORD.replace(' ', "%20");
        let uri = format!("amqp://{user}:{password}@127.0.0.1:{}/{VHOST}", broker.plain_port());
        let connection = Connection::connect(&uri, ConnectionProperties::default()).await.unwrap();
        let channel = connection.create_channel().await.unwrap();
        let own = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare("".into(), own, FieldTable::default()).await.unwrap().name().to_string();
        let consume = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let answers = channel.basic_consume(queue.as_str().into(), "".into(), consume, FieldTable::default()).await.unwrap();
        channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
        Stranger { _connection: connection, channel, queue, answers }
    }

    /// As the original's front end sends its requests.
    pub fn properties(&self, number: &str) -> BasicProperties {
        BasicProperties::default()
            .with_app_id("rocks.RabbitMQClient".into())
            .with_message_id(number.into())
            .with_delivery_mode(1)
            .with_reply_to(self.queue.as_str().into())
            .with_type("".into())
    }

    /// Sends to a host: whether it was taken.
    pub async fn send(&self, to: &str, body: &[u8], properties: BasicProperties) -> lapin::Result<bool> {
        let options = BasicPublishOptions { mandatory: true, immediate: false };
        let sent = self.channel.basic_publish(EXCHANGE.into(), to.into(), options, body, properties).await?;
        Ok(sent.await? == Confirmation::Ack(None))
    }

    /// The next answer.
    pub async fn answer(&mut self) -> lapin::message::Delivery {
        let next = std::future::poll_fn(|cx| futures_core::Stream::poll_next(std::pin::Pin::new(&mut self.answers), cx));
        timeout(SOON, next).await.expect("an answer").expect("a queue").expect("a delivery")
    }
}
