//! Signatures that stand in the header `authorization` instead of the URL.

use identity::AccessKey;
use jiff::Timestamp;
use objects::BlobKey;
use schemas::{Digest, ObjectRef};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::connections::tls;
use crate::rights::{ALL, checksum};
use crate::support::{TestStore, key_of, noise};

/// Bytes of a block of sha256.
const BLOCK_BYTES: usize = 64;

/// HMAC-SHA256 (RFC 2104), for keys that are shorter than a block.
fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let padded = |with: u8| -> Vec<u8> {
        let key = key.iter().copied().chain(std::iter::repeat(0));
        key.take(BLOCK_BYTES).map(|byte| byte ^ with).collect()
    };
    let inner = Digest::of(&[&padded(0x36)[..], message].concat());
    let outer = [&padded(0x5c)[..], inner.as_bytes()].concat();
    Digest::of(&outer).as_bytes().to_vec()
}

/// A request whose header holds the signature of all its other headers.
struct SignedRequest<'a> {
    key: &'a AccessKey,
    method: &'static str,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl SignedRequest<'_> {
    /// The text of the header `authorization`.
    fn authorization(&self, stamp: &str) -> String {
        let (day, _) = stamp.split_once('T').unwrap();
        let scope = format!("{day}/us-east-1/s3/aws4_request");
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| *name).collect();
        let names = names.join(";");
        let lines: String = self
            .headers
            .iter()
            .map(|(name, value)| format!("{name}:{value}\n"))
            .collect();
        let (method, path) = (self.method, &self.path);
        let request = format!("{method}\n{path}\n\n{lines}\n{names}\nUNSIGNED-PAYLOAD");
        let digest = Digest::of(request.as_bytes()).hex();
        let text = format!("AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}");
        let secret = format!("AWS4{}", self.key.expose_secret());
        let key = [day, "us-east-1", "s3", "aws4_request"]
            .iter()
            .fold(secret.into_bytes(), |key, part| hmac(&key, part.as_bytes()));
        let signature: String = hmac(&key, text.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let id = self.key.id();
        format!(
            "AWS4-HMAC-SHA256 Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}"
        )
    }

    async fn status(mut self, store: &TestStore) -> u16 {
        let stamp = Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
        self.headers.extend([
            ("host", store.address.to_string()),
            ("x-amz-content-sha256", "UNSIGNED-PAYLOAD".to_owned()),
            ("x-amz-date", stamp.clone()),
        ]);
        self.headers.sort();
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let authorization = self.authorization(&stamp);
        head.push_str(&format!(
            "authorization: {authorization}\r\nconnection: close\r\n\r\n"
        ));
        let mut stream = tls(store.address, &store.authority).await;
        stream.write_all(head.as_bytes()).await.unwrap();
        let _closed = stream.write_all(&self.body).await;
        let mut answer = Vec::new();
        let _closed = stream.read_to_end(&mut answer).await;
        let text = String::from_utf8_lossy(&answer).into_owned();
        let mut words = text.split(' ');
        words
            .nth(1)
            .and_then(|status| status.parse().ok())
            .unwrap_or_else(|| panic!("{text}"))
    }
}

/// A presigned URL is for one object and ends soon. A process with one of these two keys in its
/// hands must not get more than that, however it signs.
#[tokio::test]
async fn the_keys_of_urls_have_no_rights_but_through_urls() {
    let store = TestStore::start().await;
    let object = store.buckets().put_blob(noise(40, 1)).await.unwrap();
    let read = async |key, method| {
        let request = SignedRequest {
            key,
            method,
            path: format!("/blobs/{}", BlobKey(object.digest)),
            headers: Vec::new(),
            body: Vec::new(),
        };
        request.status(&store).await
    };
    let body = noise(50, 2);
    let upload = async |key| {
        let values = [body.len().to_string(), "*".to_owned(), checksum(&body)];
        let request = SignedRequest {
            key,
            method: "PUT",
            path: format!("/incoming/{}", key_of(ObjectRef::of(&body))),
            headers: ALL.into_iter().zip(values).collect(),
            body: body.to_vec(),
        };
        request.status(&store).await
    };
    let keys = &store.keys;
    for method in ["GET", "HEAD"] {
        assert_eq!(read(&keys.get, method).await, 403, "{method}");
        assert_eq!(read(&keys.put, method).await, 403, "{method}");
        assert_eq!(read(&keys.admin, method).await, 200, "{method}");
    }
    assert_eq!(upload(&keys.put).await, 403);
    assert_eq!(upload(&keys.get).await, 403);
    assert_eq!(store.uploads(), Vec::<String>::new());
    assert_eq!(upload(&keys.admin).await, 200, "it was signed well");
    let stranger = AccessKey::generate();
    assert_eq!(read(&stranger, "GET").await, 403);
}
