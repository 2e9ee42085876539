//! The look of the demo on a terminal: chapters, commands with their output, and findings.

use std::io::{IsTerminal, Write};

/// Prints the demo to standard output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Story {
    has_colours: bool,
}

impl Story {
    /// Uses colours if standard output is a terminal and the user allows it (<https://no-color.org>).
    pub(crate) fn new() -> Self {
        let has_colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { has_colours }
    }

    /// Starts a chapter.
    pub(crate) fn chapter(&self, title: &str) {
        self.print(&format!("\n{}\n", self.paint("1", title)));
    }

    /// Prints a line of explanation.
    pub(crate) fn explain(&self, line: &str) {
        self.print(&format!("  {line}\n"));
    }

    /// Prints a result, marked for readers who skip the rest.
    pub(crate) fn find(&self, line: &str) {
        self.print(&format!("  {} {line}\n", self.paint("32;1", "=>")));
    }

    /// Prints a command, as a user would type it, and its output.
    pub(crate) fn command(&self, command: &str, output: &str) {
        self.print(&format!("    {}\n", self.paint("36", &format!("$ {command}"))));
        for line in output.trim_end().lines() {
            self.print(&format!("    {line}\n"));
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.has_colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn print(&self, text: &str) {
        // A closed pipe does not stop the demo: it still has to remove its cluster.
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}
