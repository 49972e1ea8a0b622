//! Refusals as etcd's gateway writes them: the HTTP status, and the JSON with gRPC's code and text.
//! A refusal must never be an answer without a body, nor one without its code.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use serde::Serialize;
use tonic::{Code, Status};

/// The body of a refusal; Patroni reads all three fields.
#[derive(Serialize)]
struct Plain<'a> {
    error: &'a str,
    message: &'a str,
    code: i32,
}

#[derive(Serialize)]
struct InStream<'a> {
    error: StreamError<'a>,
}

#[derive(Serialize)]
struct StreamError<'a> {
    grpc_code: i32,
    http_code: u16,
    message: &'a str,
    http_status: &'a str,
}

/// The HTTP status of a gRPC code.
pub fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::FailedPrecondition => StatusCode::PRECONDITION_FAILED,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The answer to a request that was refused.
pub fn plain(status: &Status) -> Response {
    let (error, code) = (status.message(), status.code() as i32);
    let body = serde_json::to_vec(&Plain { error, message: error, code }).expect("texts and a number");
    json(http_status(status.code()), Body::from(body))
}

/// The last thing in a stream that failed.
pub fn in_stream(status: &Status) -> Vec<u8> {
    let http = http_status(status.code());
    let error = StreamError {
        grpc_code: status.code() as i32,
        http_code: http.as_u16(),
        message: status.message(),
        http_status: http.canonical_reason().unwrap_or_default(),
    };
    serde_json::to_vec(&InStream { error }).expect("texts and numbers")
}

/// An answer whose body is JSON.
pub fn json(status: StatusCode, body: Body) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// The answer at a path that is none.
pub async fn not_found() -> Response {
    text(StatusCode::NOT_FOUND)
}

/// The answer to a method other than POST.
pub async fn wrong_method() -> Response {
    text(StatusCode::METHOD_NOT_ALLOWED)
}

fn text(status: StatusCode) -> Response {
    let body = format!("{}\n", status.canonical_reason().unwrap_or_default());
    (status, [(header::X_CONTENT_TYPE_OPTIONS, "nosniff")], body).into_response()
}
