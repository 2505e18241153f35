//! The files of a cluster's audit service.

use std::fs;
use std::path::{Path, PathBuf};

use super::Cluster;
use crate::PATIENCE;

impl Cluster {
    /// Starts a further audit service of this name, whose files lie in `folder`.
    ///
    /// # Panics
    /// It does not become ready.
    pub async fn start_audit_in(&mut self, name: &str, folder: &Path) {
        self.launch(self.audit_recipe_in(name, folder)).await;
    }

    /// Waits until the files of the audit service keep everything that was stored up to now.
    ///
    /// # Panics
    /// They do not get there in time.
    pub async fn kept(&self) {
        let evidence = self.evidence().await;
        evidence.copied().await;
        let newest = format!("\"stream_sequence\":{},", evidence.length().await);
        let folder = self.domain.layout().audit_files();
        let holds = |file: PathBuf| fs::read_to_string(file).is_ok_and(|t| t.contains(&newest));
        let there = || files(&folder).into_iter().any(holds).then_some(());
        let kept = crate::look(PATIENCE, there).await;
        kept.unwrap_or_else(|| panic!("{newest} is in no file of {}", folder.display()));
    }
}

/// All files below a folder; files that vanish meanwhile are left out.
pub(super) fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let of = |path: PathBuf| {
        if path.is_dir() {
            files(&path)
        } else {
            vec![path]
        }
    };
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .flat_map(of)
        .collect()
}
