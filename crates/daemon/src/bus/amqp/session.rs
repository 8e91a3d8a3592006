//! One connection's life: what it declares, and messages in both directions until something ends it.

use super::{
    Broker, Login, Outgoing, Settings,
    dial::{Trouble, dial},
    letter::{self, Letter, Writer},
};
use crate::bus::Delivery;
use futures_core::Stream as _;
use img_storage_model::{
    HostName,
    broker::{EXCHANGE, NAME_QUEUE},
    messages::{Envelope, VERSION},
};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, Consumer, ErrorKind, ExchangeKind, PublisherConfirm,
    message::BasicReturnMessage,
    options::{
        BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
        QueueBindOptions, QueueDeclareOptions,
    },
    types::FieldTable,
};
use std::{future::poll_fn, pin::Pin, task::Poll, time::Duration};
use tokio::{sync::mpsc, time::timeout};

/// So many messages may be on their way to us.
const PREFETCH: u16 = 512;
/// So many are handed on before they are acknowledged.
const BATCH: usize = 64;
/// What is declared may take so long.
const DECLARED_WITHIN: Duration = Duration::from_secs(10);
/// A connection that is given up may take so long to say goodbye.
const GOODBYE: Duration = Duration::from_millis(500);

/// A connection that works.
pub(super) struct Session {
    connection: Connection,
    out: Channel,
    consuming: Channel,
    consumer: Consumer,
    vouched: bool,
}

impl Session {
    /// Connects to a broker, takes the name, and makes sure that what is sent to it arrives.
    pub(super) async fn begin(settings: &Settings, broker: &Broker, name: &HostName, writer: &Writer) -> Result<Self, Trouble> {
        let connection = dial(settings, broker, name.as_str()).await?;
        let vouched = settings.login == Login::External;
        let begun = timeout(DECLARED_WITHIN, declare(&connection, name, writer)).await;
        let late = || Trouble::Away(format!("the broker {broker} does not go on after the login"));
        match begun.map_err(|_| late()).and_then(|done| done) {
            Ok((out, consuming, consumer)) => Ok(Session { connection, out, consuming, consumer, vouched }),
            Err(trouble) => {
                goodbye(&connection).await;
                Err(trouble)
            }
        }
    }

    /// Carries messages until something ends that: why, or nothing when the daemon does not want them any more.
    pub(super) async fn live(
        &mut self,
        name: &HostName,
        writer: &Writer,
        to_send: &mut mpsc::Receiver<Outgoing>,
        deliver: &mpsc::UnboundedSender<Delivery>,
    ) -> Option<Trouble> {
        let (pending, confirms) = mpsc::unbounded_channel();
        let outward = publish(&self.out, writer, to_send, &pending);
        let inward = receive(&self.consuming, &mut self.consumer, name, self.vouched, deliver, &self.out, writer);
        tokio::select! {
            trouble = outward => trouble,
            trouble = inward => trouble,
            trouble = settle(confirms, deliver) => Some(trouble),
            () = deliver.closed() => None,
        }
    }

    /// Closes what may still be open.
    pub(super) async fn end(&self) {
        goodbye(&self.connection).await;
    }
}

async fn goodbye(connection: &Connection) {
    // Without an answer, dropping it has to do.
    let _ = timeout(GOODBYE, connection.close(200, "OK".into())).await;
}

async fn declare(connection: &Connection, name: &HostName, writer: &Writer) -> Result<(Channel, Channel, Consumer), Trouble> {
    let open = |e: lapin::Error| Trouble::of("opening a channel", &e);
    let (out, consuming) = (connection.create_channel().await.map_err(open)?, connection.create_channel().await.map_err(open)?);
    let lock = format!("{NAME_QUEUE}{name}");
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    consuming.queue_declare(lock.as_str().into(), exclusive, FieldTable::default()).await.map_err(|e| match e.kind() {
        ErrorKind::ProtocolError(said) if said.get_id() == 405 => Trouble::NameTaken,
        _ => Trouble::of(&format!("taking the name {name}"), &e),
    })?;
    let kind = ExchangeDeclareOptions { durable: false, auto_delete: false, ..ExchangeDeclareOptions::default() };
    let declared = consuming.exchange_declare(EXCHANGE.into(), ExchangeKind::Direct, kind, FieldTable::default()).await;
    declared.map_err(|e| Trouble::of(&format!("declaring the exchange {EXCHANGE}"), &e))?;
    let own = QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let queue = consuming.queue_declare("".into(), own, FieldTable::default()).await;
    let queue = queue.map_err(|e| Trouble::of("declaring a queue", &e))?.name().clone();
    let bound = consuming
        .queue_bind(queue.clone(), EXCHANGE.into(), name.as_str().into(), QueueBindOptions::default(), FieldTable::default())
        .await;
    bound.map_err(|e| Trouble::of(&format!("binding a queue to the name {name}"), &e))?;
    consuming.basic_qos(PREFETCH, BasicQosOptions::default()).await.map_err(|e| Trouble::of("consuming", &e))?;
    let consumer = consuming.basic_consume(queue, "".into(), BasicConsumeOptions::default(), FieldTable::default()).await;
    let consumer = consumer.map_err(|e| Trouble::of("consuming", &e))?;
    out.confirm_select(ConfirmSelectOptions::default()).await.map_err(|e| Trouble::of("asking for confirms", &e))?;
    // That we may publish, that the broker knows us under our name, and that what is sent to it arrives: all at once.
    let probing = |e: lapin::Error| Trouble::of(&format!("sending as {name}"), &e);
    let probe = send(&out, EXCHANGE, name.as_str(), b"{}", writer.probe()).await.map_err(probing)?;
    match probe.await.map_err(probing)? {
        Confirmation::Ack(None) => Ok((out, consuming, consumer)),
        _ => Err(Trouble::Away(format!("what is sent to {name} does not arrive"))),
    }
}

async fn send(
    channel: &Channel,
    exchange: &str,
    key: &str,
    body: &[u8],
    properties: BasicProperties,
) -> lapin::Result<PublisherConfirm> {
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    channel.basic_publish(exchange.into(), key.into(), options, body, properties).await
}

async fn send_ours(channel: &Channel, writer: &Writer, message: &Envelope) -> lapin::Result<Option<PublisherConfirm>> {
    match serde_json::to_vec(message) {
        Ok(body) => send(channel, EXCHANGE, message.to.as_str(), &body, writer.ours()).await.map(Some),
        Err(why) => {
            tracing::error!("a message to {} cannot be written: {why}", message.to);
            Ok(None)
        }
    }
}

/// Publishes what the daemon sends; nothing when the daemon is gone.
async fn publish(
    channel: &Channel,
    writer: &Writer,
    to_send: &mut mpsc::Receiver<Outgoing>,
    pending: &mpsc::UnboundedSender<PublisherConfirm>,
) -> Option<Trouble> {
    loop {
        let sent = match to_send.recv().await? {
            Outgoing::Ours(message) => send_ours(channel, writer, &message).await,
            Outgoing::Answer(to, body) => send(channel, "", &to.queue, &body, writer.answer()).await.map(Some),
        };
        match sent {
            Ok(Some(confirm)) => {
                let _ = pending.send(confirm);
            }
            Ok(None) => {}
            Err(error) => return Some(Trouble::of("publishing", &error)),
        }
    }
}

/// Follows what became of what was published. A message nobody took comes back whole, so that it does not matter with whose
/// confirmation: the broker may confirm several at once, and the library tells them apart by their order only.
async fn settle(mut confirms: mpsc::UnboundedReceiver<PublisherConfirm>, deliver: &mpsc::UnboundedSender<Delivery>) -> Trouble {
    while let Some(confirm) = confirms.recv().await {
        match confirm.await {
            Ok(confirmation) => {
                if !confirmation.is_ack() {
                    tracing::warn!("the broker lost a message");
                }
                if let Some(message) = confirmation.take_message() {
                    returned(&message, deliver);
                }
            }
            Err(error) => return Trouble::of("publishing", &error),
        }
    }
    Trouble::Away("publishing ended".to_owned())
}

fn returned(message: &BasicReturnMessage, deliver: &mpsc::UnboundedSender<Delivery>) {
    if message.exchange.as_str() == EXCHANGE {
        if let Ok(envelope) = serde_json::from_slice(&message.data) {
            // A daemon that is gone wants nothing back.
            let _ = deliver.send(Delivery::Unroutable(envelope));
        }
    } else {
        tracing::info!("nobody waits on {} any more: an answer was dropped", message.routing_key);
    }
}

/// Hands on what arrives, and acknowledges it then: what this process did not get is given to its successor.
async fn receive(
    channel: &Channel,
    consumer: &mut Consumer,
    name: &HostName,
    vouched: bool,
    deliver: &mpsc::UnboundedSender<Delivery>,
    out: &Channel,
    writer: &Writer,
) -> Option<Trouble> {
    loop {
        let (batch, ended) = batch(consumer).await;
        let last = batch.last().map(|d| d.delivery_tag);
        for delivery in batch {
            let delivered = match letter::read(name, vouched, &delivery.properties, delivery.data) {
                Letter::Ours(message) => deliver.send(Delivery::Message(message)),
                Letter::Foreign(message) => deliver.send(Delivery::Foreign(message)),
                Letter::Probe => Ok(()),
                Letter::Refused { why, answer } => {
                    tracing::warn!("refused: {why}");
                    if let Some((to, body)) = answer {
                        let message = Envelope { v: VERSION, from: name.clone(), to, body };
                        // The confirmation is left alone: who asked in a way that is not understood may be gone.
                        let _ = send_ours(out, writer, &message).await;
                    }
                    Ok(())
                }
            };
            if delivered.is_err() {
                return None;
            }
        }
        if let Some(tag) = last
            && let Err(error) = channel.basic_ack(tag, BasicAckOptions { multiple: true }).await
        {
            return Some(Trouble::of("consuming", &error));
        }
        if let Some(trouble) = ended {
            return Some(trouble);
        }
    }
}

/// What there is to take, at least one; and why nothing more will come, when it will not.
async fn batch(consumer: &mut Consumer) -> (Vec<lapin::message::Delivery>, Option<Trouble>) {
    poll_fn(|cx| {
        let mut taken = Vec::new();
        while taken.len() < BATCH {
            match Pin::new(&mut *consumer).poll_next(cx) {
                Poll::Ready(Some(Ok(delivery))) => taken.push(delivery),
                Poll::Ready(Some(Err(error))) => return Poll::Ready((taken, Some(Trouble::of("consuming", &error)))),
                Poll::Ready(None) => {
                    let trouble = Trouble::Away("the broker took this host's queue away".to_owned());
                    return Poll::Ready((taken, Some(trouble)));
                }
                Poll::Pending if taken.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        Poll::Ready((taken, None))
    })
    .await
}
