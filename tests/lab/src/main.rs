//! `lab`: real Kubernetes clusters on this machine, from the command line.
//!
//! Reads arguments, calls the library, prints. The clusters run on after the command has ended, until `lab down`.
#![allow(clippy::print_stdout, reason = "a command prints its output")]

mod cli;

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    match cli::run().await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}
