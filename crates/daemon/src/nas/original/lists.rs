//! What only looks.

use super::{Nas, lock};
use img_storage_model::{
    api::{Phase, VolumeView},
    original::{Behind, NasRequest, Reply, Row},
};
use std::sync::Arc;

impl Nas {
    /// Answers a question.
    pub(super) async fn look(self: &Arc<Self>, request: NasRequest) -> Reply {
        match request {
            NasRequest::List => Reply::Volumes(self.rows()),
            other => Reply::refused(other.action(), "this NAS keeps no attributes"),
        }
    }

    fn rows(&self) -> Vec<Row> {
        let mut views: Vec<VolumeView> = self.find(None);
        views.sort_by(|a, b| (&a.name, &a.pool).cmp(&(&b.name, &b.pool)));
        let (working, pools) = (lock(&self.original.working), lock(&self.original.pools));
        let now = self.clock.now().as_second();
        let row = |view: &VolumeView| {
            let copied = view.sync || matches!(view.phase, Phase::Local | Phase::BringingBack | Phase::Returning);
            let asked = pools.get(&view.id).filter(|(epoch, _)| *epoch == view.epoch).map(|(_, pool)| pool.clone());
            let remotepool = asked.or_else(|| view.node.as_ref().filter(|_| copied).and_then(|node| self.peers.pool(node)));
            let due = view.frequency.zip(view.lag).and_then(|(every, lag)| i64::try_from(every.saturating_sub(lag)).ok());
            Row::new(
                view,
                Behind { remotepool, working: working.contains(&view.name), nextsync: due.map(|in_| now + in_), frequency: None },
            )
        };
        views.iter().map(row).collect()
    }
}
