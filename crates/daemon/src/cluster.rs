//! Who may speak as what on the bus: configured, not believed.

use img_storage_model::HostName;
use std::collections::BTreeSet;

/// The hosts that have a say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Those whose requests are taken, and who are told of every host.
    pub frontends: BTreeSet<HostName>,
    /// Those whose volumes there are. `None` on the bus of one machine, where everybody is whoever they say.
    pub nases: Option<BTreeSet<HostName>>,
    /// Orders of the original's front end are taken. It signs none, so anybody's who can log in to the broker are.
    pub unsigned_orders: bool,
}

impl Cluster {
    /// A cluster with these front ends and NASes.
    pub fn of(frontends: impl IntoIterator<Item = HostName>, nases: impl IntoIterator<Item = HostName>) -> Self {
        Cluster { frontends: frontends.into_iter().collect(), nases: Some(nases.into_iter().collect()), unsigned_orders: false }
    }

    /// Whether a host's orders count.
    pub fn is_frontend(&self, host: &HostName) -> bool {
        self.frontends.contains(host)
    }

    /// Whether a host can have volumes.
    pub fn is_nas(&self, host: &HostName) -> bool {
        self.nases.as_ref().is_none_or(|nases| nases.contains(host))
    }

    /// The front ends, for people.
    pub fn frontend_names(&self) -> String {
        self.frontends.iter().map(HostName::as_str).collect::<Vec<_>>().join(" or ")
    }
}
