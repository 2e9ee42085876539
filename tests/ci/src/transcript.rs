//! The output of a stage, which goes to standard output and to a log, and the commands that write it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::executable::MESSAGE;

/// The output of the commands of a stage, in order.
pub struct Transcript {
    log: File,
    text: Vec<u8>,
    prints: bool,
}

impl Transcript {
    /// Starts an empty transcript. All output is also written to the file `log`.
    pub fn create(log: &Path) -> io::Result<Self> {
        Ok(Self { log: File::create(log)?, text: Vec::new(), prints: true })
    }

    /// Starts an empty transcript that is written to the file `log` only.
    pub fn create_silent(log: &Path) -> io::Result<Self> {
        Ok(Self { prints: false, ..Self::create(log)? })
    }

    /// Adds output. Messages for programs are not printed.
    pub fn add(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.prints && !lines.starts_with(MESSAGE.as_bytes()) {
            io::stdout().lock().write_all(lines)?;
        }
        self.log.write_all(lines)?;
        self.text.extend_from_slice(lines);
        Ok(())
    }

    /// Runs a command to its end, and adds each line of its output. Returns whether it exits with status 0.
    pub fn run(&mut self, command: Command) -> io::Result<bool> {
        run_command(command, |line| self.add(line))
    }

    /// All output so far.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.text).into_owned()
    }
}

/// Runs a command to its end. Calls `receive` for each line of its standard output and standard error, in order.
/// Returns whether it exits with status 0.
pub fn run_command(mut command: Command, mut receive: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<bool> {
    let (reader, writer) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).env("CARGO_TERM_COLOR", "never");
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            receive(format!("{}: {error}\n", command.get_program().display()).as_bytes())?;
            return Ok(false);
        }
    };
    // The command holds the writing end of the pipe. Until it is dropped, the reader sees no end.
    drop(command);
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        receive(&line)?;
        line.clear();
    }
    Ok(child.wait()?.success())
}

/// Writes to standard output.
pub fn print(text: &str) -> io::Result<()> {
    io::stdout().lock().write_all(text.as_bytes())
}
