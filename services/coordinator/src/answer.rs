//! Answers on the wire.

use bytes::Bytes;
use coordinator_core::Answer;
use schemas::lease::Done;
use schemas::limits::MESSAGE_BYTES_MAX;
use schemas::{Code, Message as _, Refusal, Reply};

/// The bytes of an answer. One that is too long for the bus becomes a refusal that says so.
pub(crate) fn encode(answer: Result<Answer, Refusal>) -> Bytes {
    let bytes = match answer {
        Err(refusal) => return refused(refusal),
        Ok(Answer::Join(reply)) => Reply::Ok(*reply).encode(),
        Ok(Answer::Claim(reply)) => Reply::Ok(reply).encode(),
        Ok(Answer::Renew(reply)) => Reply::Ok(reply).encode(),
        Ok(Answer::Done(reply)) => Reply::Ok(reply).encode(),
        Ok(Answer::Submit(reply)) => Reply::Ok(reply).encode(),
        Ok(Answer::Grants(reply)) => Reply::Ok(reply).encode(),
        Ok(Answer::RunNew(reply)) => Reply::Ok(reply).encode(),
        Ok(Answer::View(reply)) => Reply::Ok(*reply).encode(),
        Ok(Answer::Shutdown(reply)) => Reply::Ok(reply).encode(),
    };
    if bytes.len() <= MESSAGE_BYTES_MAX {
        return bytes.into();
    }
    let detail = format!("the answer has {} bytes, a message holds {MESSAGE_BYTES_MAX}", bytes.len());
    refused(Refusal::new(Code::MessageInvalid, detail))
}

/// A refusal has the same bytes whatever was asked for.
pub(crate) fn refused(refusal: Refusal) -> Bytes {
    Reply::<Done>::Refused(refusal).encode().into()
}

#[cfg(test)]
mod tests {
    use schemas::V;
    use schemas::control::RunNewReply;

    use super::*;

    #[test]
    fn a_refusal_reads_as_the_answer_to_anything() {
        let refusal = Refusal::new(Code::Draining, "x");
        let bytes = encode(Err(refusal.clone()));
        assert_eq!(Reply::<RunNewReply>::decode(&bytes).expect("it reads").into_result(), Err(refusal));
    }

    #[test]
    fn an_answer_reads_back() {
        let bytes = encode(Ok(Answer::Done(Done { v: V })));
        assert_eq!(Reply::<Done>::decode(&bytes).expect("it reads").into_result(), Ok(Done { v: V }));
    }
}
