//! Errors that have a code. A library's error names its code once; `?` carries it into a
//! [`Refusal`] and into the failure of a process.

use super::{Code, Refusal};

/// An error with a code.
pub trait Coded: std::fmt::Display {
    /// The code.
    fn code(&self) -> Code;

    /// The particulars: the text that follows the code's title.
    fn detail(&self) -> String {
        self.to_string()
    }
}

impl Coded for Refusal {
    fn code(&self) -> Code {
        self.code
    }

    fn detail(&self) -> String {
        self.detail.clone()
    }
}

/// Declares error types with a method `code` as [`Coded`](crate::Coded), and lets `?` turn them
/// into a [`Refusal`](crate::Refusal).
#[macro_export]
macro_rules! coded {
    ($($error:ty),+ $(,)?) => {$(
        impl $crate::Coded for $error {
            fn code(&self) -> $crate::Code {
                <$error>::code(self)
            }
        }

        impl From<$error> for $crate::Refusal {
            fn from(error: $error) -> Self {
                Self::new(error.code(), error.to_string())
            }
        }
    )+};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Full;

    impl Full {
        const fn code(&self) -> Code {
            Code::StoreFull
        }
    }

    impl std::fmt::Display for Full {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("no room for 3 bytes")
        }
    }

    coded!(Full);

    #[test]
    fn a_question_mark_carries_code_and_particulars() {
        let failed = || -> Result<(), Refusal> {
            Err(Full)?;
            Ok(())
        };
        let refusal = failed().expect_err("it failed");
        assert_eq!(
            refusal,
            Refusal::new(Code::StoreFull, "no room for 3 bytes")
        );
        assert_eq!(
            (Coded::code(&refusal), Coded::detail(&refusal)),
            (Code::StoreFull, refusal.detail.clone())
        );
    }
}
