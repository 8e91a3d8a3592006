//! Whom this NAS has heard of, and when.

use img_storage_model::{
    HostName,
    messages::{Hello, Role},
};
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};
use tokio::sync::watch;

#[derive(Clone, Debug)]
struct Peer {
    role: Role,
    started: Timestamp,
    heard: Timestamp,
    away: bool,
    pool: Option<String>,
    planes: Vec<String>,
    initiator: Option<String>,
    address: Option<String>,
}

/// The hosts on the other side of the bus.
pub struct Peers {
    known: Mutex<BTreeMap<HostName, Peer>>,
    unroutable: Mutex<BTreeSet<HostName>>,
    changed: watch::Sender<u64>,
}

impl Default for Peers {
    fn default() -> Self {
        Peers { known: Mutex::default(), unroutable: Mutex::default(), changed: watch::channel(0).0 }
    }
}

impl Peers {
    /// Notes a hello; says whether the host is new, came back or was restarted.
    pub fn heard(&self, host: &HostName, hello: &Hello, now: Timestamp) -> bool {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        self.unroutable.lock().unwrap_or_else(PoisonError::into_inner).remove(host);
        let peer = Peer {
            role: hello.role,
            started: hello.started,
            heard: now,
            away: false,
            pool: hello.pools.first().map(|p| p.name.clone()),
            planes: hello.planes.clone(),
            initiator: hello.initiator.clone(),
            address: hello.addresses.first().cloned(),
        };
        let before = known.insert(host.clone(), peer);
        self.changed.send_modify(|n| *n += 1);
        before.is_none_or(|b| b.started != hello.started || b.away)
    }

    /// Notes a message of another kind: who sends one is there. A host that does not know us says no hello.
    pub fn seen(&self, host: &HostName, now: Timestamp) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = known.get_mut(host) {
            peer.heard = now;
            if std::mem::take(&mut peer.away) {
                self.unroutable.lock().unwrap_or_else(PoisonError::into_inner).remove(host);
                self.changed.send_modify(|n| *n += 1);
            }
        }
    }

    /// Notes that the bus cannot reach a host.
    pub fn away(&self, host: &HostName) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = known.get_mut(host) {
            peer.away = true;
        }
        self.unroutable.lock().unwrap_or_else(PoisonError::into_inner).insert(host.clone());
        self.changed.send_modify(|n| *n += 1);
    }

    /// The role of a host heard of within `seconds` and not known to be away.
    pub fn present(&self, host: &HostName, now: Timestamp, seconds: i64) -> Option<Role> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(host).filter(|p| !p.away && now.duration_since(p.heard).as_secs() <= seconds).map(|p| p.role)
    }

    /// When a host's process began, as it last said.
    pub fn session(&self, host: &HostName) -> Option<Timestamp> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(host).map(|p| p.started)
    }

    /// What a host said that it is.
    pub fn role(&self, host: &HostName) -> Option<Role> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(host).map(|p| p.role)
    }

    /// The first pool of a host.
    pub fn pool(&self, host: &HostName) -> Option<String> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(host).and_then(|p| p.pool.clone())
    }

    /// A host's iSCSI name, and the address it is reached at for data, as it said them.
    pub fn reached(&self, host: &HostName) -> (Option<String>, Option<String>) {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(host).map_or((None, None), |p| (p.initiator.clone(), p.address.clone()))
    }

    /// The data planes a host can serve.
    pub fn planes(&self, host: &HostName) -> Vec<String> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(host).map_or_else(Vec::new, |p| p.planes.clone())
    }

    /// The nodes that were heard of and are not known to be away.
    pub fn nodes(&self) -> Vec<HostName> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.iter().filter(|(_, p)| p.role == Role::Node && !p.away).map(|(name, _)| name.clone()).collect()
    }

    /// Whether a host was heard of and is away now.
    pub fn is_away(&self, host: &HostName) -> bool {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(host).is_some_and(|p| p.away)
    }

    /// Forgets that the bus could not reach a host: it is about to be tried again.
    pub fn try_again(&self, host: &HostName) {
        self.unroutable.lock().unwrap_or_else(PoisonError::into_inner).remove(host);
    }

    /// Whether the bus could not reach a host since [`Peers::try_again`].
    pub fn unroutable(&self, host: &HostName) -> bool {
        self.unroutable.lock().unwrap_or_else(PoisonError::into_inner).contains(host)
    }

    /// Follows every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
