//! What the command line prints for its user; log lines go elsewhere, see [`crate::logging`].

use std::io::Write;

use anyhow::Context;

/// Prints to standard output. A reader that went away (`| head`) is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("print"),
        _ => Ok(()),
    }
}
