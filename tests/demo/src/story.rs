//! How the story looks on a terminal: chapters, commands with what they print, and findings.

use std::io::{IsTerminal, Write};

/// Prints the story to standard output.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Story {
    colours: bool,
}

impl Story {
    /// With colours if a person is watching, and wants them (<https://no-color.org>).
    pub(crate) fn new() -> Self {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { colours }
    }

    /// A new chapter.
    pub(crate) fn chapter(&self, title: &str) {
        self.print(&format!("\n{}\n", self.paint("1", title)));
    }

    /// A line of telling.
    pub(crate) fn tell(&self, line: &str) {
        self.print(&format!("  {line}\n"));
    }

    /// What was found: the lines that a hurried reader should read.
    pub(crate) fn find(&self, line: &str) {
        self.print(&format!("  {} {line}\n", self.paint("32;1", "=>")));
    }

    /// A command as a person would type it, and what it printed.
    pub(crate) fn command(&self, command: &str, printed: &str) {
        self.print(&format!("    {}\n", self.paint("36", &format!("$ {command}"))));
        for line in printed.trim_end().lines() {
            self.print(&format!("    {line}\n"));
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn print(&self, text: &str) {
        // A reader that went away does not stop the story: the cluster must still be told how it ends.
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }
}
