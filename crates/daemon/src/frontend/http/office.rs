//! What the API needs from the rest of the front end. The [`Desk`](crate::frontend::Desk) is the one in production; tests bring their own.

use crate::frontend::{TransferId, TransferView};
use img_storage_model::{
    Fault, HostName, PoolName, RequestId, Selector, Size, VolumeName,
    api::{Answer, HostView, Request, VolumeView},
};
use std::{future::Future, path::PathBuf, pin::Pin, sync::Arc, time::Duration};

/// An answer that is still to come.
pub type Reply<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Who answers the API's questions.
pub trait Office: Send + Sync + 'static {
    /// All hosts that were heard of.
    fn hosts(&self) -> Reply<'_, Vec<HostView>>;
    /// Volumes of all NASes, sorted.
    fn volumes<'a>(&'a self, selector: Option<&'a Selector>) -> Reply<'a, Result<Vec<VolumeView>, Fault>>;
    /// The only volume that matches.
    fn one<'a>(&'a self, selector: &'a Selector) -> Reply<'a, Result<VolumeView, Fault>>;
    /// Asks a NAS; a repeated id gets the stored answer.
    fn ask<'a>(
        &'a self,
        nas: &'a HostName,
        id: RequestId,
        request: Request,
        deadline: Duration,
    ) -> Reply<'a, Result<Answer, Fault>>;
    /// The NAS a new volume goes to.
    fn nas_for_new<'a>(&'a self, nas: Option<&'a HostName>, pool: Option<&'a PoolName>) -> Reply<'a, Result<HostName, Fault>>;
    /// Starts to fill a new volume from an image; returns when the volume exists.
    fn create_from(
        self: Arc<Self>,
        nas: HostName,
        pool: Option<PoolName>,
        name: VolumeName,
        size: Option<Size>,
        source: PathBuf,
    ) -> Reply<'static, Result<VolumeView, Fault>>;
    /// Starts to write a volume into a file.
    fn export_to(self: Arc<Self>, volume: VolumeView, file: PathBuf, format: String)
    -> Reply<'static, Result<TransferId, Fault>>;
    /// How far an export is.
    fn transfer(&self, id: TransferId) -> Option<TransferView>;
    /// A fresh request id.
    fn id(&self) -> RequestId;
}

impl Office for crate::frontend::Desk {
    fn hosts(&self) -> Reply<'_, Vec<HostView>> {
        Box::pin(self.hosts())
    }

    fn volumes<'a>(&'a self, selector: Option<&'a Selector>) -> Reply<'a, Result<Vec<VolumeView>, Fault>> {
        Box::pin(self.volumes(selector))
    }

    fn one<'a>(&'a self, selector: &'a Selector) -> Reply<'a, Result<VolumeView, Fault>> {
        Box::pin(self.one(selector))
    }

    fn ask<'a>(
        &'a self,
        nas: &'a HostName,
        id: RequestId,
        request: Request,
        deadline: Duration,
    ) -> Reply<'a, Result<Answer, Fault>> {
        Box::pin(self.ask(nas, id, request, deadline))
    }

    fn nas_for_new<'a>(&'a self, nas: Option<&'a HostName>, pool: Option<&'a PoolName>) -> Reply<'a, Result<HostName, Fault>> {
        Box::pin(self.nas_for_new(nas, pool))
    }

    fn create_from(
        self: Arc<Self>,
        nas: HostName,
        pool: Option<PoolName>,
        name: VolumeName,
        size: Option<Size>,
        source: PathBuf,
    ) -> Reply<'static, Result<VolumeView, Fault>> {
        Box::pin(async move { Self::create_from(&self, &nas, pool, name, size, source).await })
    }

    fn export_to(
        self: Arc<Self>,
        volume: VolumeView,
        file: PathBuf,
        format: String,
    ) -> Reply<'static, Result<TransferId, Fault>> {
        Box::pin(async move { Self::export_to(&self, &volume, file, format).await })
    }

    fn transfer(&self, id: TransferId) -> Option<TransferView> {
        self.transfer(id)
    }

    fn id(&self) -> RequestId {
        self.id()
    }
}
