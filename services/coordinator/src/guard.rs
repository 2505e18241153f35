//! Work with an outcome that somebody waits for. A panic in it is an outcome too: without an answer
//! a run would stand still, and nobody would know why.

use std::any::Any;
use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;
use schemas::{Code, Refusal};

/// Does `work`, and turns a panic in it into [`Code::Internal`]. Values that the work owned are
/// lost; values that it borrowed must still be usable.
pub(crate) async fn answered<T>(
    what: &str,
    work: impl Future<Output = Result<T, Refusal>>,
) -> Result<T, Refusal> {
    let outcome = AssertUnwindSafe(work).catch_unwind().await;
    outcome.unwrap_or_else(|panic| {
        let refusal = Refusal::new(
            Code::Internal,
            format!("{what} panicked: {}", message(&*panic)),
        );
        tracing::error!(%refusal, "the work is lost, the process goes on");
        Err(refusal)
    })
}

/// The message of a panic.
fn message(panic: &(dyn Any + Send)) -> &str {
    let literal = panic.downcast_ref::<&str>().copied();
    literal
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_is_an_answer_that_says_what_happened() {
        let number = 7;
        let formatted = async {
            if number == 7 {
                panic!("chunk {number}")
            } else {
                Ok(())
            }
        };
        let literal = async {
            if number == 7 {
                panic!("a plain word")
            } else {
                Ok(())
            }
        };
        for (outcome, said) in [
            (
                answered("save of round 3", formatted).await,
                "save of round 3 panicked: chunk 7",
            ),
            (
                answered("merge", literal).await,
                "merge panicked: a plain word",
            ),
        ] {
            let refusal = outcome.expect_err("it panicked");
            assert_eq!(
                (refusal.code, refusal.detail.as_str()),
                (Code::Internal, said)
            );
        }
        assert_eq!(answered("merge", async { Ok(5) }).await, Ok(5));
        let refused = answered("merge", async {
            Err::<(), _>(Refusal::new(Code::NotFinite, "x"))
        })
        .await;
        assert_eq!(refused.expect_err("refused").code, Code::NotFinite);
    }
}
