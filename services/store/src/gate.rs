//! What is refused before the protocol layer sees it: old signatures, forms, strangers, bodies that are too large.

use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use http::{Method, Request, Response, StatusCode};
use s3s::Body;

/// Room for what `aws-chunked` framing adds to an object.
const FRAMING_BYTES_MAX: u64 = 1 << 20;

/// The refusal of a request, if it has no business here. Looks at the head only.
pub(crate) fn refusal<B>(request: &Request<B>, object_bytes_max: u64) -> Option<Response<Body>> {
    let query = request.uri().query().unwrap_or_default();
    let authorization = request.headers().get(AUTHORIZATION).map(http::HeaderValue::as_bytes);
    let presigned = query_value(query, "X-Amz-Signature").is_some();
    let old = query_value(query, "Signature").is_some()
        || query_value(query, "AWSAccessKeyId").is_some()
        || authorization.is_some_and(|value| !value.starts_with(b"AWS4-HMAC-SHA256"));
    let form = request.headers().get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"multipart/"));
    let length = request.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if old {
        Some(error(StatusCode::FORBIDDEN, "AccessDenied", "only signature version 4 is accepted"))
    } else if !presigned && authorization.is_none() {
        Some(error(StatusCode::FORBIDDEN, "AccessDenied", "a signature is required"))
    } else if form || (request.method() == Method::POST && query_value(query, "delete").is_none()) {
        Some(error(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "there are no uploads by form"))
    } else if length.is_some_and(|length| length > object_bytes_max.saturating_add(FRAMING_BYTES_MAX)) {
        Some(error(StatusCode::BAD_REQUEST, "EntityTooLarge", "the object is too large"))
    } else {
        None
    }
}

/// The undecoded value of a query parameter.
pub(crate) fn query_value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find_map(|(key, value)| (key == name).then_some(value))
}

fn error(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    );
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/xml"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(method: &str, uri: &str, headers: &[(&str, &str)]) -> Option<u16> {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        refusal(&request.body(()).unwrap(), 1 << 20).map(|response| response.status().as_u16())
    }

    #[test]
    fn only_signature_version_4_passes() {
        assert_eq!(status("GET", "/blobs/x", &[]), Some(403));
        assert_eq!(status("GET", "/blobs/x?AWSAccessKeyId=a&Signature=b&Expires=1", &[]), Some(403));
        assert_eq!(status("GET", "/blobs/x", &[("authorization", "AWS a:b")]), Some(403));
        assert_eq!(status("GET", "/blobs/x?X-Amz-Signature=1", &[("authorization", "Basic x")]), Some(403));
        assert_eq!(status("GET", "/blobs/x?X-Amz-Signature=1", &[]), None);
        assert_eq!(status("GET", "/blobs/x", &[("authorization", "AWS4-HMAC-SHA256 Credential=")]), None);
    }

    #[test]
    fn forms_and_giants_are_refused() {
        let signed = "/blobs?X-Amz-Signature=1";
        assert_eq!(status("POST", signed, &[]), Some(405));
        assert_eq!(status("POST", &format!("{signed}&delete"), &[]), None);
        assert_eq!(status("PUT", signed, &[("content-type", "multipart/form-data; boundary=x")]), Some(405));
        assert_eq!(status("PUT", signed, &[("content-length", "99999999")]), Some(400));
    }
}
