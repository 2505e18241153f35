//! The words of the NATS protocol that a listener needs, read from bytes that arrive in any pieces.
//! Strangers choose subjects, reply subjects and payloads, so no bytes in them may end a connection
//! that everybody shares: a message that cannot be understood is skipped by its length.

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};

/// Longest line. The broker's own limit for the words of a client, and so for the subjects in them,
/// is 4 KiB; its greeting can name other servers.
pub(crate) const LINE_BYTES_MAX: usize = 64 << 10;
/// Longest payload that is accepted: twice what the broker is configured for. A longer one is
/// skipped.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 2 * schemas::limits::MESSAGE_BYTES_MAX;
/// Most bytes of a line that an error repeats.
const SHOWN_BYTES_MAX: usize = 80;
/// The end of a payload.
const END: &[u8] = b"\r\n";

/// A message as a listener gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The subject. Bytes that are no UTF-8 are replaced by U+FFFD, which no subject of ours holds.
    pub subject: String,
    /// The subject for an answer. None also when it is no UTF-8, since nothing can be sent there.
    pub reply: Option<String>,
    /// The bytes that were sent.
    pub payload: Bytes,
}

/// A line of the broker.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// The broker's name and demands.
    Info(Info),
    /// A message for a subscription.
    Message {
        subscription: u64,
        delivery: Delivery,
    },
    /// A message that cannot be accepted, with the number of its bytes.
    Unheard {
        bytes: usize,
    },
    Ping,
    Pong,
    Ok,
    /// The server refuses something, or is about to close the connection.
    Error(String),
}

/// The part of the greeting that matters here.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Info {
    /// The client signs this.
    pub(crate) nonce: Option<String>,
    pub(crate) tls_required: bool,
    pub(crate) tls_available: bool,
    /// The server is about to end.
    #[serde(rename = "ldm")]
    pub(crate) ending: bool,
}

/// The client's introduction.
#[derive(Serialize)]
pub(crate) struct Connect<'a> {
    pub(crate) name: &'a str,
    pub(crate) tls_required: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) jwt: Option<&'a str>,
    /// Signature of the nonce, in base64 for URLs without padding.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sig: Option<&'a str>,
}

/// The part of the introduction that is the same for every listener.
#[derive(Serialize)]
struct Fixed<'a> {
    #[serde(flatten)]
    own: &'a Connect<'a>,
    lang: &'static str,
    version: &'static str,
    /// Protocol version 1: the server may greet again.
    protocol: u8,
    verbose: bool,
    pedantic: bool,
    /// A listener publishes nothing; if that changes, it still need not hear itself.
    echo: bool,
    /// False: the broker removes the headers that senders put before their payloads.
    headers: bool,
    /// Without headers the broker has no way to say that nobody listens.
    no_responders: bool,
}

/// Bytes that no NATS server sends. Only the server itself can cause this.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProtocolError {
    #[error("a line of more than {LINE_BYTES_MAX} bytes")]
    LineTooLong,
    #[error("not a word of the NATS protocol: {0:?}")]
    Unknown(String),
    #[error("a message without a length: {0:?}")]
    NoLength(String),
    #[error("a message of {0} bytes is not followed by the end of its line")]
    NoEnd(usize),
    #[error("not a greeting: {0}")]
    Greeting(String),
}

/// Reads words from a stream of bytes.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    buffer: BytesMut,
    state: State,
}

#[derive(Debug)]
enum State {
    /// In a line, whose first `searched` bytes hold no end.
    Line { searched: usize },
    /// Before a payload.
    Payload(Head),
    /// In a payload that is skipped: `left` bytes of it and of its line end are still to come.
    Pass { left: usize, whole: usize },
}

#[derive(Debug)]
struct Head {
    subscription: u64,
    subject: String,
    reply: Option<String>,
    bytes: usize,
}

impl Default for State {
    fn default() -> Self {
        Self::Line { searched: 0 }
    }
}

impl Parser {
    /// The buffer to append the next bytes to.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// True when everything that arrived was read.
    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// The next word; none until more bytes have come.
    ///
    /// # Errors
    /// The bytes are not those of a NATS server, so the bytes after them cannot be understood
    /// either.
    pub(crate) fn next(&mut self) -> Result<Option<Word>, ProtocolError> {
        loop {
            let word = match &mut self.state {
                State::Line { searched } => {
                    let searched = *searched;
                    let Some(line) = self.line(searched)? else {
                        return Ok(None);
                    };
                    self.state = State::default();
                    self.word(&line)?
                }
                State::Payload(head) => {
                    let bytes = head.bytes;
                    if self.buffer.len() < bytes + END.len() {
                        return Ok(None);
                    }
                    Some(self.message(bytes)?)
                }
                State::Pass { .. } => {
                    let Some(word) = self.pass()? else {
                        return Ok(None);
                    };
                    Some(word)
                }
            };
            if word.is_some() {
                return Ok(word);
            }
        }
    }

    /// A whole line without its end.
    fn line(&mut self, searched: usize) -> Result<Option<BytesMut>, ProtocolError> {
        let end = self.buffer[searched..]
            .iter()
            .position(|byte| *byte == b'\n')
            .map(|place| searched + place);
        let length = end.unwrap_or(self.buffer.len());
        if length > LINE_BYTES_MAX {
            return Err(ProtocolError::LineTooLong);
        }
        let Some(end) = end else {
            self.state = State::Line { searched: length };
            return Ok(None);
        };
        let mut line = self.buffer.split_to(end + 1);
        line.truncate(end);
        if line.last() == Some(&b'\r') {
            line.truncate(end - 1);
        }
        Ok(Some(line))
    }

    /// The meaning of a line; none when it announces a payload.
    fn word(&mut self, line: &[u8]) -> Result<Option<Word>, ProtocolError> {
        let (word, rest) = match line.iter().position(|byte| matches!(byte, b' ' | b'\t')) {
            Some(place) => (&line[..place], &line[place + 1..]),
            None => (line, &[][..]),
        };
        Ok(Some(match word {
            b"MSG" => {
                self.state = announced(rest)?;
                return Ok(None);
            }
            b"PING" => Word::Ping,
            b"PONG" => Word::Pong,
            b"+OK" => Word::Ok,
            b"-ERR" => Word::Error(
                String::from_utf8_lossy(rest)
                    .trim_matches([' ', '\''])
                    .to_owned(),
            ),
            b"INFO" => Word::Info(
                serde_json::from_slice(rest)
                    .map_err(|error| ProtocolError::Greeting(error.to_string()))?,
            ),
            _ => return Err(ProtocolError::Unknown(shown(line))),
        }))
    }

    /// The message whose head was read and whose payload is here.
    fn message(&mut self, bytes: usize) -> Result<Word, ProtocolError> {
        // A copy: a slice would keep the whole buffer for as long as the message waits.
        let payload = Bytes::copy_from_slice(&self.buffer[..bytes]);
        let framed = self.buffer.split_to(bytes + END.len());
        if !framed.ends_with(END) {
            return Err(ProtocolError::NoEnd(bytes));
        }
        match std::mem::take(&mut self.state) {
            State::Payload(Head {
                subscription,
                subject,
                reply,
                ..
            }) => Ok(Word::Message {
                subscription,
                delivery: Delivery {
                    subject,
                    reply,
                    payload,
                },
            }),
            State::Line { .. } | State::Pass { .. } => unreachable!("called in a payload"),
        }
    }

    /// Skips the part of an unaccepted payload that is here.
    fn pass(&mut self) -> Result<Option<Word>, ProtocolError> {
        let State::Pass { left, whole } = &mut self.state else {
            unreachable!("called while passing over")
        };
        let here = self.buffer.len().min(*left);
        let _ = self.buffer.split_to(here);
        *left -= here;
        let whole = *whole;
        if *left > 0 || self.buffer.len() < END.len() {
            return Ok(None);
        }
        if self.buffer.split_to(END.len()) != END {
            return Err(ProtocolError::NoEnd(whole));
        }
        self.state = State::default();
        Ok(Some(Word::Unheard { bytes: whole }))
    }
}

/// Parses `subject subscription [reply] length` after `MSG`. The length, which is the last word,
/// decides where the next message begins, so it counts even if the other words are wrong.
fn announced(rest: &[u8]) -> Result<State, ProtocolError> {
    let mut words = rest
        .split(|byte| matches!(byte, b' ' | b'\t'))
        .filter(|word| !word.is_empty());
    let no_length = || ProtocolError::NoLength(shown(rest));
    let bytes = words.next_back().and_then(number).ok_or_else(no_length)?;
    let bytes = usize::try_from(bytes).map_err(|_| no_length())?;
    let (subject, subscription, reply) =
        (words.next(), words.next().and_then(number), words.next());
    let pass = State::Pass {
        left: bytes,
        whole: bytes,
    };
    Ok(match (subject, subscription, words.next()) {
        (Some(subject), Some(subscription), None) if bytes <= PAYLOAD_BYTES_MAX => {
            State::Payload(Head {
                subscription,
                subject: String::from_utf8_lossy(subject).into_owned(),
                reply: reply.and_then(|reply| String::from_utf8(reply.to_vec()).ok()),
                bytes,
            })
        }
        _ => pass,
    })
}

/// A number of at most 18 digits.
fn number(word: &[u8]) -> Option<u64> {
    let digits = !word.is_empty() && word.len() <= 18 && word.iter().all(u8::is_ascii_digit);
    digits.then(|| {
        word.iter()
            .fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
    })
}

fn shown(line: &[u8]) -> String {
    String::from_utf8_lossy(&line[..line.len().min(SHOWN_BYTES_MAX)]).into_owned()
}

/// The line in which a listener presents itself.
pub(crate) fn connect(own: &Connect<'_>) -> String {
    let fixed = Fixed {
        own,
        lang: "rust",
        version: env!("CARGO_PKG_VERSION"),
        protocol: 1,
        verbose: false,
        pedantic: false,
        echo: false,
        headers: false,
        no_responders: false,
    };
    let json = serde_json::to_string(&fixed).expect("text and switches are JSON");
    format!("CONNECT {json}\r\n")
}

/// The line that subscribes as one of a group, of which the server chooses one for each message.
/// Filters come from the table of subjects, and they and groups hold no white space.
pub(crate) fn subscribe(filter: &str, group: &str, subscription: u64) -> String {
    format!("SUB {filter} {group} {subscription}\r\n")
}

/// The line that ends a subscription.
pub(crate) fn unsubscribe(subscription: u64) -> String {
    format!("UNSUB {subscription}\r\n")
}

/// Asks the other end for a [`PONG`].
pub(crate) const PING: &[u8] = b"PING\r\n";
/// Answers a [`PING`].
pub(crate) const PONG: &[u8] = b"PONG\r\n";

#[cfg(test)]
mod tests;
