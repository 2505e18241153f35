"""`python3 -m attack.provenance ENVELOPE KEY`: verifies a signed statement of provenance without any code of this project.

The reference implementations read it: `securesystemslib` the envelope (DSSE) and its signature, `in-toto-attestation` the statement
(in-toto v1) and its predicate (SLSA provenance v1), field by field. KEY is the public key in the text form of nkeys. Prints the
statement's subject, dependencies and builder as JSON; status 1 if it does not hold.
"""

import base64
import json
import sys

from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.provenance.v1.provenance_pb2 import Provenance
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement
from in_toto_attestation.v1.statement_pb2 import Statement as StatementProto
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
# The text form of nkeys is base32 over a byte for the kind, the key, and a checksum of two bytes.
USER = 20 << 3


def public_key(text: str) -> SSlibKey:
    raw = base64.b32decode(text + "=" * (-len(text) % 8))
    if len(raw) != 35 or raw[0] != USER:
        raise ValueError(f"{text} is no user's key")
    return SSlibKey(text, "ed25519", "ed25519", {"public": raw[1:33].hex()})


def verified(envelope: bytes, key: str) -> dict:
    signed = Envelope.from_dict(json.loads(envelope))
    if signed.payload_type != PAYLOAD_TYPE:
        raise ValueError(f"a document of type {signed.payload_type}")
    signed.verify([public_key(key)], 1)
    document = json.loads(signed.payload)
    statement = ParseDict(document, StatementProto())
    Statement.copy_from_pb(statement).validate()
    if statement.predicate_type != PREDICATE_TYPE:
        raise ValueError(f"a predicate of type {statement.predicate_type}")
    provenance = ParseDict(document["predicate"], Provenance())
    details = provenance.run_details
    made_from = provenance.build_definition.resolved_dependencies
    for resource in [*made_from, *details.byproducts]:
        ResourceDescriptor.copy_from_pb(resource).validate()
    if details.builder.id != f"nkey:{key}":
        raise ValueError(f"made by {details.builder.id}, signed by {key}")
    named = lambda all: [[one.name, one.digest["sha256"]] for one in all]  # noqa: E731
    return {
        "buildType": provenance.build_definition.build_type,
        "subject": named(statement.subject),
        "dependencies": named(made_from),
        "byproducts": named(details.byproducts),
        "version": dict(details.builder.version),
        "invocation": details.metadata.invocation_id,
    }


if __name__ == "__main__":
    with open(sys.argv[1], "rb") as file:
        text = file.read()
    try:
        print(json.dumps(verified(text, sys.argv[2])))
    except Exception as error:  # whatever a library raises, it does not hold
        sys.exit(f"{type(error).__name__}: {error}")
