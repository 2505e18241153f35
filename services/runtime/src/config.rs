//! Configuration in layers: defaults, then a TOML file, then environment variables, then flags. It
//! is parsed into valid types once; unknown keys are errors that say where they stand.
//!
//! `DILOCO_BUS__URL` sets `bus.url`: the prefix, then the parts of the key joined by two
//! underscores. All services share the prefix, so a variable whose first part is no section of this
//! service belongs to another service and is ignored. Within a section every variable must name a
//! key.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::Args;
use config::{Config, ConfigError as LayerError, FileFormat};
use schemas::Code;
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::exit::Failure;
use crate::origin::Origin;
pub use crate::origin::Origins;

/// Prefix of environment variables.
pub const ENVIRONMENT_PREFIX: &str = "DILOCO_";
/// Longest configuration file that is read; ours have a few hundred lines at most.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The flags that every service has for its configuration.
#[derive(Args, Clone, Debug, Default)]
pub struct ConfigArgs {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// Set one key; this wins over file and environment: `--set bus.url=tls://127.0.0.1:4222`.
    #[arg(long, value_name = "KEY=VALUE", global = true)]
    pub set: Vec<String>,
    /// Check the configuration and everything it names, then exit.
    #[arg(long)]
    pub check_config: bool,
    /// Print every key with its value and where it was set, then exit.
    #[arg(long)]
    pub print_config: bool,
}

/// A configuration and where its values were set.
#[derive(Clone, Debug)]
pub struct Loaded<T> {
    /// The configuration.
    pub value: T,
    /// The origin of each key: the layer that set it.
    pub origins: Origins,
}

/// Sets a path that nobody set.
pub fn fill(path: &mut PathBuf, default: PathBuf) {
    if path.as_os_str().is_empty() {
        *path = default;
    }
}

/// Reads all layers. `flags` are the service's own flags as `(key, flag, value)`, such as
/// `("bus.url", "--bus", "tls://…")`; they win over `--set`.
///
/// # Errors
/// [`Code::ConfigInvalid`], naming the file or variable, the key and the value.
pub fn load<T>(args: &ConfigArgs, flags: &[(&str, &str, String)]) -> Result<Loaded<T>, Failure>
where
    T: Serialize + DeserializeOwned + Default,
{
    load_from(args, flags, std::env::vars_os())
}

/// [`load`] with another environment, for tests.
///
/// # Errors
/// As [`load`].
pub fn load_from<T>(
    args: &ConfigArgs,
    flags: &[(&str, &str, String)],
    environment: impl Iterator<Item = (OsString, OsString)>,
) -> Result<Loaded<T>, Failure>
where
    T: Serialize + DeserializeOwned + Default,
{
    let defaults =
        Table::try_from(T::default()).map_err(|error| Failure::new(Code::Internal, error))?;
    let mut layers = Layers {
        origins: Origins::default(),
        table: defaults,
    };
    let sections: Vec<String> = layers.table.keys().cloned().collect();
    if let Some(path) = &args.config {
        layers.file(path)?;
    }
    layers.environment(&sections, environment)?;
    for text in &args.set {
        let Some((key, value)) = text.split_once('=') else {
            return Err(invalid(format!(
                "--set {text:?} is not of the form key=value"
            )));
        };
        layers.text(key, value, Origin::Flag(format!("--set {key}")))?;
    }
    for (key, flag, value) in flags {
        layers.text(key, value, Origin::Flag((*flag).to_owned()))?;
    }
    layers.parse()
}

/// The values of the layers read so far; later layers replace single keys of earlier ones.
struct Layers {
    origins: Origins,
    table: Table,
}

impl Layers {
    fn file(&mut self, path: &Path) -> Result<(), Failure> {
        let failed =
            |reason: &dyn std::fmt::Display| invalid(format!("file {}: {reason}", path.display()));
        let metadata = std::fs::metadata(path).map_err(|error| failed(&error))?;
        if metadata.len() > FILE_BYTES_MAX {
            return Err(failed(&format_args!(
                "it has {} bytes, at most {FILE_BYTES_MAX} are read",
                metadata.len()
            )));
        }
        let text = std::fs::read_to_string(path).map_err(|error| failed(&error))?;
        let table: Table =
            toml::from_str(&text).map_err(|error| failed(&error.to_string().trim_end()))?;
        let origin = Origin::File(path.to_owned());
        overlay(&mut self.table, table, "", &mut |key| {
            self.origins.set(key, origin.clone())
        });
        Ok(())
    }

    fn environment(
        &mut self,
        sections: &[String],
        variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<(), Failure> {
        let mut named: Vec<(String, String, OsString)> = Vec::new();
        for (name, value) in variables {
            let Ok(name) = name.into_string() else {
                continue;
            };
            let Some(rest) = name.strip_prefix(ENVIRONMENT_PREFIX) else {
                continue;
            };
            let key = rest.to_lowercase().replace("__", ".");
            if sections
                .iter()
                .any(|section| key.split('.').next() == Some(section))
            {
                named.push((key, name, value));
            }
        }
        named.sort();
        for (key, name, value) in named {
            let text = value
                .into_string()
                .map_err(|_| invalid(format!("variable {name} is not text")))?;
            self.text(&key, &text, Origin::Environment(name))?;
        }
        Ok(())
    }

    /// Sets one key from text. The text is a TOML list or inline table if the key holds one, and
    /// otherwise a plain string, from which numbers and switches are parsed. An address may begin
    /// with a bracket too.
    fn text(&mut self, key: &str, text: &str, origin: Origin) -> Result<(), Failure> {
        let mut parts: Vec<&str> = key.split('.').collect();
        let last = parts.pop().expect("splitting gives at least one part");
        let mut table = &mut self.table;
        for part in parts {
            let entry = table
                .entry(part)
                .or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(inner) = entry else {
                return Err(invalid(format!(
                    "{key} ({origin}): {part} is a value, not a section"
                )));
            };
            table = inner;
        }
        let structured = text.starts_with('[') || text.starts_with('{');
        let value = match table.get(last) {
            Some(Value::Array(_) | Value::Table(_)) if structured => inline(text)
                .map_err(|error| invalid(format!("{key} ({origin}): {}", error.message())))?,
            // A key without a default may hold a list, a table or a string.
            None if structured => inline(text).unwrap_or_else(|_| Value::String(text.to_owned())),
            _ => Value::String(text.to_owned()),
        };
        table.insert(last.to_owned(), value);
        self.origins.set(key, origin);
        Ok(())
    }

    fn parse<T: DeserializeOwned>(self) -> Result<Loaded<T>, Failure> {
        let text =
            toml::to_string(&self.table).map_err(|error| Failure::new(Code::Internal, error))?;
        let config = Config::builder()
            .add_source(config::File::from_str(&text, FileFormat::Toml))
            .build();
        let value = config.and_then(Config::try_deserialize);
        let value = value.map_err(|error| invalid(describe(&error, &self.origins)))?;
        Ok(Loaded {
            value,
            origins: self.origins,
        })
    }
}

impl<T: Serialize> Loaded<T> {
    /// Every key with its value and, as a comment, where it was set: TOML that can be used as a
    /// file.
    pub fn print(&self) -> String {
        let table = Table::try_from(&self.value).expect("the configuration was made from TOML");
        let mut text = String::new();
        self.print_table("", &table, &mut text);
        text
    }

    fn print_table(&self, prefix: &str, table: &Table, text: &mut String) {
        let mut sections = Vec::new();
        for (name, value) in table {
            let key = join(prefix, name);
            match value {
                Value::Table(inner) => sections.push((key, inner)),
                value => text.push_str(&format!("{name} = {value}  # {}\n", self.origins.of(&key))),
            }
        }
        for (key, inner) in sections {
            text.push_str(&format!("\n[{key}]\n"));
            self.print_table(&key, inner, text);
        }
    }
}

/// Lays `over` over `under` key by key; a list or a value is replaced as a whole.
fn overlay(under: &mut Table, over: Table, prefix: &str, set: &mut dyn FnMut(&str)) {
    for (name, value) in over {
        let key = join(prefix, &name);
        match (under.get_mut(&name), value) {
            (Some(Value::Table(inner)), Value::Table(value)) => overlay(inner, value, &key, set),
            (_, value) => {
                set(&key);
                under.insert(name, value);
            }
        }
    }
}

fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() {
        name.to_owned()
    } else {
        format!("{prefix}.{name}")
    }
}

fn inline(text: &str) -> Result<Value, toml::de::Error> {
    let table: Table = toml::from_str(&format!("value = {text}"))?;
    Ok(table
        .into_iter()
        .next()
        .map_or(Value::Boolean(false), |(_, value)| value))
}

fn describe(error: &LayerError, origins: &Origins) -> String {
    let key = match error {
        LayerError::Type { key, .. } | LayerError::At { key, .. } => key.clone(),
        _ => None,
    };
    let text = error.to_string();
    // serde quotes the name of an unknown field; the layer that set a key with this name is the
    // place of the error.
    let field = text
        .split_once("unknown field `")
        .and_then(|(_, rest)| rest.split('`').next());
    let named = field
        .and_then(|field| origins.named(field))
        .map(str::to_owned)
        .or(key);
    match named {
        Some(key) => format!("{text} ({key} was set by {})", origins.of(&key)),
        None => text,
    }
}

fn invalid(detail: String) -> Failure {
    Failure::new(Code::ConfigInvalid, detail)
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::quantity::{ConfigBytes, ConfigDuration};

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Sample {
        bus: Section,
        store: Store,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Section {
        url: String,
        wait: ConfigDuration,
        retries: u32,
        tls: bool,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Store {
        memory: ConfigBytes,
        names: Vec<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        mirror: Option<String>,
    }

    impl Default for Section {
        fn default() -> Self {
            Self {
                url: "tls://localhost".into(),
                wait: ConfigDuration::from_secs(3),
                retries: 1,
                tls: true,
            }
        }
    }

    fn environment(pairs: &[(&str, &str)]) -> impl Iterator<Item = (OsString, OsString)> {
        pairs
            .iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect::<Vec<_>>()
            .into_iter()
    }

    fn load(file: &str, pairs: &[(&str, &str)], set: &[&str]) -> Result<Loaded<Sample>, Failure> {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("sample.toml");
        std::fs::write(&path, file).expect("a fresh folder takes files");
        let set = set.iter().map(|text| (*text).to_owned()).collect();
        let args = ConfigArgs {
            config: Some(path),
            set,
            ..ConfigArgs::default()
        };
        load_from(
            &args,
            &[("bus.retries", "--retries", "7".into())],
            environment(pairs),
        )
    }

    #[test]
    fn later_layers_win_key_by_key() {
        let file = "[bus]\nurl = \"tls://file\"\nwait = \"1m\"\n[store]\nmemory = \"64MiB\"\n";
        let variables = [
            ("DILOCO_BUS__URL", "tls://env"),
            ("DILOCO_BUS__TLS", "false"),
            ("PATH", "x"),
        ];
        let loaded = load(file, &variables, &["store.names=[\"a\", \"b\"]"]).expect("valid");
        let bus = Section {
            url: "tls://env".into(),
            wait: ConfigDuration::from_secs(60),
            retries: 7,
            tls: false,
        };
        let store = Store {
            memory: ConfigBytes::mebi(64),
            names: vec!["a".into(), "b".into()],
            mirror: None,
        };
        assert_eq!(loaded.value, Sample { bus, store });
        assert_eq!(
            loaded.origins.of("bus.url"),
            "environment variable DILOCO_BUS__URL"
        );
        assert!(loaded.origins.of("bus.wait").starts_with("file "));
        assert_eq!(loaded.origins.of("bus.retries"), "flag --retries");
        assert_eq!(loaded.origins.of("store.names"), "flag --set store.names");
        assert_eq!(loaded.origins.of("auth.require_auth"), "default");
    }

    #[test]
    fn a_text_may_begin_with_a_bracket() {
        let variables = [("DILOCO_BUS__URL", "[::1]:9000")];
        assert_eq!(
            load("", &variables, &[]).expect("valid").value.bus.url,
            "[::1]:9000"
        );
        for text in ["[fe80::1%eth0]:9000", "[::]:0", "[1]", "{}", "{a"] {
            let loaded = load("", &variables, &[&format!("bus.url={text}")]).expect("valid");
            assert_eq!(loaded.value.bus.url, text);
            assert_eq!(loaded.origins.of("bus.url"), "flag --set bus.url");
            let optional = load("", &[], &[&format!("store.mirror={text}")]);
            assert_eq!(
                optional.is_ok(),
                text.contains(':') || text == "{a",
                "{text}"
            );
        }
        // A text that is no list, for a key that holds one, is reported as such.
        let error = load("", &[], &["store.names=[a, b]"])
            .expect_err("names without quotes")
            .to_string();
        assert!(
            error.contains("store.names (flag --set store.names)"),
            "{error}"
        );
        let table = load("", &[], &["bus={url = \"tls://x\"}"]).expect("a section is a table");
        assert_eq!(
            (table.value.bus.url.as_str(), table.value.bus.retries),
            ("tls://x", 7)
        );
    }

    #[test]
    fn what_is_printed_can_be_read_again() {
        let loaded = load("[bus]\nwait = \"250ms\"\n", &[], &[]).expect("valid");
        let printed = loaded.print();
        assert!(
            printed.contains("retries = 7  # flag --retries"),
            "{printed}"
        );
        assert_eq!(load(&printed, &[], &[]).expect("valid").value, loaded.value);
    }

    #[test]
    fn errors_name_the_key_and_its_place() {
        let unknown = load("[bus]\nurll = \"x\"\n", &[], &[])
            .expect_err("unknown")
            .to_string();
        assert!(
            unknown.contains("urll") && unknown.contains("bus.urll was set by file"),
            "{unknown}"
        );
        let variable = load("", &[("DILOCO_BUS__WAIT", "soon")], &[])
            .expect_err("no duration")
            .to_string();
        assert!(
            variable.contains("soon") && variable.contains("bus.wait"),
            "{variable}"
        );
        let flag = load("", &[], &["bus.retries=many"]).map(|_| ()).err();
        // The flag --retries wins over --set.
        assert_eq!(flag, None);
        let error = load("", &[("DILOCO_BUS__TLS", "perhaps")], &[])
            .expect_err("no switch")
            .to_string();
        assert!(error.contains("DILOCO_BUS__TLS"), "{error}");
        assert!(load("bus = 3", &[], &[]).is_err());
        assert!(load("not toml", &[], &[]).is_err());
        assert!(load("", &[], &["nonsense"]).is_err());
    }

    #[test]
    fn other_services_variables_are_skipped() {
        assert!(
            load(
                "",
                &[("DILOCO_TRAINING__DEVICE", "cpu"), ("DILOCO_LOG", "debug")],
                &[]
            )
            .is_ok()
        );
        assert!(load("", &[("DILOCO_BUS__DEVICE", "cpu")], &[]).is_err());
    }
}
