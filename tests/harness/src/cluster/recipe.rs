//! The start of each process of a cluster.

use std::fs;
use std::path::{Path, PathBuf};

use schemas::permission::Role;

use super::{BROKER, Cluster, STORE, shown};
use crate::binary::program;
use crate::process::{Ready, Recipe};

/// Opens the layers that TLS protects.
pub(super) const PLAINTEXT: &str =
    r#"[{layer="bus",reason="a measurement"},{layer="bulk",reason="a measurement"}]"#;

impl Cluster {
    pub(super) fn recipe(
        &self,
        name: &str,
        binary: &str,
        settings: &[(&str, String)],
        more: Vec<String>,
    ) -> Recipe {
        let mut arguments = more;
        if self.options.mutual_tls {
            arguments.extend(["--set".to_owned(), "auth.mutual_tls=true".to_owned()]);
        }
        if self.options.plaintext {
            arguments.extend(["--set".to_owned(), format!("auth.exceptions={PLAINTEXT}")]);
        }
        self.recipe_as_configured(name, binary, settings, arguments)
    }

    /// A recipe that says nothing of mutual TLS.
    fn recipe_as_configured(
        &self,
        name: &str,
        binary: &str,
        settings: &[(&str, String)],
        more: Vec<String>,
    ) -> Recipe {
        let folder = self.path("work").join(name);
        fs::create_dir_all(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut arguments = more;
        arguments.extend(["--log".to_owned(), self.options.log.clone()]);
        for (key, value) in settings {
            arguments.extend(["--set".to_owned(), format!("{key}={value}")]);
        }
        Recipe {
            name: name.to_owned(),
            program: program(binary),
            arguments,
            environment: Vec::new(),
            folder,
            log: self.path("logs").join(format!("{name}.log")),
            ready: Ready::File(self.ready_file(name)),
        }
    }

    pub(super) fn ready_file(&self, name: &str) -> PathBuf {
        self.path("ready").join(name)
    }

    pub(super) fn store_recipe(&self, listen: &str) -> Recipe {
        let layout = self.domain.layout();
        let mut settings = vec![
            ("store_server.listen", listen.to_owned()),
            ("store_server.root", shown(&self.path("store"))),
            ("store_server.keys", shown(&layout.store_keys())),
            ("store_server.free_bytes_min", "0".to_owned()),
            ("metrics.listen", self.options.metrics.clone()),
            ("service.ready_file", shown(&self.ready_file(STORE))),
        ];
        if !self.options.plaintext {
            settings.extend([
                ("store_server.tls_cert", shown(&layout.server_certificate())),
                ("store_server.tls_key", shown(&layout.server_key())),
            ]);
        }
        if self.options.mutual_tls {
            settings.push(("store_server.tls_clients", shown(&layout.clients())));
        }
        self.recipe(STORE, "diloco-store", &settings, Vec::new())
    }

    pub(super) fn coordinator_recipe(&self, name: &str) -> Recipe {
        let mut settings = vec![
            ("domain", shown(self.domain.layout().folder())),
            ("bus.url", self.bus_url.clone()),
            ("store.url", self.store_url()),
            ("store.check", "false".to_owned()),
            ("limits.heartbeat", "1s".to_owned()),
            ("metrics.listen", self.options.metrics.clone()),
        ];
        let further = self.options.coordinator.iter();
        settings.extend(further.map(|(key, value)| (*key, (*value).to_owned())));
        self.recipe(name, "diloco-coordinator", &settings, self.ready_flag(name))
    }

    pub(super) fn audit_recipe(&self) -> Recipe {
        let mut settings = vec![
            ("domain", shown(self.domain.layout().folder())),
            ("bus.url", self.bus_url.clone()),
            ("metrics.listen", self.options.metrics.clone()),
        ];
        // Some tests start no store.
        let store = self.processes.contains_key("store");
        settings.extend(store.then(|| ("store.url", self.store_url())));
        if !self.options.sentry {
            settings.push(("audit.sentry_key", shown(&self.path("no-sentry.nk"))));
        }
        let broker = self.processes.get(BROKER);
        settings.extend(broker.map(|broker| ("audit.broker_log", shown(broker.log_file()))));
        self.recipe("audit", "diloco-audit", &settings, self.ready_flag("audit"))
    }

    /// A further audit service, with files of its own.
    pub(super) fn audit_recipe_in(&self, name: &str, folder: &std::path::Path) -> Recipe {
        let mut recipe = self.audit_recipe();
        let more = self.recipe(
            name,
            "diloco-audit",
            &[("audit.folder", shown(folder))],
            Vec::new(),
        );
        recipe.arguments.extend([
            "--set".to_owned(),
            format!("audit.folder={}", shown(folder)),
        ]);
        let ready = shown(&self.ready_file("audit"));
        let own = shown(&self.ready_file(name));
        for argument in &mut recipe.arguments {
            *argument = argument.replace(&ready, &own);
        }
        Recipe {
            arguments: recipe.arguments,
            ..more
        }
    }

    pub(super) fn registrar_recipe(&self) -> Recipe {
        let mut settings = vec![
            ("domain", shown(self.domain.layout().folder())),
            ("bus.url", self.bus_url.clone()),
            ("metrics.listen", self.options.metrics.clone()),
        ];
        let lifetime = self.options.token_lifetime;
        settings.extend(lifetime.map(|life| ("registrar.lifetime", format!("{}ms", life.get()))));
        let ready = self.ready_flag("registrar");
        self.recipe("registrar", "diloco-registrar", &settings, ready)
    }

    pub(super) fn worker_recipe(&self, name: &str, more: &[&str]) -> Recipe {
        self.issue(Role::Worker, name);
        self.issued_recipe(name, more)
    }

    /// A worker whose credentials lie in the domain's folder.
    pub(super) fn issued_recipe(&self, name: &str, more: &[&str]) -> Recipe {
        let layout = self.domain.layout();
        let mut settings = vec![
            ("bus.url", self.bus_url.clone()),
            ("bus.credentials", shown(&layout.credentials(name))),
            ("bus.ca", shown(&layout.ca())),
            ("worker.run", self.run().to_string()),
            ("worker.audit_key", shown(&layout.audit_key(name))),
            ("worker.trust", shown(&layout.trust())),
            (
                "worker.state",
                shown(&self.path("work").join(name).join("state")),
            ),
            ("service.ready_file", shown(&self.ready_file(name))),
            (
                "cache.folder",
                shown(&self.path("work").join(name).join("cache")),
            ),
            ("training.device", "cpu".to_owned()),
        ];
        // A worker with a CA for the store takes no plaintext from it.
        if !self.options.plaintext {
            settings.push(("store.ca", shown(&layout.ca())));
        }
        let further: Vec<(&str, String)> = more
            .iter()
            .map(|setting| {
                setting
                    .split_once('=')
                    .unwrap_or_else(|| panic!("{setting} is not key=value"))
            })
            .map(|(key, value)| (key, value.to_owned()))
            .collect();
        self.recipe(
            name,
            "diloco-worker",
            &[settings, further].concat(),
            Vec::new(),
        )
    }

    pub(super) fn ready_flag(&self, name: &str) -> Vec<String> {
        vec!["--ready-file".to_owned(), shown(&self.ready_file(name))]
    }

    /// A worker with the configuration that `diloctl worker enrol` wrote into this folder.
    pub(super) fn enrolled_recipe(&self, folder: &Path, name: &str) -> Recipe {
        let settings = [
            ("service.ready_file", shown(&self.ready_file(name))),
            ("training.device", "cpu".to_owned()),
        ];
        let config = folder.join("config").join(format!("{name}.toml"));
        let more = vec!["--config".to_owned(), shown(&config)];
        self.recipe_as_configured(name, "diloco-worker", &settings, more)
    }
}
