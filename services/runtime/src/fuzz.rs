//! A door for the fuzz targets: what a listener understands of any bytes.

use crate::listen::protocol::Parser;

/// The words in `bytes`, in the form of debugging, up to the first that cannot be understood. They
/// arrive in pieces of `piece` bytes.
pub fn words(bytes: &[u8], piece: usize) -> Vec<String> {
    let mut parser = Parser::default();
    let mut words = Vec::new();
    for piece in bytes.chunks(piece) {
        parser.buffer().extend_from_slice(piece);
        loop {
            match parser.next() {
                Ok(Some(word)) => words.push(format!("{word:?}")),
                Ok(None) => break,
                Err(error) => {
                    words.push(format!("{error:?}"));
                    return words;
                }
            }
        }
    }
    words
}
