//! Stands between a daemon and its broker, and cuts or stalls their connections.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// How often everything was cut.
    cuts: u64,
    /// Bytes stay where they are.
    stalled: bool,
    /// Nobody new is let in.
    closed: bool,
}

/// A TCP proxy; it ends when dropped, with its connections.
pub struct Proxy {
    port: u16,
    state: watch::Sender<State>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// Forwards connections to a port of this machine.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn to(port: u16) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let own = listener.local_addr()?.port();
        let (state, follow) = watch::channel(State::default());
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Ok(Proxy { port: own, state, task: tokio::spawn(serve(listener, target, follow)) })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Closes every connection, with whatever is in flight.
    pub fn cut(&self) {
        self.state.send_modify(|s| s.cuts += 1);
    }

    /// Holds back all bytes, of connections that there are and of new ones, until [`Proxy::flow`].
    pub fn stall(&self) {
        self.state.send_modify(|s| s.stalled = true);
    }

    /// Cuts, and lets nobody in until [`Proxy::flow`].
    pub fn close(&self) {
        self.state.send_modify(|s| (s.cuts, s.closed) = (s.cuts + 1, true));
    }

    /// Lets everything through again.
    pub fn flow(&self) {
        self.state.send_modify(|s| (s.stalled, s.closed) = (false, false));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
        self.cut();
    }
}

async fn serve(listener: TcpListener, target: SocketAddr, state: watch::Receiver<State>) {
    while let Ok((near, _)) = listener.accept().await {
        if state.borrow().closed {
            continue;
        }
        let state = state.clone();
        tokio::spawn(async move {
            let Ok(far) = TcpStream::connect(target).await else { return };
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            tokio::select! {
                () = forward(near_in, far_out, state.clone()) => {}
                () = forward(far_in, near_out, state) => {}
            }
        });
    }
}

/// Until one side ends, or everything is cut.
async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut state: watch::Receiver<State>) {
    let cuts = state.borrow().cuts;
    let mut bytes = vec![0; 64 << 10];
    loop {
        let read = tokio::select! {
            read = from.read(&mut bytes) => read,
            cut = state.wait_for(|s| s.cuts != cuts) => { drop(cut); return },
        };
        let Ok(length @ 1..) = read else { return };
        match state.wait_for(|s| !s.stalled || s.cuts != cuts).await {
            Ok(now) if now.cuts == cuts => {}
            _ => return,
        }
        if to.write_all(&bytes[..length]).await.is_err() {
            return;
        }
    }
}
