//! A reader for the subjects that strangers write to. The client library parses the headers of
//! every message, and drops its connection at one that it cannot parse. This reader tells the
//! broker `headers: false` and gets no headers; the rest of the protocol is six words.
//!
//! | file | holds |
//! | --- | --- |
//! | `protocol` | the words: bytes in, what they say out; bounded, pure |
//! | `link` | one connection: greeting, TLS, proof of the key, subscriptions |
//! | `listener` | what others use: connected for as long as somebody listens |
//! | `answer` | the way back to senders in other accounts |
//! | `silence` | the times without a connection |
//! | `queue` | messages that wait for their listener, and a count of those that could not |

mod answer;
mod link;
mod listener;
pub(crate) mod protocol;
mod queue;
mod silence;

pub use listener::Listener;
pub use protocol::Delivery;
pub use silence::{Gap, Silence};
