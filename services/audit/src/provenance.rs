//! Verifies the ancestry of a snapshot or a contribution: objects against digests, manifests and
//! statements against the ledger, signatures against keys. The ledger itself was checked before.

use std::sync::Arc;

use audit_core::ancestry::{Draw, Handed, History, SavedSnapshot};
use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use identity::TrustBundle;
use identity::dsse::{envelope, open_data_provenance, open_provenance, verify_provenance};
use identity::event::verify_statement;
use recompute::Objects;
use schemas::data::DataManifest;
use schemas::provenance::Provenance;
use schemas::snapshot::SnapshotManifest;
use schemas::{Code, Digest, ObjectRef, PublicKey, Refusal, RunId};

/// Objects that are read side by side. Their bytes are in memory only while they are hashed.
const READS_MAX: usize = 4;

/// What is needed to verify something of one run.
#[derive(Clone, Copy)]
pub struct Verifier<'a> {
    /// The keys of the domain.
    pub trust: &'a TrustBundle,
    /// Where objects are read.
    pub objects: &'a dyn Objects,
    /// The run.
    pub run: &'a RunId,
    /// What the ledger says about it.
    pub history: &'a History,
}

/// A snapshot whose manifest and statement agree with the ledger.
#[derive(Clone, Debug)]
pub struct Attested {
    /// The manifest.
    pub manifest: SnapshotManifest,
    /// The key that signed the statement.
    pub key: PublicKey,
    /// The statement in its envelope.
    pub envelope: Bytes,
}

/// Opens the signed statement about a snapshot, and checks that it is one about these objects. It
/// does not ask the ledger.
///
/// # Errors
/// [`Code::StatementForged`].
pub fn open_statement(
    trust: &TrustBundle,
    envelope: &[u8],
    stored: ObjectRef,
) -> Result<(Provenance, PublicKey), Refusal> {
    let (payload, key) = open_provenance(envelope, &trust.audit_keys)?;
    let forged = |what: String| Refusal::new(Code::StatementForged, what);
    let statement: Provenance =
        serde_json::from_slice(&payload).map_err(|error| forged(error.to_string()))?;
    let manifest = statement.subject.first();
    let named = manifest.and_then(|manifest| manifest.digest.get("sha256"));
    let digest = stored.digest;
    if named != Some(&digest.hex()) {
        return Err(forged(format!(
            "a statement about something else than {digest}"
        )));
    }
    Ok((statement, key))
}

impl Verifier<'_> {
    /// Verifies the manifest and the statement of a snapshot. Nothing that they name is read.
    ///
    /// # Errors
    /// [`Code::ObjectAltered`], [`Code::LineageDiffers`] and [`Code::StatementForged`] are
    /// evidence, [`Code::LineageUnproven`] is none.
    pub async fn snapshot(&self, snapshot: &SavedSnapshot) -> Result<Attested, Refusal> {
        let digest = snapshot.manifest.digest;
        let differs = |what: String| {
            let detail = format!("snapshot {}, {digest}: {what}", snapshot.round);
            Refusal::new(Code::LineageDiffers, detail)
        };
        let bytes = self.read("manifest", snapshot.manifest).await?;
        let manifest: SnapshotManifest = serde_json::from_slice(&bytes)
            .map_err(|error| differs(format!("not a manifest: {error}")))?;
        snapshot
            .check_manifest(self.run, self.history, &manifest)
            .map_err(differs)?;
        let stored = snapshot.statement.ok_or_else(|| {
            let detail = format!(
                "snapshot {}, {digest}, has no statement: an earlier release saved it",
                snapshot.round
            );
            Refusal::new(Code::LineageUnproven, detail)
        })?;
        let envelope = self.read("statement", stored).await?;
        let (statement, key) = open_statement(self.trust, &envelope, snapshot.manifest)?;
        let domain = self.trust.domain.as_str();
        let checked = snapshot.check_statement(&statement, &manifest, domain, &key);
        checked.map_err(|what| Refusal::new(Code::StatementForged, what))?;
        Ok(Attested {
            manifest,
            key,
            envelope,
        })
    }

    /// Verifies the signature of a contribution's maker.
    ///
    /// # Errors
    /// [`Code::LineageDiffers`] if the signature is not its maker's, [`Code::LineageUnproven`] if
    /// the signed bytes cannot be made again.
    pub fn contribution(&self, handed: &Handed) -> Result<(), Refusal> {
        let lease = handed.lease;
        let bytes = handed.signed_bytes(self.run, self.history.spec_digest);
        let bytes = bytes.ok_or_else(|| {
            let detail = format!("{lease}: the bytes that its worker signed cannot be made again");
            Refusal::new(Code::LineageUnproven, detail)
        })?;
        let (domain, key) = (self.trust.domain.as_str(), &handed.audit_key);
        verify_statement(domain, key, &handed.signature, &bytes).map_err(|error| {
            let detail = format!("{lease}: the signature is not that of {key}: {error}");
            Refusal::new(Code::LineageDiffers, detail)
        })
    }

    /// Verifies that a contribution's maker signed what it was made from, and returns the statement
    /// in its envelope, as tools of others read it. None if an earlier release accepted the
    /// contribution: then it has none.
    ///
    /// # Errors
    /// [`Code::StatementForged`] if its maker has not signed what ledger and data give,
    /// [`Code::LineageUnproven`] if the ledger does not say what its unit started from.
    pub fn envelope(&self, handed: &Handed, draw: &Draw) -> Result<Option<Vec<u8>>, Refusal> {
        let Some(signature) = &handed.provenance else {
            return Ok(None);
        };
        let (lease, key) = (handed.lease, &handed.audit_key);
        let domain = self.trust.domain.as_str();
        let statement = handed.provenance_statement(self.history, draw, domain);
        let statement = statement.ok_or_else(|| {
            let detail = format!("{lease}: the ledger does not say what it was made from");
            Refusal::new(Code::LineageUnproven, detail)
        })?;
        let statement = statement.to_json();
        verify_provenance(key, signature, &statement).map_err(|error| {
            let detail = format!("{lease}: {key} has not signed what it was made from: {error}");
            Refusal::new(Code::StatementForged, detail)
        })?;
        Ok(Some(envelope(&statement, key, signature)))
    }

    /// Verifies the statement about the run's data set, and returns it in its envelope with the key
    /// that has signed it. None if the run's settings name no statement.
    ///
    /// # Errors
    /// As [`Verifier::snapshot`].
    pub async fn data_envelope(
        &self,
        data: &DataManifest,
    ) -> Result<Option<(Bytes, PublicKey)>, Refusal> {
        let spec = &self.history.spec;
        let Some(statement) = spec.data_provenance else {
            return Ok(None);
        };
        let envelope = self.read("statement about the data set", statement).await?;
        let domain = self.trust.domain.as_str();
        let (_, key) = open_data_provenance(&envelope, domain, data, spec.data)?;
        Ok(Some((envelope, key)))
    }

    /// The order in which the run's units take its data.
    ///
    /// # Errors
    /// As [`Verifier::data`].
    pub async fn draw(&self) -> Result<Draw, Refusal> {
        Ok(Draw::new(&self.history.spec, Arc::new(self.data().await?)))
    }

    /// The run's data set, which names the shards.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn data(&self) -> Result<DataManifest, Refusal> {
        let bytes = self.read("data set", self.history.spec.data).await?;
        serde_json::from_slice(&bytes).map_err(|error| {
            let detail = format!("data set {}: {error}", self.history.spec.data.digest);
            Refusal::new(Code::LineageDiffers, detail)
        })
    }

    /// Reads every object of a snapshot back, and hashes it: configuration, layout, data manifest,
    /// weights, outer state, the published copy, and the lists of these. `done` hears of each.
    ///
    /// # Errors
    /// As [`Verifier::snapshot`]; the text names the object.
    pub async fn read_back(
        &self,
        manifest: &SnapshotManifest,
        done: &(dyn Fn(ObjectRef) + Sync),
    ) -> Result<u64, Refusal> {
        let mut objects = vec![
            ("configuration".to_owned(), manifest.config),
            ("layout".to_owned(), manifest.layout),
            ("data set".to_owned(), manifest.data),
        ];
        let slots = manifest
            .slots
            .values()
            .map(|chunks| ("outer state", chunks));
        let published = ("published weights", &manifest.broadcast.chunks);
        let weights = ("weights", &manifest.weights);
        for (what, chunks) in [weights, published].into_iter().chain(slots) {
            let read = self.objects.chunks(chunks).await;
            let read = read.map_err(|refusal| fault(what, chunks.digest(), &refusal))?;
            let named = read.into_iter().enumerate();
            objects.extend(named.map(|(at, chunk)| (format!("chunk {at} of {what}"), chunk)));
        }
        let count = objects.len() as u64;
        let reads = objects.into_iter().map(|(what, object)| async move {
            self.read(&what, object).await.map(|_| done(object))
        });
        let mut reads = stream::iter(reads).buffer_unordered(READS_MAX);
        while reads.try_next().await?.is_some() {}
        Ok(count)
    }

    async fn read(&self, what: &str, object: ObjectRef) -> Result<Bytes, Refusal> {
        let read = self.objects.fetch(object).await;
        read.map_err(|refusal| fault(what, object.digest, &refusal))
    }
}

/// The code that a refused read has in an audit: only bytes that were hashed are evidence.
fn fault(what: &str, object: Digest, refusal: &Refusal) -> Refusal {
    let Refusal { code, detail, .. } = refusal;
    match code {
        Code::ObjectMismatch | Code::ObjectTooLarge => {
            Refusal::new(Code::ObjectAltered, format!("{what}, {object}: {detail}"))
        }
        Code::ListInvalid | Code::ListMismatch => {
            Refusal::new(Code::LineageDiffers, format!("{what}, {object}: {detail}"))
        }
        code => {
            let text = format!("{what}, {object}: {code} {}: {detail}", code.title());
            Refusal::new(Code::LineageUnproven, text)
        }
    }
}
