//! The gate before the protocol layer. It admits only requests that this store serves: signed, with
//! a body of known and bounded length. It refuses all others by the head alone. The protocol layer
//! would read some bodies before it checks a signature, and would compare some signatures (version
//! 2, forms, chunks signed one by one) in a time that reveals something about them.

use http::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use s3s::Body;

/// Largest XML document of a request: a thousand keys to delete.
pub(crate) const XML_BYTES_MAX: u64 = 1 << 20;

const CONTENT_SHA256: &str = "x-amz-content-sha256";
const COPY_SOURCE: &str = "x-amz-copy-source";

struct Refusal(StatusCode, &'static str, &'static str);

const NO_LENGTH: Refusal = Refusal(
    StatusCode::LENGTH_REQUIRED,
    "MissingContentLength",
    "a body is announced by its content-length",
);

/// The refusal of a request that this store does not serve. It ends the connection, since a peer
/// that is not admitted may not hold one.
pub(crate) fn refusal<B>(request: &Request<B>, object_bytes_max: u64) -> Option<Response<Body>> {
    let query = request.uri().query().unwrap_or_default();
    let refused = signature(query, request.headers())
        .and_then(|()| shape(request.method(), query, request.headers()))
        .and_then(|()| body(request.method(), request.headers(), object_bytes_max));
    refused.err().map(answer)
}

/// The undecoded value of a query parameter.
pub(crate) fn query_value<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = query.split('&').map(pair);
    pairs.find_map(|(key, value)| (key == name).then_some(value))
}

/// Closes the connection after this answer.
pub(crate) fn close(response: &mut Response<Body>) {
    response
        .headers_mut()
        .insert(CONNECTION, HeaderValue::from_static("close"));
}

/// Requires exactly one signature of version 4, in the query or in the header. The protocol layer
/// verifies it.
fn signature(query: &str, headers: &HeaderMap) -> Result<(), Refusal> {
    let denied = |message| Err(Refusal(StatusCode::FORBIDDEN, "AccessDenied", message));
    // No client percent-encodes the names of S3, and `%53ignature` would be one name here and
    // another in the protocol layer.
    let mut pairs = query.split('&').map(pair);
    if pairs.any(|(name, _)| name.contains(['%', '+'])) {
        return denied("a parameter's name is written plainly");
    }
    if query_value(query, "Signature").is_some() || query_value(query, "AWSAccessKeyId").is_some() {
        return denied("only signature version 4 is accepted");
    }
    let mut authorizations = headers.get_all(AUTHORIZATION).iter();
    match (
        query_value(query, "X-Amz-Signature"),
        authorizations.next(),
        authorizations.next(),
    ) {
        (Some(_), None, _) if is_whole(headers) != Some(false) => Ok(()),
        (None, Some(value), None) if is_version_4(value) && is_whole(headers) == Some(true) => {
            Ok(())
        }
        (None, None, _) => denied("a signature is required"),
        _ => denied("one signature of version 4 over the whole request is accepted"),
    }
}

/// Checks that method, query and media type are those of a served operation.
fn shape(method: &Method, query: &str, headers: &HeaderMap) -> Result<(), Refusal> {
    let refused = |message| {
        Err(Refusal(
            StatusCode::METHOD_NOT_ALLOWED,
            "MethodNotAllowed",
            message,
        ))
    };
    match *method {
        Method::GET | Method::HEAD | Method::PUT | Method::DELETE => Ok(()),
        Method::POST if query_value(query, "delete").is_none() => {
            refused("there are no uploads by form")
        }
        Method::POST if !headers.get_all(CONTENT_TYPE).iter().all(is_xml) => {
            refused("keys to delete are sent as XML")
        }
        Method::POST => Ok(()),
        _ => refused("no such operation"),
    }
}

/// Checks that a body has a length, and that only operations with a body have one.
fn body(method: &Method, headers: &HeaderMap, object_bytes_max: u64) -> Result<(), Refusal> {
    let bytes_max = match *method {
        Method::PUT if !headers.contains_key(COPY_SOURCE) => object_bytes_max,
        Method::POST => XML_BYTES_MAX,
        _ => 0,
    };
    let has_body = matches!(*method, Method::PUT | Method::POST);
    let length = headers
        .get(CONTENT_LENGTH)
        .map(|value| value.to_str().ok()?.parse::<u64>().ok());
    match length {
        _ if headers.contains_key(TRANSFER_ENCODING) => Err(NO_LENGTH),
        None if has_body => Err(NO_LENGTH),
        None => Ok(()),
        Some(Some(length)) if length <= bytes_max => Ok(()),
        Some(_) => Err(Refusal(
            StatusCode::BAD_REQUEST,
            "EntityTooLarge",
            "the body is larger than is accepted here",
        )),
    }
}

/// `AWS4-HMAC-SHA256 Credential=<id>/<day>/<region>/s3/aws4_request, SignedHeaders=<names>,
/// Signature=<hex>`. The scope of another service has other rules.
fn is_version_4(value: &HeaderValue) -> bool {
    let Some(text) = value
        .to_str()
        .ok()
        .and_then(|text| text.strip_prefix("AWS4-HMAC-SHA256 "))
    else {
        return false;
    };
    let mut fields = text.split(',').map(str::trim);
    let mut field = |name| {
        fields
            .next()
            .and_then(|field: &str| field.strip_prefix(name))
    };
    let credential =
        field("Credential=").map(|credential| credential.split('/').collect::<Vec<_>>());
    let names = field("SignedHeaders=");
    let signature = field("Signature=");
    matches!(credential.as_deref(), Some([_, _, _, "s3", "aws4_request"]))
        && names.is_some_and(|names| !names.is_empty())
        && signature.is_some_and(is_sha256)
        && fields.next().is_none()
}

/// True if the header about the body gives its hash or says that it is unsigned; none without the
/// header. Signed chunks are refused: no client of this store sends them.
fn is_whole(headers: &HeaderMap) -> Option<bool> {
    let mut values = headers
        .get_all(CONTENT_SHA256)
        .iter()
        .map(|value| value.to_str().unwrap_or_default());
    let first = values.next()?;
    Some((first == "UNSIGNED-PAYLOAD" || is_sha256(first)) && values.next().is_none())
}

fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_xml(value: &HeaderValue) -> bool {
    let media = value
        .to_str()
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim();
    ["application/xml", "text/xml"]
        .iter()
        .any(|xml| media.eq_ignore_ascii_case(xml))
}

/// The name and the value of a query parameter.
fn pair(text: &str) -> (&str, &str) {
    text.split_once('=').unwrap_or((text, ""))
}

fn answer(Refusal(status, code, message): Refusal) -> Response<Body> {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    );
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    close(&mut response);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGNED: &str = "/blobs?X-Amz-Signature=1";

    fn status(method: &str, uri: &str, headers: &[(&str, &str)]) -> Option<u16> {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        refusal(&request.body(()).unwrap(), 1 << 20).map(|response| response.status().as_u16())
    }

    fn authorization(service: &str) -> String {
        let signature = "0".repeat(64);
        format!(
            "AWS4-HMAC-SHA256 Credential=k/20260101/r/{service}/aws4_request, SignedHeaders=host, Signature={signature}"
        )
    }

    #[test]
    fn only_signature_version_4_passes() {
        assert_eq!(status("GET", "/blobs/x", &[]), Some(403));
        assert_eq!(
            status(
                "GET",
                "/blobs/x?AWSAccessKeyId=a&Signature=b&Expires=1",
                &[]
            ),
            Some(403)
        );
        assert_eq!(
            status("GET", "/blobs/x", &[("authorization", "AWS a:b")]),
            Some(403)
        );
        assert_eq!(
            status(
                "GET",
                "/blobs/x?X-Amz-Signature=1",
                &[("authorization", "Basic x")]
            ),
            Some(403)
        );
        assert_eq!(status("GET", "/blobs/x?X-Amz-Signature=1", &[]), None);
    }

    /// Checks that no signature reaches `s3s` that it would compare with `==`, however it is
    /// written.
    #[test]
    fn ls_08_only_signatures_that_are_compared_in_constant_time_are_looked_at() {
        let (v4, ours) = ("X-Amz-Signature=1", authorization("s3"));
        let whole = (CONTENT_SHA256, "UNSIGNED-PAYLOAD");
        let header = [("authorization", &*ours), whole];
        for name in [
            "Signature",
            "%53ignature",
            "Signatur%65",
            "AWSAccessKeyId",
            "AWSAccessKey%49d",
            "a+b",
        ] {
            for query in [
                format!("{name}=1&{v4}"),
                format!("{v4}&{name}"),
                format!("{v4}&Expires=1&{name}=a%3Db"),
            ] {
                assert_eq!(
                    status("GET", &format!("/blobs/x?{query}"), &[]),
                    Some(403),
                    "{query}"
                );
            }
            assert_eq!(
                status("GET", &format!("/blobs/x?{name}=1"), &header),
                Some(403),
                "{name}"
            );
        }
        for scheme in [
            "AWS id:signature",
            &ours.to_lowercase(),
            &ours.replace("AWS4-", " AWS4-"),
            "",
        ] {
            assert_eq!(
                status("GET", "/blobs/x", &[("authorization", scheme), whole]),
                Some(403),
                "{scheme}"
            );
        }
        for chunks in [
            "AWS4-HMAC-SHA256-PAYLOAD",
            "AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
            "UNSIGNED-PAYLOAD-TRAILER",
        ] {
            let chunks = format!("STREAMING-{chunks}");
            let sent = [("content-length", "9"), (CONTENT_SHA256, chunks.as_str())];
            assert_eq!(
                status("PUT", &format!("/incoming/x?{v4}"), &sent),
                Some(403),
                "{chunks}"
            );
            assert_eq!(
                status("PUT", "/incoming/x", &[sent[0], sent[1], header[0]]),
                Some(403),
                "{chunks}"
            );
        }
        // Only one signature of version 4 over the whole request remains.
        let values = format!(
            "/incoming/x?{v4}&X-Amz-Credential=a%2Fb&X-Amz-SignedHeaders=host%3Bx-amz-date"
        );
        assert_eq!(
            status("PUT", &values, &[("content-length", "9"), whole]),
            None
        );
        assert_eq!(
            status(
                "PUT",
                "/incoming/x",
                &[("content-length", "9"), header[0], whole]
            ),
            None
        );
    }

    #[test]
    fn a_signature_in_a_header_is_whole() {
        let ours = authorization("s3");
        let hashed = "0".repeat(64);
        let with = |header: &str, hash: &str| {
            status(
                "GET",
                "/blobs/x",
                &[("authorization", header), (CONTENT_SHA256, hash)],
            )
        };
        assert_eq!(with(&ours, "UNSIGNED-PAYLOAD"), None);
        assert_eq!(with(&ours, &hashed), None);
        assert_eq!(with(&ours, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"), Some(403));
        assert_eq!(with(&ours, ""), Some(403));
        let unsigned = ours.replace("SignedHeaders=host", "SignedHeaders=");
        let no_hex = format!("{}g", ours.strip_suffix('0').unwrap());
        for broken in [
            &authorization("sts"),
            &format!("{ours}0"),
            &format!("{ours}, x"),
            &unsigned,
            &no_hex,
            "AWS4-HMAC-SHA256 x",
        ] {
            assert_eq!(with(broken, "UNSIGNED-PAYLOAD"), Some(403), "{broken}");
        }
        assert_eq!(
            with(&ours, &no_hex[no_hex.len() - 64..]),
            Some(403),
            "no sha256 either"
        );
        assert_eq!(
            status("GET", "/blobs/x", &[("authorization", &ours)]),
            Some(403)
        );
        let twice = [
            ("authorization", &*ours),
            ("authorization", &ours),
            (CONTENT_SHA256, &hashed),
        ];
        assert_eq!(status("GET", "/blobs/x", &twice), Some(403));
        let two_hashes = [
            ("authorization", &*ours),
            (CONTENT_SHA256, &hashed),
            (CONTENT_SHA256, &hashed),
        ];
        assert_eq!(status("GET", "/blobs/x", &two_hashes), Some(403));
    }

    #[test]
    fn a_post_deletes_keys_and_nothing_else() {
        let deletion = format!("{SIGNED}&delete");
        let length = ("content-length", "9");
        assert_eq!(status("POST", SIGNED, &[length]), Some(405));
        assert_eq!(status("POST", &deletion, &[length]), None);
        assert_eq!(
            status(
                "POST",
                &deletion,
                &[length, ("content-type", "Application/XML; charset=utf-8")]
            ),
            None
        );
        for kind in [
            "multipart/form-data; boundary=x",
            "Multipart/Form-Data",
            "",
            "application/x-www-form-urlencoded",
        ] {
            assert_eq!(
                status("POST", &deletion, &[length, ("content-type", kind)]),
                Some(405),
                "{kind}"
            );
        }
        let both = [
            length,
            ("content-type", "application/xml"),
            ("content-type", "multipart/form-data"),
        ];
        assert_eq!(status("POST", &deletion, &both), Some(405));
        assert_eq!(status("PATCH", SIGNED, &[]), Some(405));
        assert_eq!(status("CONNECT", SIGNED, &[]), Some(405));
    }

    #[test]
    fn bodies_are_announced_and_bounded() {
        let deletion = format!("{SIGNED}&delete");
        for (method, uri, most) in [
            ("PUT", SIGNED, 1 << 20),
            ("POST", &deletion, XML_BYTES_MAX),
            ("GET", SIGNED, 0),
        ] {
            let sent = |length: &str| status(method, uri, &[("content-length", length)]);
            assert_eq!(sent(&most.to_string()), None, "{method}");
            assert_eq!(sent(&(most + 1).to_string()), Some(400), "{method}");
            assert_eq!(sent("many"), Some(400), "{method}");
            assert_eq!(
                status(method, uri, &[("transfer-encoding", "chunked")]),
                Some(411),
                "{method}"
            );
        }
        assert_eq!(status("PUT", SIGNED, &[]), Some(411));
        assert_eq!(status("POST", &deletion, &[]), Some(411));
        assert_eq!(status("HEAD", SIGNED, &[]), None);
        assert_eq!(status("DELETE", SIGNED, &[("content-length", "0")]), None);
        let copy = ("x-amz-copy-source", "/incoming/x");
        assert_eq!(
            status("PUT", SIGNED, &[copy, ("content-length", "0")]),
            None
        );
        assert_eq!(
            status("PUT", SIGNED, &[copy, ("content-length", "1")]),
            Some(400)
        );
    }
}
