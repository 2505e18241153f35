//! A folder of weights that somebody else wrote. Whatever the header of its tensors says, the
//! program that reads it ends with a code and without a panic, and takes no memory for what the
//! header only announces.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;

use harness::{Output, PATIENCE, program};
use runtime::exit::EXIT_USAGE;
use schemas::Code;
use serde_json::{Value, json};

/// A model that is small, so that nearly all memory is the program's own.
const CONFIG: &str = r#"{"vocabulary": 256, "context": 2, "embedding": 4, "hidden": 8}"#;
/// Its tensors.
const TENSORS: [(&str, &[u64]); 5] = [
    ("embedding.weight", &[256, 4]),
    ("hidden.weight", &[8, 8]),
    ("hidden.bias", &[8]),
    ("output.weight", &[256, 8]),
    ("output.bias", &[256]),
];
/// Memory that the reader may have for its data, in KiB. The right file needs far less.
const DATA_KIB_MAX: u64 = 512 << 10;
/// What headers announce beyond that.
const HUGE: u64 = 4 << 30;

/// The header of the right file, and the number of bytes behind it.
fn right() -> (BTreeMap<&'static str, Value>, u64) {
    let mut end = 0;
    let tensors = TENSORS.map(|(name, shape)| {
        let start = end;
        end += 4 * shape.iter().product::<u64>();
        let tensor = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, end]});
        (name, tensor)
    });
    (tensors.into(), end)
}

/// Writes a file with this header, and with so many bytes behind it; the last ones are a hole.
fn write(path: &Path, announced: u64, header: &[u8], data: u64) {
    fs::write(path, [&announced.to_le_bytes()[..], header].concat()).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(8 + header.len() as u64 + data).unwrap();
}

/// Has the worker's program read the folder within the bound of memory.
async fn sample(folder: &Path) -> Output {
    let program = program("diloco-worker");
    let arguments = "sample --model model --prompt x --tokens 3 --device cpu";
    let script = format!(
        "ulimit -d {DATA_KIB_MAX} && exec {} {arguments}",
        program.display()
    );
    let command = tokio::process::Command::new("bash")
        .args(["-c", &script])
        .current_dir(folder)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(PATIENCE, command).await;
    let output = output.expect("it ends").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Output {
        status: output.status,
        stdout: text(&output.stdout),
        stderr: text(&output.stderr),
    }
}

#[tokio::test]
async fn fg_11_weights_with_a_false_header_are_refused_with_a_code_and_take_no_memory() {
    let scratch = tempfile::tempdir().unwrap();
    let model = scratch.path().join("model");
    fs::create_dir(&model).unwrap();
    fs::write(model.join("config.json"), CONFIG).unwrap();
    let path = model.join("model.safetensors");
    let (tensors, bytes) = right();
    let header = |tensors: &BTreeMap<&str, Value>| serde_json::to_vec(tensors).unwrap();
    let whole = header(&tensors);
    write(&path, whole.len() as u64, &whole, bytes);
    let said = sample(scratch.path()).await;
    assert!(said.status.success(), "{}{}", said.stdout, said.stderr);
    assert!(said.stdout.starts_with('x'), "{}", said.stdout);

    let with = |name: &'static str, field: &str, value: Value| {
        let mut tensors = tensors.clone();
        tensors.get_mut(name).expect("it has one")[field] = value;
        header(&tensors)
    };
    let first = "embedding.weight";
    let last = "output.bias";
    let one_more = |tensor: Value| {
        let mut tensors = tensors.clone();
        tensors.insert("z", tensor);
        header(&tensors)
    };
    let mut files: Vec<(&str, u64, Vec<u8>, u64)> = vec![
        ("no header at all", u64::MAX, Vec::new(), 0),
        (
            "a header longer than a number",
            u64::MAX,
            whole.clone(),
            bytes,
        ),
        (
            "a header longer than the file",
            1 << 40,
            whole.clone(),
            bytes,
        ),
        ("a header of a hole", HUGE, Vec::new(), HUGE + bytes),
        ("nesting", 1 << 20, vec![b'['; 1 << 20], bytes),
        ("no text", 8, vec![0xff; 8], bytes),
    ];
    let offsets = |start: u64, end: u64| json!([start, end]);
    for (what, header, data) in [
        (
            "a shape of all memory",
            with(first, "shape", json!([HUGE, HUGE])),
            bytes,
        ),
        (
            "a shape that overflows",
            with(first, "shape", json!([u64::MAX, 4])),
            bytes,
        ),
        (
            "a negative shape",
            with(first, "shape", json!([-1, 4])),
            bytes,
        ),
        (
            "another shape",
            with(first, "shape", json!([4, 256])),
            bytes,
        ),
        (
            "offsets backwards",
            with(first, "data_offsets", offsets(4096, 0)),
            bytes,
        ),
        (
            "offsets behind the end",
            with(last, "data_offsets", offsets(HUGE, HUGE + 1024)),
            bytes,
        ),
        (
            "offsets over others",
            with(last, "data_offsets", offsets(0, 1024)),
            bytes,
        ),
        ("another type", with(last, "dtype", json!("F64")), bytes),
        ("no type", with(last, "dtype", json!("__reduce__")), bytes),
        ("a file too short", whole.clone(), bytes - 1),
        ("a file too long", whole.clone(), bytes + 1),
        (
            "one more, of a hole",
            one_more(
                json!({"dtype": "F32", "shape": [HUGE / 4], "data_offsets": [bytes, bytes + HUGE]}),
            ),
            bytes,
        ),
        (
            "a tensor left out",
            {
                let mut tensors = tensors.clone();
                tensors.remove(last);
                header(&tensors)
            },
            bytes - 1024,
        ),
    ] {
        files.push((what, header.len() as u64, header, data));
    }
    for (what, announced, header, data) in files {
        write(&path, announced, &header, data);
        let said = sample(scratch.path()).await;
        let text = format!("{what}: {}\n{}{}", said.status, said.stdout, said.stderr);
        let status = i32::from(EXIT_USAGE);
        assert_eq!(said.status.code(), Some(status), "{text}");
        assert!(
            said.stderr.contains(&Code::ModelInvalid.to_string()),
            "{text}"
        );
        assert!(said.stderr.contains("model.safetensors"), "{text}");
        assert!(!said.stderr.contains("panicked"), "{text}");
        assert_eq!(said.stdout, "", "{text}");
    }
}
