//! What is refused before the protocol layer sees it: old signatures, forms, strangers, bodies that are too large.

use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use s3s::Body;

/// Room for what `aws-chunked` framing adds to an object.
const FRAMING_BYTES_MAX: u64 = 1 << 20;

/// The refusal of a request, if it has no business here. Looks at the head only.
///
/// Everything that `s3s` verifies by a comparison that ends at the first difference is refused here: signatures of version 2,
/// forms, and signatures of single chunks. What is left is compared in constant time.
pub(crate) fn refusal<B>(request: &Request<B>, object_bytes_max: u64) -> Option<Response<Body>> {
    let (query, headers) = (request.uri().query().unwrap_or_default(), request.headers());
    let authorization = headers.get(AUTHORIZATION).map(http::HeaderValue::as_bytes);
    let presigned = query_value(query, "X-Amz-Signature").is_some();
    let old = query_value(query, "Signature").is_some()
        || query_value(query, "AWSAccessKeyId").is_some()
        || authorization.is_some_and(|value| !value.starts_with(b"AWS4-HMAC-SHA256"));
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if old || has_encoded_name(query) {
        Some(error(StatusCode::FORBIDDEN, "AccessDenied", "only signature version 4 is accepted"))
    } else if !presigned && authorization.is_none() {
        Some(error(StatusCode::FORBIDDEN, "AccessDenied", "a signature is required"))
    } else if is_form(headers) || (request.method() == Method::POST && query_value(query, "delete").is_none()) {
        Some(error(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", "there are no uploads by form"))
    } else if has_signed_chunks(headers) {
        Some(error(StatusCode::NOT_IMPLEMENTED, "NotImplemented", "chunks are not signed one by one here"))
    } else if length.is_some_and(|length| length > object_bytes_max.saturating_add(FRAMING_BYTES_MAX)) {
        Some(error(StatusCode::BAD_REQUEST, "EntityTooLarge", "the object is too large"))
    } else {
        None
    }
}

/// Whether a parameter's name has to be decoded: no client does that to the names of S3, and `%53ignature` would be another
/// name here than for the protocol layer.
fn has_encoded_name(query: &str) -> bool {
    query.split('&').any(|pair| pair.split('=').next().unwrap_or(pair).contains(['%', '+']))
}

fn is_form(headers: &HeaderMap) -> bool {
    let multipart = b"multipart/";
    let is_multipart = |value: &[u8]| value.get(..multipart.len()).is_some_and(|v| v.eq_ignore_ascii_case(multipart));
    headers.get_all(CONTENT_TYPE).iter().any(|value| is_multipart(value.as_bytes()))
}

fn has_signed_chunks(headers: &HeaderMap) -> bool {
    headers.get_all("x-amz-content-sha256").iter().any(|value| value.as_bytes().starts_with(b"STREAMING-AWS4-"))
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

    /// What `s3s` would compare with `==` does not reach it, however it is written.
    #[test]
    fn ls_08_only_signatures_that_are_compared_in_constant_time_are_looked_at() {
        let v4 = "X-Amz-Signature=1";
        let header = ("authorization", "AWS4-HMAC-SHA256 Credential=");
        for name in ["Signature", "%53ignature", "Signatur%65", "AWSAccessKeyId", "AWSAccessKey%49d", "a+b"] {
            for query in [format!("{name}=1&{v4}"), format!("{v4}&{name}"), format!("{v4}&Expires=1&{name}=a%3Db")] {
                assert_eq!(status("GET", &format!("/blobs/x?{query}"), &[header]), Some(403), "{query}");
            }
        }
        for scheme in ["AWS id:signature", "aws4-hmac-sha256 Credential=", " AWS4-HMAC-SHA256", ""] {
            assert_eq!(status("GET", &format!("/blobs/x?{v4}"), &[("authorization", scheme)]), Some(403), "{scheme}");
        }
        for form in ["multipart/form-data; boundary=x", "Multipart/Form-Data; boundary=x", "MULTIPART/x"] {
            let headers = [header, ("content-type", "text/plain"), ("content-type", form)];
            assert_eq!(status("POST", &format!("/blobs?delete&{v4}"), &headers), Some(405), "{form}");
        }
        for chunks in ["STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"] {
            let headers = [header, ("x-amz-content-sha256", chunks)];
            assert_eq!(status("PUT", "/incoming/x", &headers), Some(501), "{chunks}");
        }
        // What remains: one signature of version 4 over the whole request.
        let values = format!("/incoming/x?{v4}&X-Amz-Credential=a%2Fb&X-Amz-SignedHeaders=host%3Bx-amz-date");
        for whole in ["UNSIGNED-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"] {
            assert_eq!(status("PUT", &values, &[("x-amz-content-sha256", whole)]), None, "{whole}");
            assert_eq!(status("PUT", "/incoming/x", &[header, ("x-amz-content-sha256", whole)]), None, "{whole}");
        }
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
