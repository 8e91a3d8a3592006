//! The embedded bus: names to inboxes, in memory.

use super::{Delivery, Foreign, Member, Post, ReplyTo, Wire};
use img_storage_model::{Fault, HostName, messages::Envelope};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::sync::mpsc;

/// Decides what becomes of a message: one copy is delivered after each of the delays. The tests lose (`[]`), delay and double with it.
pub type Tap = Box<dyn Fn(&Envelope) -> Vec<Duration> + Send + Sync>;

/// Names to inboxes.
#[derive(Default)]
pub struct Exchange {
    members: Mutex<BTreeMap<HostName, mpsc::UnboundedSender<Delivery>>>,
    /// Askers that are not ours, by the queue they wait on.
    askers: Mutex<BTreeMap<String, mpsc::UnboundedSender<Vec<u8>>>>,
    tap: Option<Tap>,
}

impl Exchange {
    /// An exchange that delivers everything at once.
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// An exchange whose deliveries the tap decides.
    pub fn tapped(tap: Tap) -> Arc<Self> {
        Arc::new(Exchange { tap: Some(tap), ..Self::default() })
    }

    /// Takes a place under a name.
    ///
    /// # Errors
    /// [`img_storage_model::FaultKind::Refused`] when somebody has it.
    pub fn join(self: &Arc<Self>, name: &HostName) -> Result<Member, Fault> {
        let (sender, inbox) = mpsc::unbounded_channel();
        self.enter(name, sender)?;
        Ok(Member { post: Post { name: name.clone(), wire: Wire::Exchange(Arc::clone(self)) }, inbox })
    }

    pub(super) fn enter(&self, name: &HostName, inbox: mpsc::UnboundedSender<Delivery>) -> Result<(), Fault> {
        let mut members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        if members.get(name).is_some_and(|m| !m.is_closed()) {
            return Err(Fault::refused(format!("a daemon named {name} is on the bus already"))
                .next("stop it first, or start this one under another --name"));
        }
        members.insert(name.clone(), inbox);
        Ok(())
    }

    /// Brings a message on its way.
    pub fn route(self: &Arc<Self>, message: Envelope) {
        let Some(tap) = &self.tap else {
            self.deliver(message);
            return;
        };
        for delay in tap(&message) {
            let (exchange, message) = (Arc::clone(self), message.clone());
            if delay.is_zero() {
                exchange.deliver(message);
            } else {
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    exchange.deliver(message);
                });
            }
        }
    }

    fn deliver(&self, message: Envelope) {
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        let returned = match members.get(&message.to) {
            Some(inbox) => match inbox.send(Delivery::Message(message)) {
                Ok(()) => return,
                Err(mpsc::error::SendError(Delivery::Message(message) | Delivery::Unroutable(message))) => message,
                Err(mpsc::error::SendError(_)) => return,
            },
            None => message,
        };
        if let Some(sender) = members.get(&returned.from) {
            // A sender that has left does not care.
            let _ = sender.send(Delivery::Unroutable(returned));
        }
    }

    /// Asks as the original's front end does: once, from a queue of one's own, on which the answers arrive. Nothing arrives
    /// where nobody has the name.
    pub fn ask(&self, to: &HostName, reply_to: ReplyTo, body: Vec<u8>) -> mpsc::UnboundedReceiver<Vec<u8>> {
        let (sender, answers) = mpsc::unbounded_channel();
        self.askers.lock().unwrap_or_else(PoisonError::into_inner).insert(reply_to.queue.clone(), sender);
        let members = self.members.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(inbox) = members.get(to) {
            let _ = inbox.send(Delivery::Foreign(Foreign { user: None, reply_to: Some(reply_to), body }));
        }
        answers
    }

    pub(super) fn reply(&self, to: &ReplyTo, body: Vec<u8>) {
        let mut askers = self.askers.lock().unwrap_or_else(PoisonError::into_inner);
        askers.retain(|_, asker| !asker.is_closed());
        if let Some(asker) = askers.get(&to.queue) {
            let _ = asker.send(body);
        }
    }
}
