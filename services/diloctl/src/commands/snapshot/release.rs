//! Releases: a pulled folder is signed for people who know nothing of this system, and verified.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use identity::release::{Files, ReleaseKey, ReleasePublic};
use runtime::Failure;
use schemas::snapshot::SnapshotManifest;
use schemas::{Code, Digest, Hasher};
use serde::Serialize;

use super::{MODEL_FILE, STAMP_FILE};
use crate::context::Context;
use crate::files::{self, LOCK, STAGE, unwritable};
use crate::output::Record;

/// The file with the signature, by the convention of OpenSSF Model Signing.
const SIGNATURE_FILE: &str = "model.sig";
/// Bytes that are read at a time.
const PIECE_BYTES: usize = 1 << 20;

/// Makes a key, and writes its public half beside it. A key that is there is never replaced.
pub(super) fn make_key(context: &Context, path: &Path) -> Result<(), Failure> {
    let public = public_path(path);
    if let Some(there) = [path, &public].into_iter().find(|path| path.exists()) {
        return Err(unfit(format!("{} is there already", data::shown(there))));
    }
    let key = ReleaseKey::generate()?;
    key.write(path)?;
    files::replace(&public, key.public().pem().as_bytes())
        .map_err(|error| unwritable(&public, &error))?;
    context.printer.record(&Key {
        private: data::shown(path),
        public: data::shown(&public),
    });
    Ok(())
}

/// Signs a pulled folder. No other command writes into it meanwhile.
pub(super) fn sign(context: &Context, folder: &Path, key: &Path) -> Result<(), Failure> {
    let key = ReleaseKey::read(key)?;
    let stamp = folder.join(STAMP_FILE);
    let stamp = fs::read(&stamp).map_err(|error| unread(&stamp, &error))?;
    let lock = folder.join(LOCK);
    let _lock = files::wait_for_lock(&lock).map_err(|error| unwritable(&lock, &error))?;
    let manifest: SnapshotManifest = serde_json::from_slice(&stamp)
        .map_err(|error| unfit(format!("{STAMP_FILE} of {}: {error}", data::shown(folder))))?;
    let files = collect(folder)?;
    if !files.contains_key(MODEL_FILE) {
        return Err(unfit(format!(
            "{} has no {MODEL_FILE}",
            data::shown(folder)
        )));
    }
    let name = format!("{}-{}", manifest.run, manifest.round);
    let bundle = key.sign(&name, &files, &[LOCK, STAGE, SIGNATURE_FILE])?;
    let path = folder.join(SIGNATURE_FILE);
    files::replace(&path, &bundle).map_err(|error| unwritable(&path, &error))?;
    // What was written is what others read.
    check(folder, &key.public())?;
    context.printer.record(&Signed::of(folder, &files));
    Ok(())
}

/// Verifies a folder that was signed.
pub(super) fn verify(context: &Context, folder: &Path, key: &Path) -> Result<(), Failure> {
    let files = check(folder, &ReleasePublic::read(key)?)?;
    context.printer.record(&Signed::of(folder, &files));
    Ok(())
}

/// The files of a folder, each of which is as the signature says; it names all of them and no
/// other.
fn check(folder: &Path, key: &ReleasePublic) -> Result<Files, Failure> {
    let path = folder.join(SIGNATURE_FILE);
    let bundle = fs::read(&path).map_err(|error| unread(&path, &error))?;
    let (named, there) = (key.open(&bundle)?, collect(folder)?);
    let names = named.keys().chain(there.keys());
    let mut wrong = names.filter(|name| named.get(*name) != there.get(*name));
    let Some(name) = wrong.next() else {
        return Ok(named);
    };
    let what = match (named.contains_key(name), there.contains_key(name)) {
        (true, true) => "has other bytes than were signed",
        (true, false) => "was signed and is not there",
        (false, _) => "was not signed",
    };
    let detail = format!("{name} in {} {what}", data::shown(folder));
    Err(Failure::new(Code::ReleaseAltered, detail))
}

/// Hashes every file of a folder but the signature. Folders and links are not part of a release.
fn collect(folder: &Path) -> Result<Files, Failure> {
    let mut files = Files::new();
    let entries = fs::read_dir(folder).map_err(|error| unread(folder, &error))?;
    for entry in entries {
        let entry = entry.map_err(|error| unread(folder, &error))?;
        let path = entry.path();
        let name = entry.file_name().into_string();
        let name = name.map_err(|_| unfit(format!("{} is no text", data::shown(&path))))?;
        if [LOCK, STAGE, SIGNATURE_FILE].contains(&name.as_str()) {
            continue;
        }
        let kind = entry.file_type().map_err(|error| unread(&path, &error))?;
        if !kind.is_file() {
            return Err(unfit(format!("{} is no plain file", data::shown(&path))));
        }
        let digest = digest(&path).map_err(|error| unread(&path, &error))?;
        files.insert(name, digest);
    }
    Ok(files)
}

fn digest(path: &Path) -> io::Result<Digest> {
    let (mut file, mut hasher) = (File::open(path)?, Hasher::default());
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        match file.read(&mut piece)? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&piece[..read]),
        }
    }
}

fn public_path(path: &Path) -> PathBuf {
    let mut public = path.as_os_str().to_owned();
    public.push(".pub");
    public.into()
}

fn unfit(detail: String) -> Failure {
    Failure::new(Code::ReleaseInvalid, detail)
}

fn unread(path: &Path, error: &io::Error) -> Failure {
    unfit(format!("cannot read {}: {error}", data::shown(path)))
}

/// A new key.
#[derive(Serialize)]
struct Key {
    private: String,
    public: String,
}

impl Record for Key {
    fn lines(&self) -> Vec<(&'static str, String)> {
        vec![
            ("private key", self.private.clone()),
            ("public key", self.public.clone()),
        ]
    }
}

/// A folder whose signature holds.
#[derive(Serialize)]
struct Signed {
    folder: String,
    files: usize,
    model: Option<Digest>,
}

impl Signed {
    fn of(folder: &Path, files: &Files) -> Self {
        Self {
            folder: data::shown(folder),
            files: files.len(),
            model: files.get(MODEL_FILE).copied(),
        }
    }
}

impl Record for Signed {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            ("folder", self.folder.clone()),
            (
                "verified",
                format!("{} files, each as it was signed", self.files),
            ),
        ];
        lines.extend(self.model.map(|digest| (MODEL_FILE, digest.to_string())));
        lines
    }
}
