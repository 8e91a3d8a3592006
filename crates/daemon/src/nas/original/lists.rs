//! What only looks.

use super::{Nas, lock};
use img_storage_model::{
    HostName, VolumeName,
    api::{Answer, AttributesOf, Phase},
    attribute::AttributeView,
    original::{Action, Behind, NasRequest, Reply, Row, VolumeAttributes, nas_values, volume_values},
};
use std::{collections::BTreeMap, sync::Arc};

/// What a NAS shows among its attributes and has in its configuration.
pub(super) const FIXED: [&str; 5] = ["name", "frontend_name", "default_pool", "network", "ssl_options"];

impl Nas {
    /// Answers a question.
    pub(super) async fn look(self: &Arc<Self>, request: NasRequest) -> Reply {
        match request {
            NasRequest::List => Reply::Volumes(self.rows()),
            NasRequest::VolumeAttributes { zvol } => match self.attributes_of(&zvol) {
                Ok(attributes) => Reply::VolumeAttributes(attributes),
                Err(why) => Reply::refused(Action::GetZvolAttrs, why),
            },
            NasRequest::Attributes => match self.own_attributes().await {
                Ok(attributes) => Reply::Attributes(attributes),
                Err(why) => Reply::refused(Action::GetAttrs, why),
            },
            other => Reply::refused(other.action(), "this is no question"),
        }
    }

    fn rows(&self) -> Vec<Row> {
        let (working, pools) = (lock(&self.original.working), lock(&self.original.pools));
        let entries = self.entries();
        let mut rows: Vec<Row> = entries
            .values()
            .map(|entry| {
                let shown = entry.shown.borrow();
                let view = &shown.view;
                let copied = view.sync || matches!(view.phase, Phase::Local | Phase::BringingBack | Phase::Returning);
                let asked = pools.get(&view.id).filter(|(epoch, _)| *epoch == view.epoch).map(|(_, pool)| pool.clone());
                let here = || view.node.as_ref().filter(|_| copied).and_then(|node| self.peers.pool(node));
                let behind = Behind {
                    remotepool: asked.or_else(here),
                    working: working.contains(&view.name),
                    nextsync: view.next_sync.map(jiff::Timestamp::as_second),
                    frequency: shown.attributes.frequency.map(|every| every.duration().as_secs().to_string()),
                };
                Row::new(view, behind)
            })
            .collect();
        rows.sort_by(|a, b| (&a.zvol, &a.zpool).cmp(&(&b.zvol, &b.zpool)));
        rows
    }

    fn views(&self, of: AttributesOf) -> Result<Vec<AttributeView>, String> {
        match self.attributes(of) {
            Ok(Answer::Attributes { attributes }) => Ok(attributes),
            Ok(_) => Err("it was answered as another question".to_owned()),
            Err(fault) => Err(fault.to_string()),
        }
    }

    /// A volume's own, and when its next write-back is due.
    fn attributes_of(&self, zvol: &VolumeName) -> Result<VolumeAttributes, String> {
        let view = self.one_named(zvol)?;
        Ok(VolumeAttributes::new(zvol.as_str(), &volume_values(&self.views(AttributesOf::Volume(view.id))?)))
    }

    /// The NAS's, with what the original has there from its configuration.
    async fn own_attributes(&self) -> Result<BTreeMap<String, String>, String> {
        let mut all = nas_values(&self.views(AttributesOf::Nas)?);
        let pool = self.host.pools().await.into_iter().next().map(|p| p.name).unwrap_or_default();
        let front = self.config.cluster.frontends.first().map(HostName::to_string).unwrap_or_default();
        let fixed = [self.post.name().to_string(), front, pool, self.config.address.clone(), "{}".to_owned()];
        all.extend(FIXED.iter().map(|name| (*name).to_owned()).zip(fixed));
        Ok(all)
    }
}
