//! The bus: how daemons reach each other by name. It may lose, delay or repeat any message.
//!
//! [`Exchange`] is the embedded bus, for roles that share a process; [`socket`] stretches it over a unix socket to roles in
//! other processes of the same machine; [`amqp`] is the one between hosts, over a broker. A daemon sees only its [`Post`] and its
//! inbox, and cannot tell which it is.

pub mod amqp;
mod exchange;
pub mod socket;

pub use exchange::{Exchange, Tap};

use img_storage_model::{
    HostName,
    messages::{Body, Envelope, VERSION},
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tokio::sync::mpsc;

/// What arrives at a daemon.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// A message for it.
    Message(Envelope),
    /// A message of its own that nobody could take: there is no such name on the bus now.
    Unroutable(Envelope),
    /// A message of its own that did not even get onto the bus: nobody can be reached now.
    Unsent {
        /// It.
        message: Envelope,
        /// What is wrong with the bus.
        why: String,
    },
    /// The bus is there (again): what was sent to this daemon before is lost, and others may have taken it for gone.
    Connected,
    /// A message for it that no daemon of ours sent.
    Foreign(Foreign),
}

/// A message in the words of the original's front end, or in none: it is taken apart by who gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// Whose connection it came over, where the broker vouches for that.
    pub user: Option<String>,
    /// Where the answer goes; without it nobody waits for one.
    pub reply_to: Option<ReplyTo>,
    /// It, as it came.
    pub body: Vec<u8>,
}

/// Where somebody waits for the answer to a [`Foreign`] message. It outlives a restart of who answers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ReplyTo {
    /// The queue that was named.
    pub queue: String,
    /// The asker's number of the message; with the queue it tells a repeated message from a new one.
    pub message: String,
}

/// A daemon's way to send.
#[derive(Clone)]
pub struct Post {
    name: HostName,
    wire: Wire,
}

#[derive(Clone)]
enum Wire {
    Exchange(Arc<Exchange>),
    Socket(mpsc::UnboundedSender<Envelope>),
    Amqp(amqp::Outbox),
}

impl Post {
    /// The name it sends under.
    pub fn name(&self) -> &HostName {
        &self.name
    }

    /// Sends, or at least tries: no answer, no error. Where nobody has the name, a [`Delivery::Unroutable`] comes back; where the
    /// bus itself is away, a [`Delivery::Unsent`].
    pub fn send(&self, to: &HostName, body: Body) {
        let message = Envelope { v: VERSION, from: self.name.clone(), to: to.clone(), body };
        match &self.wire {
            Wire::Exchange(exchange) => exchange.route(message),
            Wire::Socket(wire) => {
                // Closed only while this process ends.
                let _ = wire.send(message);
            }
            Wire::Amqp(outbox) => outbox.send(message),
        }
    }

    /// Answers a [`Foreign`] message, or at least tries: who asked may have gone.
    pub fn answer(&self, to: &ReplyTo, body: Vec<u8>) {
        match &self.wire {
            Wire::Exchange(exchange) => exchange.reply(to, body),
            // Nobody foreign speaks over this one.
            Wire::Socket(_) => {}
            Wire::Amqp(outbox) => outbox.answer(to, body),
        }
    }
}

/// A daemon's place on the bus; it is given up when the inbox is dropped.
pub struct Member {
    /// For sending.
    pub post: Post,
    /// For receiving.
    pub inbox: mpsc::UnboundedReceiver<Delivery>,
}
