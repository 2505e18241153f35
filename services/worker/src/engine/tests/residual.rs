//! Tests of the residual through the engine: the effect on it of each end of a unit, and of a death
//! of the process, after which it must not be sent twice.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use super::*;

async fn scene() -> Scene {
    in_folder(tempfile::tempdir().expect("a scratch folder")).await
}

async fn in_folder(scratch: tempfile::TempDir) -> Scene {
    let opening = Opening {
        error_feedback: true,
        ..opening("reference", scratch.path())
    };
    let scene = Scene::opened(opening, scratch).await;
    to_the_base(&scene).await;
    scene
}

/// Sets all parameters to the base.
async fn to_the_base(scene: &Scene) {
    let base = Digest::of(b"base");
    scene.load(base, 5000).await.expect("complete");
}

/// The contribution of a unit in 4 bits a value.
async fn contribution(scene: &Scene, work: u64) -> Vec<Bytes> {
    let chunks = scene.opening.model.layout().chunks(5000);
    let chunks = chunks.expect("few chunks");
    let capture = Capture {
        work: WorkId(work),
        fragment: ALL,
        stop: CancellationToken::new(),
        codec: CodecKind::E3m0,
        rounding: SeededRounding::NEAREST,
        chunks: chunks.into_iter().enumerate().collect(),
    };
    let arriving = scene.engine.capture(capture).await;
    let mut arriving = arriving.expect("the thread lives");
    let mut encoded = Vec::new();
    while let Some(chunk) = arriving.recv().await {
        encoded.push(chunk.expect("encoded").1);
    }
    encoded
}

/// The contribution of a unit that changes nothing, which therefore consists of the residual.
async fn owed(scene: &Scene, work: u64) -> Vec<Bytes> {
    to_the_base(scene).await;
    contribution(scene, work).await
}

fn is_nothing(contribution: &[Bytes]) -> bool {
    contribution.iter().flatten().all(|byte| *byte == 0)
}

async fn train(scene: &Scene) {
    let trained = scene.engine.train(training(3, CancellationToken::new()));
    trained.await.expect("it learns");
}

fn refused(code: Code) -> ResultEnd {
    ResultEnd::Refused(Refusal::new(code, "played by the test"))
}

#[tokio::test]
async fn what_was_not_sent_comes_with_the_next_contribution_when_the_result_counts() {
    let scene = scene().await;
    train(&scene).await;
    let first = contribution(&scene, 1).await;
    // A lost lease, and then a refused result.
    for (work, code) in [(1, Code::LeaseLost), (2, Code::SizeMismatch)] {
        scene.keep(work, refused(code)).await;
        let again = contribution(&scene, work + 1).await;
        assert_eq!(again, first, "nothing of it was merged");
    }
    scene.keep(3, ResultEnd::Counted).await;
    assert_ne!(contribution(&scene, 4).await, first);
    scene.keep(4, refused(Code::LeaseLost)).await;
    assert!(!is_nothing(&owed(&scene, 5).await));
}

#[tokio::test]
async fn a_result_whose_end_is_not_known_takes_the_residual_along() {
    for end in [ResultEnd::Unknown, refused(Code::NormOutlier)] {
        let scene = scene().await;
        train(&scene).await;
        contribution(&scene, 1).await;
        scene.keep(1, ResultEnd::Counted).await;
        assert!(!is_nothing(&owed(&scene, 2).await));
        scene.keep(2, end).await;
        assert!(is_nothing(&owed(&scene, 3).await));
    }
}

#[tokio::test]
async fn a_restart_keeps_the_residual() {
    let scene = scene().await;
    train(&scene).await;
    contribution(&scene, 1).await;
    scene.keep(1, ResultEnd::Counted).await;
    let before = owed(&scene, 2).await;
    assert!(!is_nothing(&before));
    scene.keep(2, refused(Code::LeaseLost)).await;
    let scene = scene.restarted(|inner| assert!(inner.exists())).await;
    assert_eq!(owed(&scene, 3).await, before);
    // Without its inner state a residual is useless.
    scene.keep(3, ResultEnd::Counted).await;
    let without = |inner: &Path| std::fs::remove_file(inner).expect("it is there");
    let scene = scene.restarted(without).await;
    assert!(is_nothing(&owed(&scene, 4).await));
}

/// Moments and residual went into the same contribution.
#[tokio::test]
async fn a_state_that_is_dropped_takes_its_residual_along() {
    let scene = scene().await;
    train(&scene).await;
    contribution(&scene, 1).await;
    scene.keep(1, ResultEnd::Counted).await;
    let scene = scene.restarted(|_| ()).await;
    to_the_base(&scene).await;
    scene.doubt().await;
    let opening = scene.opening.clone();
    scene.engine.open(opening).await.expect("a small model");
    assert!(is_nothing(&owed(&scene, 2).await));
    let refused = scene.opening.inner.with_file_name("residual.refused");
    assert!(refused.exists());
}

/// A state that was copied before a contribution went out is written while it is on its way.
#[tokio::test]
async fn a_residual_that_was_sent_is_not_written_any_more() {
    let scene = scene().await;
    train(&scene).await;
    contribution(&scene, 1).await;
    scene.keep(1, ResultEnd::Counted).await;
    assert!(!is_nothing(&owed(&scene, 2).await), "it goes out");
    let written = |inner: &Path| {
        assert!(inner.exists() && !inner.with_file_name("residual.safetensors").exists());
    };
    let scene = scene.restarted(written).await;
    assert!(is_nothing(&owed(&scene, 3).await));
}

const VICTIM: &str = "DILOCO_TEST_OWING_VICTIM";

/// Points in the second unit at which the victim is killed.
const POINTS: [&str; 6] = [
    "kept", "trained", "encoded", "refused", "unknown", "counted",
];

/// Leaves a state with a residual in the folder. Returns the scene of the process that loads them.
async fn owing(scratch: tempfile::TempDir) -> Scene {
    let scene = in_folder(scratch).await;
    train(&scene).await;
    contribution(&scene, 1).await;
    scene.keep(1, ResultEnd::Counted).await;
    let scene = scene.restarted(|_| ()).await;
    to_the_base(&scene).await;
    scene
}

/// Not a test by itself: this is the process that the next test kills. It goes on to the given
/// point, reports it, and waits.
#[tokio::test]
async fn owing_victim() {
    let Some(told) = std::env::var_os(VICTIM) else {
        return;
    };
    let told = told.into_string().expect("text");
    let (point, folder) = told.split_once(':').expect("two parts");
    let scratch = tempfile::Builder::new()
        .disable_cleanup(true)
        .tempdir_in(folder);
    let scene = owing(scratch.expect("a folder")).await;
    let end = match point {
        "kept" => None,
        "trained" => {
            train(&scene).await;
            None
        }
        _ => {
            train(&scene).await;
            contribution(&scene, 2).await;
            match point {
                "refused" => Some(refused(Code::LeaseLost)),
                "unknown" => Some(ResultEnd::Unknown),
                "counted" => Some(ResultEnd::Counted),
                _ => None,
            }
        }
    };
    if let Some(end) = end {
        scene.keep(2, end).await;
        // The withdrawal is done once another job is answered.
        scene.has(Digest::of(b"base")).await;
    }
    let at = scene.scratch.path().display();
    writeln!(std::io::stdout(), "at {at}").expect("somebody reads");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_worker_that_is_killed_at_any_point_never_sends_a_residual_twice() {
    let before = owing(tempfile::tempdir().expect("a folder")).await;
    let before = owed(&before, 2).await;
    assert!(!is_nothing(&before));
    for point in POINTS {
        let folder = tempfile::tempdir().expect("a scratch folder");
        let mut victim = Command::new(std::env::current_exe().expect("this program"))
            .args([
                "--exact",
                "engine::tests::residual::owing_victim",
                "--nocapture",
            ])
            .env(VICTIM, format!("{point}:{}", folder.path().display()))
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut lines = BufReader::new(victim.stdout.take().expect("piped")).lines();
        let at = lines.find_map(|line| Some(line.expect("text").strip_prefix("at ")?.to_owned()));
        victim.kill().expect("it lived");
        victim.wait().expect("it was a child");
        let left = Path::new(&at.expect("it got there")).join("run");
        let own = tempfile::tempdir().expect("a scratch folder");
        std::fs::rename(left, own.path().join("run")).expect("one file system");
        let found = owed(&in_folder(own).await, 9).await;
        match point {
            "kept" | "trained" => assert_eq!(found, before, "{point}: nothing was sent"),
            // By then the owed part is being written to disk.
            "counted" => assert_ne!(found, before, "{point}: it was merged"),
            "refused" => assert!(found == before || is_nothing(&found), "{point}"),
            _ => assert!(is_nothing(&found), "{point}"),
        }
    }
}
