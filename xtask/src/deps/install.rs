//! Makes a component's folder: it is staged beside its place and renamed when complete, so a folder
//! with a stamp is whole.

use std::env::consts::{ARCH, OS};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use schemas::{Code, Hasher, Refusal};

use super::component::Component;
use super::wheel;
use crate::console;
use crate::process;

/// The way in which a component came to its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Named by the environment.
    Given,
    /// Was there already.
    Reused,
    /// Fetched just now.
    Fetched,
}

impl State {
    /// The state as a word for people.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Given => "given",
            Self::Reused => "reused",
            Self::Fetched => "fetched",
        }
    }
}

/// Returns the component's folder under `deps`, and makes it first if it is absent. `environment`
/// is passed to pip.
pub(super) fn ensure(
    component: &Component,
    deps: &Path,
    environment: &[(&str, &str)],
) -> Result<(PathBuf, State)> {
    let place = deps.join(component.folder);
    if is_whole(component, &place) {
        return Ok((place, State::Reused));
    }
    check_platform(component, OS, ARCH)?;
    wheel::check_python()?;
    check_compiler(component)?;
    fs::create_dir_all(deps).with_context(|| format!("cannot create {}", deps.display()))?;
    // If two runs start at once, the second waits here and then finds what the first has made.
    let lock = File::create(deps.join(".lock")).context("cannot create the lock under .deps")?;
    lock.lock().context("cannot lock .deps")?;
    if is_whole(component, &place) {
        return Ok((place, State::Reused));
    }
    if place.exists() {
        console::say(format_args!(
            "{} is not {} {}, or damaged: it is replaced",
            place.display(),
            component.name,
            component.version
        ));
    }
    make(component, deps, &place, environment)?;
    Ok((place, State::Fetched))
}

/// True when the folder was made from the pinned wheels and no required file has gone since.
fn is_whole(component: &Component, place: &Path) -> bool {
    let is_right = |(name, sha256): &(&str, Option<&str>)| {
        let path = place.join(name);
        path.is_file()
            && sha256.is_none_or(|pinned| hash(&path).is_some_and(|found| found == pinned))
    };
    let is_stamped =
        fs::read_to_string(place.join("stamp")).is_ok_and(|text| text == component.stamp());
    is_stamped && component.required.iter().all(is_right)
}

fn make(
    component: &Component,
    deps: &Path,
    place: &Path,
    environment: &[(&str, &str)],
) -> Result<()> {
    let begun = Instant::now();
    let size = console::megabytes(component.download_bytes());
    console::say(format_args!(
        "fetching {} {} ({size}) into {}",
        component.name,
        component.version,
        place.display()
    ));
    let stage = deps.join(format!(".stage-{}", component.folder));
    remove(&stage)?;
    let (wheels, tree) = (stage.join("wheels"), stage.join("tree"));
    for folder in [&wheels, &tree] {
        fs::create_dir_all(folder)
            .with_context(|| format!("cannot create {}", folder.display()))?;
    }
    let made = fill(component, &wheels, &tree, environment)
        .and_then(|()| replace(place, &tree, &stage.join("old")));
    remove(&stage)?;
    made?;
    console::say(format_args!(
        "{} {} is in place after {}",
        component.name,
        component.version,
        console::span(begun.elapsed())
    ));
    Ok(())
}

fn fill(
    component: &Component,
    wheels: &Path,
    tree: &Path,
    environment: &[(&str, &str)],
) -> Result<()> {
    wheel::download(component, wheels, environment)?;
    console::progress(format_args!("unpacking {}", component.name));
    wheel::unpack(component, wheels, tree)?;
    console::progress_done();
    for (name, text) in component
        .texts
        .iter()
        .chain([&("stamp", component.stamp().as_str())])
    {
        fs::write(tree.join(name), text).with_context(|| format!("cannot write {name}"))?;
    }
    if let Some(program) = component.program {
        let path = tree.join(program);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("cannot change {}", path.display()))?;
    }
    for (name, sha256) in component.required {
        let found = hash(&tree.join(name));
        if found.is_none() || sha256.is_some_and(|pinned| found.as_deref() != Some(pinned)) {
            let detail = format!(
                "{name} of {} has sha256 {}",
                component.name,
                found.as_deref().unwrap_or("none, it is missing")
            );
            return Err(Refusal::new(Code::DownloadMismatch, detail).into());
        }
    }
    Ok(())
}

/// Moves `tree` to `place`; what was there before is moved to `old`.
fn replace(place: &Path, tree: &Path, old: &Path) -> Result<()> {
    if place.exists() {
        fs::rename(place, old).with_context(|| format!("cannot move {} away", place.display()))?;
    }
    fs::rename(tree, place).with_context(|| format!("cannot put {} in its place", place.display()))
}

fn remove(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("cannot remove {}", folder.display()))?;
    }
    Ok(())
}

fn check_platform(component: &Component, os: &str, arch: &str) -> Result<()> {
    if (os, arch) == ("linux", "x86_64") {
        return Ok(());
    }
    let detail = format!(
        "{} {} is pinned for linux on x86_64, this is {os} on {arch}; set NATS_SERVER_BIN to a nats-server and LIBTORCH to a libtorch folder",
        component.name, component.version
    );
    Err(Refusal::new(Code::PlatformUnsupported, detail).into())
}

fn check_compiler(component: &Component) -> Result<()> {
    if !component.is_linked {
        return Ok(());
    }
    let compiler = std::env::var("CXX")
        .ok()
        .filter(|name| !name.trim().is_empty())
        .unwrap_or_else(|| "c++".to_owned());
    // CXX may carry arguments or a launcher before the compiler.
    let mut words = compiler.split_whitespace();
    let program = words.next().expect("not blank");
    process::capture(Command::new(program).args(words).arg("--version")).map_err(|_| {
        let detail =
            format!("no C++ compiler: `{compiler}` does not run (Debian, Ubuntu: apt install g++; or set CXX)");
        Refusal::new(Code::ToolMissing, detail)
    })?;
    Ok(())
}

/// The sha256 of a file in hex; nothing if it cannot be read.
fn hash(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).ok()? {
            0 => return Some(hasher.finish().hex()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deps::component::{LIBTORCH, Wheel};

    /// A wheel with one member, made by Python here; returns its hash.
    fn wheel_in(folder: &Path) -> String {
        let path = folder.join("tinytool-1.0-py3-none-any.whl");
        let make = "import sys, zipfile\n\
                    z = zipfile.ZipFile(sys.argv[1], 'w')\n\
                    z.writestr('tinytool-1.0.data/scripts/tinytool', '#!/bin/sh\\necho tiny\\n')\n\
                    z.writestr('tinytool-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: tinytool\\nVersion: 1.0\\n')\n\
                    z.writestr('tinytool-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n\
                    z.writestr('tinytool-1.0.dist-info/RECORD', '')\n\
                    z.close()\n";
        process::capture(Command::new("python3").args(["-c", make]).arg(&path)).unwrap();
        hash(&path).unwrap()
    }

    fn tinytool(sha256: String) -> Component {
        let sha256: &'static str = sha256.leak();
        let wheels = vec![Wheel {
            name: "tinytool",
            version: "1.0",
            sha256,
            bytes: 600,
            picks: &[("tinytool-1.0.data/scripts/", "bin/")],
        }];
        Component {
            name: "tinytool",
            version: "1.0",
            folder: "tiny",
            wheels: wheels.leak(),
            texts: &[("bin/note", "made of a wheel\n")],
            required: &[("bin/tinytool", None)],
            program: Some("bin/tinytool"),
            is_linked: false,
        }
    }

    fn code(error: &anyhow::Error) -> Code {
        error
            .downcast_ref::<Refusal>()
            .unwrap_or_else(|| panic!("not coded: {error:#}"))
            .code
    }

    #[test]
    fn a_wheel_becomes_a_folder_once_and_is_made_again_when_damaged() {
        let (index, deps) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let component = tinytool(wheel_in(index.path()));
        let pip = [
            ("PIP_NO_INDEX", "1"),
            ("PIP_FIND_LINKS", index.path().to_str().unwrap()),
        ];
        let (place, state) = ensure(&component, deps.path(), &pip).unwrap();
        assert_eq!(state, State::Fetched);
        assert_eq!(
            process::capture(&mut Command::new(place.join("bin/tinytool"))).unwrap(),
            "tiny\n"
        );
        assert_eq!(
            fs::read_to_string(place.join("bin/note")).unwrap(),
            "made of a wheel\n"
        );
        assert!(!deps.path().join(".stage-tiny").exists());

        assert_eq!(
            ensure(&component, deps.path(), &[("PIP_NO_INDEX", "1")])
                .unwrap()
                .1,
            State::Reused
        );
        fs::remove_file(place.join("bin/tinytool")).unwrap();
        assert_eq!(
            ensure(&component, deps.path(), &pip).unwrap().1,
            State::Fetched
        );
    }

    #[test]
    fn wrong_bytes_and_absent_files_leave_nothing_behind() {
        let (index, deps) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        wheel_in(index.path());
        let component = tinytool("0".repeat(64));
        let pip = [
            ("PIP_NO_INDEX", "1"),
            ("PIP_FIND_LINKS", index.path().to_str().unwrap()),
        ];
        assert_eq!(
            code(&ensure(&component, deps.path(), &pip).expect_err("other hash")),
            Code::DownloadMismatch
        );
        let nowhere = [
            ("PIP_NO_INDEX", "1"),
            ("PIP_FIND_LINKS", deps.path().to_str().unwrap()),
        ];
        assert_eq!(
            code(&ensure(&component, deps.path(), &nowhere).expect_err("no file")),
            Code::DownloadFailed
        );
        assert!(!deps.path().join("tiny").exists());
        assert!(!deps.path().join(".stage-tiny").exists());
    }

    #[test]
    fn a_folder_without_its_stamp_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let component = tinytool("0".repeat(64));
        fs::create_dir(folder.path().join("bin")).unwrap();
        fs::write(folder.path().join("bin/tinytool"), "").unwrap();
        assert!(!is_whole(&component, folder.path()));
        fs::write(folder.path().join("stamp"), component.stamp()).unwrap();
        assert!(is_whole(&component, folder.path()));
        fs::write(folder.path().join("stamp"), "tinytool 0.9\n").unwrap();
        assert!(!is_whole(&component, folder.path()));
    }

    #[test]
    fn another_platform_is_told_what_to_set() {
        let error = check_platform(&LIBTORCH, "macos", "aarch64").expect_err("not served");
        assert_eq!(code(&error), Code::PlatformUnsupported);
        assert!(
            error.to_string().contains("NATS_SERVER_BIN") && error.to_string().contains("LIBTORCH"),
            "{error}"
        );
        assert!(check_platform(&LIBTORCH, "linux", "x86_64").is_ok());
    }
}
