//! The HTTP API: JSON over a unix socket that belongs to the operator alone.
//!
//! Every refusal, of a malformed request too, is a [`Fault`] as JSON. Orders carry the client's request id; see `once`.

mod api;
mod body;
mod doc;
mod dry;
mod office;
mod once;
mod socket;
pub mod wire;

pub use doc::openapi;
pub use office::{Office, Reply};
pub use socket::Socket;

use axum::{
    Router,
    routing::{get, post},
};
use body::Failure;
use img_storage_model::Fault;
use std::{path::Path, sync::Arc};
use tokio::task::JoinHandle;

/// What every handler gets.
#[derive(Clone)]
pub(crate) struct Api {
    office: Arc<dyn Office>,
    once: once::Once,
}

/// The API's routes.
pub fn router(office: Arc<dyn Office>) -> Router {
    Router::new()
        .route("/api/status", get(api::status))
        .route("/api/hosts", get(api::hosts))
        .route("/api/volumes", get(api::volumes).post(api::create))
        .route("/api/volumes/{volume}", get(api::volume))
        .route("/api/volumes/{volume}/map", post(api::map))
        .route("/api/volumes/{volume}/unmap", post(api::unmap))
        .route("/api/volumes/{volume}/sync", post(api::sync))
        .route("/api/volumes/{volume}/bring-back", post(api::bring_back))
        .route("/api/volumes/{volume}/resize", post(api::resize))
        .route("/api/volumes/{volume}/delete", post(api::delete))
        .route("/api/volumes/{volume}/export", post(api::export))
        .route("/api/volumes/{volume}/attributes", get(api::volume_attributes).post(api::set_volume_attributes))
        .route("/api/nas/{nas}/attributes", get(api::nas_attributes).post(api::set_nas_attributes))
        .route("/api/history", get(api::history))
        .route("/api/transfers/{id}", get(api::transfer))
        .route("/api/openapi.json", get(api::openapi_json))
        .fallback(async |uri: axum::http::Uri| {
            Failure(Fault::not_found(format!("there is nothing at {}", uri.path())).next("see /api/openapi.json"))
        })
        .method_not_allowed_fallback(async |method: axum::http::Method, uri: axum::http::Uri| {
            Failure(Fault::invalid(format!("{} does not do {method}", uri.path())).next("see /api/openapi.json"))
        })
        .with_state(Api { office, once: once::Once::default() })
}

/// Serves the API at a socket's path, as long as this process runs; the socket is there when this returns.
///
/// # Errors
/// When the socket cannot be served, or is served already.
pub async fn serve(office: Arc<dyn Office>, path: &Path) -> Result<JoinHandle<()>, Fault> {
    let mut socket = Socket::bind(path)?;
    let listener = socket.listener()?;
    let router = router(office);
    Ok(tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!("the API at {} is not served any more: {error}", socket.path().display());
        }
    }))
}
