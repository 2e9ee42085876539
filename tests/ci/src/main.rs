//! `ci`: runs every check of the repository in the current folder. Exit status 0 if all of them passed.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    match ci::run::run(Path::new(".")) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ci: {error}");
            ExitCode::FAILURE
        }
    }
}
