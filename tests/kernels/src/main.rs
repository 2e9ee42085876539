//! `kernels [SERIES...] [--steps STEP...]`: runs the kernel tests on these kernels, or on all. A step is, for example,
//! `dataplane::links` or `doctor`; without `--steps`, all run. In a guest, this program is the first process.

use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::process::id() == 1 {
        kernels::guest::run();
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut parts = arguments.split(|argument| argument == "--steps");
    let (series, steps) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    match kernels::run::run(&root, series, steps) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kernels: {error}");
            ExitCode::from(2)
        }
    }
}
