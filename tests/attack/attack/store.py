"""Attacks on the store with boto3, with forged keys, and with overheard URLs."""

import asyncio
import gzip
import hashlib
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import boto3
import botocore.exceptions
import urllib3
from botocore import UNSIGNED
from botocore.config import Config

from .bomb import bomb
from .case import case, withstood

# What a client of a store may be expected to ask for.
OPERATIONS = {
    "list_buckets": {},
    "list_objects_v2": {"Bucket": "blobs"},
    "list_objects": {"Bucket": "incoming"},
    "list_object_versions": {"Bucket": "blobs"},
    "list_multipart_uploads": {"Bucket": "incoming"},
    "head_bucket": {"Bucket": "blobs"},
    "create_bucket": {"Bucket": "thief"},
    "delete_bucket": {"Bucket": "blobs"},
    "get_bucket_acl": {"Bucket": "blobs"},
    "get_bucket_policy": {"Bucket": "blobs"},
    "put_bucket_policy": {"Bucket": "blobs", "Policy": "{}"},
    "put_bucket_acl": {"Bucket": "blobs", "ACL": "public-read-write"},
    "delete_bucket_policy": {"Bucket": "blobs"},
    "put_bucket_lifecycle_configuration": {"Bucket": "blobs", "LifecycleConfiguration": {"Rules": []}},
    "get_object": {"Bucket": "blobs", "Key": None},
    "head_object": {"Bucket": "blobs", "Key": None},
    "put_object": {"Bucket": "blobs", "Key": None, "Body": b"x"},
    "delete_object": {"Bucket": "blobs", "Key": None},
    "delete_objects": {"Bucket": "blobs", "Delete": {"Objects": [{"Key": "x"}]}},
    "copy_object": {"Bucket": "incoming", "Key": "x", "CopySource": "blobs/x"},
    "create_multipart_upload": {"Bucket": "incoming", "Key": "x"},
    "put_object_tagging": {"Bucket": "blobs", "Key": None, "Tagging": {"TagSet": []}},
}


def client(facts: dict, **keys):
    """A client of the store; without keys its requests are not signed."""
    signing = {} if keys else {"signature_version": UNSIGNED}
    config = Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}, **signing)
    return boto3.client(
        "s3",
        endpoint_url=facts["store"],
        region_name="us-east-1",
        verify=facts["ca"],
        config=config,
        **keys,
    )


async def refused_all(facts: dict, s3, who: str) -> None:
    for operation, arguments in OPERATIONS.items():
        filled = {k: facts["object"]["key"] if v is None else v for k, v in arguments.items()}
        try:
            await asyncio.to_thread(getattr(s3, operation), **filled)
        except botocore.exceptions.ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            withstood(400 <= status < 500 or status == 501, f"{operation} by {who}: status {status}")
        else:
            withstood(False, f"{operation} by {who} was done")


@case("LA-01", "LS-05")
async def the_store_answers_nobody_without_a_signature(facts: dict) -> None:
    await refused_all(facts, client(facts), "nobody")


@case("LS-05", "TL-18")
async def keys_that_the_store_does_not_know_open_nothing(facts: dict) -> None:
    real = dict(parse_qsl(urlsplit(facts["get"]["href"]).query))["X-Amz-Credential"].split("/")[0]
    for access in ["AKIAIOSFODNN7EXAMPLE", "minioadmin", real]:
        s3 = client(facts, aws_access_key_id=access, aws_secret_access_key="minioadmin")
        await refused_all(facts, s3, access)


class Http:
    """Requests as they are written, without a library's help; from an address of this machine, if
    one is given."""

    def __init__(self, facts: dict, address: str | None = None):
        source = {"source_address": (address, 0)} if address else {}
        self.pool = urllib3.PoolManager(ca_certs=facts["ca"], retries=False, **source)

    async def status(
        self, method: str, href: str, headers: dict, body: bytes | None = None, wait: float = 20.0
    ) -> int:
        """The status of the answer; 0 if there is none in time, or the connection ended instead."""
        try:
            answer = await asyncio.to_thread(
                self.pool.request, method, href, headers=headers, body=body, redirect=False, timeout=wait
            )
        except urllib3.exceptions.HTTPError:
            return 0
        return answer.status


def refused(status: int) -> bool:
    return status == 0 or 400 <= status < 500 or status == 501


@case("TL-18", "TL-27", "LS-05")
async def an_overheard_url_works_for_its_object_and_method_only(facts: dict) -> None:
    http = Http(facts)
    get, put = facts["get"], facts["put"]
    assert await http.status("GET", get["href"], get["headers"]) == 200, "the URL itself works"
    again = await http.status("GET", get["href"], get["headers"])
    withstood(again == 403, f"GET with a URL that its holder has used: {again}")
    for grant in [get, put]:
        for method in {"GET", "PUT", "POST", "DELETE", "HEAD", "PATCH", "OPTIONS"} - {grant["method"]}:
            # A store may take HEAD where it takes GET; it tells less.
            if (grant["method"], method) != ("GET", "HEAD"):
                status = await http.status(method, grant["href"], grant["headers"])
                withstood(refused(status), f"{method} with a URL for {grant['method']}: {status}")
        url = urlsplit(grant["href"])
        query = parse_qsl(url.query, keep_blank_values=True)
        paths = [
            url.path.replace(facts["object"]["hex"], "0" * 64),
            url.path[:-1] + ("0" if url.path[-1] != "0" else "1"),
            url.path + "/x",
            "/incoming/x/../.." + url.path + "x",
            url.path.replace("blobs", "incoming") if "blobs" in url.path else "/blobs/" + url.path,
            url.path.replace("/", "%2f"),
            "/",
        ]
        for path in set(paths) - {url.path}:
            status = await http.status(grant["method"], urlunsplit(url._replace(path=path)), grant["headers"], b"x")
            withstood(refused(status), f"{grant['method']} {path}: {status}")
        for place, (name, value) in enumerate(query):
            changed = "604800" if name == "X-Amz-Expires" else ("0" if value[-1:] != "0" else "1")
            value = changed if name == "X-Amz-Expires" else value[:-1] + changed
            for altered in [
                query[:place] + [(name, value)] + query[place + 1 :],
                query[:place] + query[place + 1 :],
                query + [(name, value)],
            ]:
                href = urlunsplit(url._replace(query=urlencode(altered)))
                status = await http.status(grant["method"], href, grant["headers"], b"x")
                withstood(refused(status), f"{grant['method']} with {name} altered: {status}")
        for more in [{"x-amz-copy-source": "/blobs/" + facts["object"]["key"]}, {"Host": "elsewhere"}]:
            status = await http.status(grant["method"], grant["href"], {**grant["headers"], **more}, b"x")
            withstood(refused(status), f"{grant['method']} with {list(more)}: {status}")


# What was refused and must be told, by the address it came from, of which each kind has its own:
# the kind, method and bucket, and the reason. The record is read last.
MISUSED: dict[str, tuple[str, str, str]] = {}


@case("TL-18", "TL-20", "TL-27", "TL-29")
async def each_kind_of_misused_url_is_refused_and_told_with_its_reason(facts: dict) -> None:
    """See `told.py` for the second half."""
    once, put, ended = facts["once"], facts["put"], facts["ended"]
    assert await Http(facts).status("GET", once["href"], once["headers"]) == 200, "the URL itself works"
    victim, thief = facts["holders"]["victim"]["key"], facts["holders"]["thief"]["key"]
    hexadecimal = facts["object"]["hex"]

    def replaced(grant: dict, old: str, new: str) -> str:
        assert old in grant["href"], f"{old} is not in the URL"
        return grant["href"].replace(old, new)

    signature = dict(parse_qsl(urlsplit(put["href"]).query))["X-Amz-Signature"]
    forged = ("0" if signature[0] != "0" else "1") + signature[1:]
    no_match = "SignatureDoesNotMatch"
    kinds = {
        "used up": ("GET", once["href"], once, "blobs", "its object was read with it"),
        "ended": ("GET", ended["href"], ended, "blobs", "Request has expired"),
        "another object's": ("GET", replaced(once, hexadecimal, "0" * 64), once, "blobs", no_match),
        "another worker's place": ("PUT", replaced(put, f"/{victim}/", f"/{thief}/"), put, "incoming", no_match),
        "altered": ("PUT", replaced(put, signature, forged), put, "incoming", no_match),
        "another method's": ("PUT", once["href"], once, "blobs", no_match),
    }
    for number, (kind, (method, href, grant, bucket, reason)) in enumerate(kinds.items()):
        # A sender is told with its first refusals one by one; so each kind has a sender.
        address = f"127.0.1.{number + 1}"
        body = bytes.fromhex(put["bytes"]) if method == "PUT" else None
        status = await Http(facts, address).status(method, href, grant["headers"], body)
        withstood(status == 403, f"a URL that is {kind}: {status}")
        MISUSED[address] = (kind, f"{method} {bucket}", reason)


@case("TL-18", "TL-26")
async def an_upload_is_the_bytes_that_were_announced_or_nothing(facts: dict) -> None:
    http = Http(facts)
    put, right = facts["put"], bytes.fromhex(facts["put"]["bytes"])
    assert hashlib.sha256(right).hexdigest() in put["href"], "the object is named by its digest"
    wrong = {
        "other bytes": bytes([right[0] ^ 1]) + right[1:],
        "truncated": right[:-1],
        "longer": right + b"x",
        "nothing": b"",
        "a thousand times as long": right * 1000,
    }
    for what, body in wrong.items():
        # The length is signed, so it can be told as announced or as it is. With the announced length
        # a longer body is the right one, and the start of a request that is none.
        lengths = [{"Content-Length": str(len(body))}]
        if len(body) <= len(right):
            lengths.append({})
        for length in lengths:
            headers = {name: value for name, value in put["headers"].items() if name.lower() not in map(str.lower, length)}
            # The store waits for bytes that were announced, for longer than this.
            wait = 20.0 if length else 1.0
            status = await http.status("PUT", put["href"], {**headers, **length}, body, wait)
            withstood(refused(status), f"{what}, {length or 'with the announced length'}: {status}")
    other = {name: value for name, value in put["headers"].items() if name.lower() != "x-amz-content-sha256"}
    unsigned = {**other, "x-amz-content-sha256": "UNSIGNED-PAYLOAD"}
    status = await http.status("PUT", put["href"], unsigned, wrong["other bytes"])
    withstood(refused(status), f"other bytes under UNSIGNED-PAYLOAD: {status}")


@case("TL-14", "TL-18")
async def a_used_upload_url_changes_nothing(facts: dict) -> None:
    http, used = Http(facts), facts["used"]
    right = bytes.fromhex(used["bytes"])
    status = await http.status("PUT", used["href"], used["headers"], b"x" * len(right))
    withstood(refused(status), f"other bytes over an upload: {status}")
    # The same bytes again are at most the same object again; the test looks at the store.
    await http.status("PUT", used["href"], used["headers"], right)


@case("FG-11", "TL-18")
async def what_is_uploaded_is_never_unpacked(facts: dict) -> None:
    """A bomb, and the right bytes in a form that a store which unpacks would take."""
    http, put = Http(facts), facts["put"]
    right, whole = bytes.fromhex(put["bytes"]), bomb()
    packed = gzip.compress(right)
    plain = {name: value for name, value in put["headers"].items() if name.lower() != "content-length"}
    for what, body in {"a bomb": whole, "the start of a bomb": whole[: len(right)], "packed bytes": packed}.items():
        for coding in [{"Content-Encoding": "gzip"}, {"Transfer-Encoding": "gzip, chunked"}, {"x-amz-decoded-content-length": str(len(right))}]:
            status = await http.status("PUT", put["href"], {**plain, **coding, "Content-Length": str(len(body))}, body)
            withstood(refused(status), f"{what} with {coding}: {status}")
