//! The output of commands. Log lines go to standard error, see [`crate::logging`].

use std::io::Write;

use anyhow::Context;

/// Prints to standard output. A closed pipe, as with `| head`, is not an error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("write to standard output"),
        _ => Ok(()),
    }
}
