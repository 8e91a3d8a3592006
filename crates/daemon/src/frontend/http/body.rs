//! Requests taken apart, and every refusal put into the one shape: a [`Fault`] as JSON.

use super::wire::Order;
use axum::{
    Json,
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use img_storage_model::{Fault, FaultKind};
use serde::de::DeserializeOwned;
use std::str::FromStr;

/// A fault as an HTTP answer.
#[derive(Debug)]
pub struct Failure(pub Fault);

/// The HTTP status of a kind of fault.
pub fn status(kind: FaultKind) -> StatusCode {
    match kind {
        FaultKind::Invalid => StatusCode::BAD_REQUEST,
        FaultKind::NotFound => StatusCode::NOT_FOUND,
        FaultKind::Refused => StatusCode::CONFLICT,
        FaultKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        FaultKind::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
        FaultKind::Unfinished => StatusCode::GATEWAY_TIMEOUT,
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (status(self.0.kind), Json(self.0)).into_response()
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Failure(fault)
    }
}

/// The body of an order: JSON; an empty one is `{}`.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: Order + DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|error| Fault::invalid(format!("the request's body cannot be read: {}", error.body_text())))?;
        let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        // A list would be taken for the fields in their order, and `[]` for an order without any.
        if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
            return Err(Fault::invalid("the request's body is wrong: it is no JSON object").next("see /api/openapi.json").into());
        }
        let order: T =
            serde_json::from_slice(bytes).map_err(|error| Fault::invalid(format!("the request's body is wrong: {error}")))?;
        order.common().deadline()?;
        Ok(Body(order))
    }
}

/// One part of the path, parsed.
pub struct Named<T>(pub T);

impl<S: Send + Sync, T: FromStr> FromRequestParts<S> for Named<T>
where
    Fault: From<T::Err>,
{
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|error| Fault::invalid(format!("the request's path is wrong: {}", error.body_text())))?;
        Ok(Named(text.parse().map_err(Fault::from)?))
    }
}

/// The query, parsed.
pub struct Asked<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let Query(query) = Query::<T>::from_request_parts(parts, state)
            .await
            .map_err(|error| Fault::invalid(format!("the request's query is wrong: {}", error.body_text())))?;
        Ok(Asked(query))
    }
}
