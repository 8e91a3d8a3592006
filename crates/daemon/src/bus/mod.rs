//! The bus: how daemons reach each other by name. It may lose, delay or repeat any message.
//!
//! [`Exchange`] is the embedded bus, for roles that share a process; [`socket`] stretches it over a unix socket to roles in
//! other processes of the same machine. A daemon sees only its [`Post`] and its inbox, and cannot tell which it is.

mod exchange;
pub mod socket;

pub use exchange::{Exchange, Tap};

use img_storage_model::{
    HostName,
    messages::{Body, Envelope, VERSION},
};
use std::sync::Arc;
use tokio::sync::mpsc;

/// What arrives at a daemon.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// A message for it.
    Message(Envelope),
    /// A message of its own that nobody could take: there is no such name on the bus now.
    Unroutable(Envelope),
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
}

impl Post {
    /// The name it sends under.
    pub fn name(&self) -> &HostName {
        &self.name
    }

    /// Sends, or at least tries: no answer, no error. Where nobody has the name, a [`Delivery::Unroutable`] comes back.
    pub fn send(&self, to: &HostName, body: Body) {
        let message = Envelope { v: VERSION, from: self.name.clone(), to: to.clone(), body };
        match &self.wire {
            Wire::Exchange(exchange) => exchange.route(message),
            Wire::Socket(wire) => {
                // Closed only while this process ends.
                let _ = wire.send(message);
            }
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
