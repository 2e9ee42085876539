//! The causes of an error, for logs. Pure.

/// The causes of an error, down to the kernel's own message.
pub(crate) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    causes.join(": ")
}
