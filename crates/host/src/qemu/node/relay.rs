//! The way of a guest's storage daemon to the NAS where the guest can do without: through a relay, `VOLUME.b`, a storage daemon of
//! its own with a socket that is ours.
//!
//! QEMU connects, flushes and closes with its monitor held, and as long as it does a guest's disk is not opened anew. A network that
//! swallows everything makes that minutes. The relay may wait so; it is ended when it is in the way, and what was asked of it fails.

use std::time::Duration;

use img_storage_model::messages::Endpoint;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Steps, connection};
use crate::HostError;
use crate::qemu::{during, knock};
use crate::qsd::Qsd;

/// The relay's export.
const RELAY: &str = "relay";
/// A relay keeps nothing: it need not end well.
const RELAY_GRACE: Duration = Duration::from_millis(300);

/// What a relay was started for.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
enum RelayMark {
    To(Endpoint),
    Nowhere,
}

/// Whether the relay was started for a NAS.
pub(super) fn leads_to_a_nas(relay: &Qsd) -> bool {
    matches!(relay.mark(), Ok(RelayMark::To(_)))
}

impl Steps<'_> {
    /// Starts a relay to a NAS, in place of any other; how the guest's storage daemon connects to it.
    pub(super) async fn lead_to(&self, endpoint: &Endpoint) -> Result<Value, HostError> {
        knock(endpoint).await?;
        let mut nas = connection(endpoint, "tls", 0);
        nas["node-name"] = "to".into();
        let args = vec![("--object", self.host.plane.client("tls")), ("--blockdev", nas)];
        let Endpoint { host, port, export, server } = endpoint;
        let to = during(format!("open the export {export} of {server} at {host}:{port}"));
        self.start_relay(&RelayMark::To(endpoint.clone()), args).await.map_err(to)?;
        let server = json!({"type": "unix", "path": self.relay_socket()?});
        Ok(json!({"driver": "nbd", "export": RELAY, "discard": "unmap", "reconnect-delay": 0, "server": server}))
    }

    /// Starts a relay in which everything succeeds and nothing is kept, in place of any other.
    pub(super) async fn lead_nowhere(&self) -> Result<(), HostError> {
        let size = self.size()?;
        let nowhere = json!({"driver": "null-co", "node-name": "to", "size": size, "read-zeroes": true});
        self.start_relay(&RelayMark::Nowhere, vec![("--blockdev", nowhere)]).await
    }

    async fn start_relay(&self, mark: &RelayMark, mut args: Vec<(&'static str, Value)>) -> Result<(), HostError> {
        self.stop_relay().await?;
        args.push(("--nbd-server", json!({"addr": {"type": "unix", "path": self.relay_socket()?}})));
        args.push(("--export", json!({"type": "nbd", "id": RELAY, "name": RELAY, "node-name": "to", "writable": true})));
        let args: Vec<String> = args.iter().flat_map(|(option, value)| [(*option).to_owned(), value.to_string()]).collect();
        self.relay.start(mark, &args).await.map_err(during("start the relay to the NAS"))?;
        Ok(())
    }

    fn relay_socket(&self) -> Result<std::path::PathBuf, HostError> {
        self.relay.socket("relay.sock").map_err(during("lead the way to the NAS"))
    }

    /// Ends the relay; what waits for it fails.
    pub(super) async fn stop_relay(&self) -> Result<(), HostError> {
        self.relay.stop(RELAY_GRACE).await.map_err(during("stop the relay to the NAS"))
    }
}
