//! The lane that writes inner states beside the steps, one at a time, and whole whatever happens.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use model::SyntheticConfig;
use trainer::{InnerState, load_inner};

use super::*;
use crate::engine::residual::{Marks, Saved, take_up};
use crate::engine::saver::{PendingSave, write};

/// The unfinished file of a state in `path` while `pid` writes it.
fn part(path: &Path, pid: u32) -> PathBuf {
    path.with_file_name(format!(".inner.safetensors.{pid}.part"))
}

#[tokio::test]
async fn a_state_is_written_while_the_steps_go_on() {
    let scene = Scene::new().await;
    scene.load_base().await;
    let stop = CancellationToken::new();
    let mut progress = scene.progress.clone();
    let observed = async {
        progress.changed().await.expect("the thread lives");
        scene.keep(1, ResultEnd::Unknown).await;
        // The file appears while steps are still reported.
        let mut after = 0;
        while !scene.opening.inner.exists() {
            progress.changed().await.expect("the thread lives");
            after = progress.borrow_and_update().1.get();
        }
        stop.cancel();
        after
    };
    let (trained, after) = tokio::join!(
        scene.engine.train(training(u64::MAX, stop.clone())),
        observed
    );
    assert_eq!(trained.expect_err("stopped").code, Code::Interrupted);
    let layout = scene.opening.model.layout();
    let saved = load_inner(&scene.opening.inner, &layout).expect("whole");
    assert!(
        (1..=after + 1).contains(&saved.steps),
        "{} of {after}",
        saved.steps
    );
}

/// The sync between two units needs the disk; a state is written during the steps of the next unit,
/// or at the end of the process.
#[test]
fn a_state_that_is_kept_between_two_units_waits_for_steps_or_the_end() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let opening = opening("reference", scratch.path());
    let path = opening.inner.clone();
    let trainer = trainer::plain(&opening.model).expect("needs no libtorch");
    let mut session = Session::new(opening, trainer).expect("it fits");
    let saver = Saver::start().expect("a thread");
    saver.keep(&mut session);
    assert!(saver.has_waiting() && !path.exists());
    saver.finish();
    assert!(path.exists(), "the end waits for the write");
}

/// The process hears of the panic at once, and the last kept state is not lost with the thread.
#[tokio::test]
async fn a_training_thread_that_panics_is_told_of_and_its_last_state_is_written() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let opening = opening("reference", scratch.path());
    let path = opening.inner.clone();
    let (told, _progress) = watch::channel((WorkId(0), Steps(0)));
    let meter = Arc::new(Meter::default());
    let started = Engine::start(TrainingSection::default(), meter, told);
    let (engine, running) = started.expect("a thread");
    engine.open(opening.clone()).await.expect("a small model");
    let kept = engine.keep(WorkId(1), ResultEnd::Unknown).await;
    kept.expect("the thread lives");
    assert!(!running.ended.is_cancelled());
    engine.send(Job::Panic).await.expect("the thread lives");
    running.ended.cancelled().await;
    let joined = tokio::task::spawn_blocking(move || running.thread.join()).await;
    assert!(joined.expect("it joins").is_err(), "it panicked");
    load_inner(&path, &opening.model.layout()).expect("whole");
    let lost = engine.open(opening).await.expect_err("nobody is there");
    assert_eq!(lost.code, Code::TrainingThreadLost);
}

/// A write that makes no progress, since its file is a pipe that nobody reads.
#[test]
fn a_newer_state_takes_the_place_of_one_that_waits() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let opening = opening("reference", scratch.path());
    let path = opening.inner.clone();
    std::fs::create_dir(path.parent().expect("a run's folder")).expect("made");
    let pipe = part(&path, std::process::id());
    let made = Command::new("mkfifo").arg(&pipe).status().expect("runs");
    assert!(made.success());
    let layout = opening.model.layout();
    let trainer = trainer::plain(&opening.model).expect("needs no libtorch");
    let mut session = Session::new(opening, trainer).expect("it fits");
    let saver = Saver::start().expect("a thread");
    saver.keep(&mut session);
    saver.steps_begin();
    // The lane has taken the first state, and waits for a reader of the pipe.
    let mut reader = std::fs::File::open(&pipe).expect("a writer came");
    for _ in 0..2 {
        let batch = vec![1; 5];
        let optimizer = InnerOptimizer::adamw(1e-2);
        let settings = trainer::StepSettings {
            optimizer: &optimizer,
            learning_rate: 1e-2,
            accumulation: 1,
        };
        let batch = trainer::Batch::new(&batch, 1, 4).expect("fits");
        session.trainer.step(&batch, &settings).expect("steps");
        saver.keep(&mut session);
    }
    assert!(!path.exists(), "the first is not whole");
    // The write fails in the end: a pipe cannot be synchronised to disk.
    let reading = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).expect("reads");
        bytes.len()
    });
    saver.finish();
    assert!(reading.join().expect("reads") > 0);
    let saved = load_inner(&path, &layout).expect("written before the end");
    assert_eq!(saved.steps, 2, "the newest");
}

/// Elements of a state whose write takes a few milliseconds.
const VICTIM_ELEMENTS: u64 = 1 << 21;
/// Bytes of its two moments.
const VICTIM_BYTES: u64 = 2 * 4 * VICTIM_ELEMENTS;
const VICTIM: &str = "DILOCO_TEST_VICTIM";

fn victim_layout() -> schemas::layout::Layout {
    ModelConfig::Synthetic(SyntheticConfig {
        parameters: VICTIM_ELEMENTS,
        step_ms: 0,
    })
    .layout()
}

/// Not a test by itself: this is the process that the next test kills. It writes one state after
/// another, each full of its own number, and prints the number of each written state.
#[test]
fn victim() {
    let Some(path) = std::env::var_os(VICTIM).map(PathBuf::from) else {
        return;
    };
    let layout = victim_layout();
    let elements = usize::try_from(VICTIM_ELEMENTS).expect("a few");
    let mut state = InnerState::default();
    for number in 1_u16.. {
        let values = vec![f32::from(number); elements];
        state
            .retake(&layout, u64::from(number))
            .copy(&values, &values);
        let residual = Saved::new(values, victim_marks());
        let pending = PendingSave::new(state, Some(residual), 0, path.clone());
        write(&pending, &Mutex::new(0)).expect("written");
        state = pending.state;
        writeln!(std::io::stdout(), "wrote {number}").expect("somebody reads");
    }
}

fn victim_marks() -> Marks {
    Marks::new("a test", &victim_layout())
}

fn start_victim(path: &Path) -> Child {
    let program = std::env::current_exe().expect("this program");
    Command::new(program)
        .args(["--exact", "engine::tests::saving::victim", "--nocapture"])
        .env(VICTIM, path)
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts")
}

/// The moment during a write at which the process is killed.
#[derive(Clone, Copy, Debug)]
enum Moment {
    /// After this many quarters of the state; after the last one it is synchronised and renamed.
    Quarter(u64),
    /// While the state's residual is written.
    Residual,
}

impl Moment {
    fn has_come(self, path: &Path, pid: u32) -> bool {
        let of_residual = path.with_file_name(format!(".residual.next.{pid}.part"));
        match self {
            Self::Quarter(quarter) => {
                let written = std::fs::metadata(part(path, pid)).map_or(0, |part| part.len());
                written > quarter * VICTIM_BYTES / 4
            }
            Self::Residual => of_residual.exists(),
        }
    }
}

/// The last whole state is there, with its own residual or none.
#[test]
fn whenever_the_process_is_killed_the_last_whole_state_is_there() {
    let quarters = (0..=4).map(Moment::Quarter);
    for moment in quarters.chain([Moment::Residual]) {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let path = scratch.path().join("run").join("inner.safetensors");
        let mut victim = start_victim(&path);
        let told = BufReader::new(victim.stdout.take().expect("piped")).lines();
        let mut numbers = told
            .map(|line| line.expect("text"))
            .filter_map(|line| line.strip_prefix("wrote ")?.parse::<u64>().ok());
        let before = numbers.next().expect("it writes");
        while !moment.has_come(&path, victim.id()) {
            std::thread::yield_now();
        }
        victim.kill().expect("it lived");
        victim.wait().expect("it was a child");
        let last = numbers.last().unwrap_or(before);
        let saved = load_inner(&path, &victim_layout()).expect("a whole state");
        // The last state may have been renamed and not reported.
        assert!(
            (last..=last + 1).contains(&saved.steps),
            "{} after {last} at {moment:?}",
            saved.steps
        );
        let value = saved.steps as f32;
        let mut values = saved.first.iter().chain(&saved.second);
        assert!(values.all(|found| *found == value), "one state, not two");
        let elements = saved.first.len();
        let zeros = || vec![0.0; elements];
        let residual = take_up(&path, elements, &victim_marks()).unwrap_or_else(zeros);
        let owed = residual[0];
        assert!(owed == 0.0 || owed == value, "{owed} beside {value}");
        assert!(residual.iter().all(|found| *found == owed));
        model::remove_parts(&path.with_file_name("")).expect("the folder is there");
        assert!(!part(&path, victim.id()).exists());
    }
}

#[tokio::test]
async fn a_state_that_was_cut_anywhere_is_put_aside() {
    let scratch = tempfile::tempdir().expect("a scratch folder");
    let opening = opening("reference", scratch.path());
    std::fs::create_dir(opening.inner.parent().expect("a run's folder")).expect("made");
    let mut trainer = trainer::plain(&opening.model).expect("needs no libtorch");
    trainer.save_inner(&opening.inner).expect("saved");
    let whole = std::fs::read(&opening.inner).expect("bytes");
    for cut in [0, 1, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&opening.inner, &whole[..cut]).expect("written");
        let (engine, ..) = start();
        engine.open(opening.clone()).await.expect("fresh moments");
        let aside = opening.inner.with_extension("refused");
        assert_eq!(std::fs::read(aside).expect("put aside").len(), cut);
        assert!(!opening.inner.exists(), "{cut}");
    }
}
