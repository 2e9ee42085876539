//! All kernels, one after the other, and the exit status.

#![allow(clippy::print_stdout, reason = "a command prints its output")]

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use ci::executable::executables;

use crate::archive::Archive;
use crate::catalog::{
    DOCTOR, GUEST_LIMIT, KNOWN, MAY_BE_ABSENT, MODULES, OPTIMIZED, SELECTIONS, SERIES, STEP_SECONDS, SUITES, Selection,
};
use crate::guest::{FOLDERS, MODULES_FOLDER, ORDER, PLAN};
use crate::machine;
use crate::modules::{self, ModuleTable};
use crate::package_name;
use crate::packages::{self, UnpackedKernel, output};
use crate::plan::{self, Step};
use crate::verdict::{self, Verdict};

/// Runs the steps in `only` on the series in `selected`. An empty list means all. Returns whether all pass.
pub fn run(root: &Path, selected: &[String], only: &[String]) -> io::Result<bool> {
    let start = Instant::now();
    let root = root.canonicalize()?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let folder = target.join("kernels");
    fs::create_dir_all(&folder)?;
    let mut steps = steps(&root, &target)?;
    if !only.is_empty() {
        steps.retain(|step| only.contains(&step.name));
    }
    let has_step = |selection: &&Selection| steps.iter().any(|step| step.name == selection.name());
    for left_out in SELECTIONS.iter().filter(has_step).filter_map(Selection::describe_left_out) {
        println!("{left_out}");
    }
    let mut passes = true;
    for series in if selected.is_empty() { all_series()? } else { selected.to_vec() } {
        let Some(kernel) = packages::provide(&folder, &series)? else {
            println!("Linux {series}: skipped: no package in {}", SUITES.join(", "));
            continue;
        };
        passes &= run_kernel(&folder.join(&series), &series, &kernel, &steps)?;
    }
    println!("{} in {} s", if passes { "all kernels pass" } else { "not all kernels pass" }, start.elapsed().as_secs());
    Ok(passes)
}

/// All series, and the one of this machine's kernel.
fn all_series() -> io::Result<Vec<String>> {
    let own = package_name::series(fs::read_to_string("/proc/sys/kernel/osrelease")?.trim());
    let mut all: Vec<String> = SERIES.map(str::to_owned).into();
    all.extend(own.filter(|own| !SERIES.contains(&own.as_str())));
    Ok(all)
}

/// Builds the tests, and returns the steps of each guest. All packages are selected, because the features of
/// dependencies depend on the selection.
fn steps(root: &Path, target: &Path) -> io::Result<Vec<Step>> {
    let mut command = Command::new("cargo");
    command.args(["test", "--workspace", "--locked", "--no-run", "--message-format", "json-render-diagnostics"]);
    command.args(
        OPTIMIZED
            .iter()
            .flat_map(|package| ["--config".to_owned(), format!("profile.dev.package.{package}.opt-level=2")]),
    );
    command.args(SELECTIONS.iter().flat_map(|it| ["--test", it.target]));
    command.current_dir(root).stderr(Stdio::inherit());
    let executables = executables(&output(&mut command)?);
    let step = |selection: &Selection| {
        let &Selection { package, target, arguments, .. } = selection;
        let found = executables.iter().find(|it| it.target == target && it.folder.ends_with(package));
        let found = found.ok_or_else(|| io::Error::other(format!("cargo has not built {package}/{target}")))?;
        Ok(Step {
            name: selection.name(),
            program: found.path.clone(),
            // Emulation is slow: tests that run beside each other would exceed their bounds.
            arguments: ["--include-ignored", "--test-threads=1"]
                .iter()
                .chain(arguments)
                .map(|it| (*it).to_owned())
                .collect(),
            folder: found.folder.clone(),
            seconds: STEP_SECONDS,
        })
    };
    let mut steps: Vec<Step> = SELECTIONS.iter().map(step).collect::<io::Result<_>>()?;
    let (name, program) = (DOCTOR.to_owned(), target.join("debug/doctor"));
    steps.push(Step { name, program, arguments: Vec::new(), folder: root.to_owned(), seconds: STEP_SECONDS });
    Ok(steps)
}

/// Runs all steps on a kernel, and prints the results.
fn run_kernel(folder: &Path, series: &str, kernel: &UnpackedKernel, steps: &[Step]) -> io::Result<bool> {
    let start = Instant::now();
    let release = kernel.modules.file_name().unwrap_or_default().display();
    let [initial, console, transcript] = ["initial", "console.log", "transcript.log"].map(|name| folder.join(name));
    fs::write(&initial, first_file_system(kernel, steps)?)?;
    let end = machine::run(&kernel.image, &initial, &console, &transcript, GUEST_LIMIT)?;
    let text = String::from_utf8_lossy(&fs::read(&transcript)?).into_owned();
    let verdict = verdict::decide(&text, end, steps, series, &KNOWN);
    println!("Linux {release}: {} in {} s", verdict.counts(), start.elapsed().as_secs());
    println!("  {}", verdict::durations(&text, steps).join(", "));
    print_details(&verdict);
    if !verdict.passes() {
        println!("  console: {}\n  transcript: {}", console.display(), transcript.display());
    }
    Ok(verdict.passes())
}

fn print_details(verdict: &Verdict) {
    for (name, cause) in &verdict.skipped {
        println!("  skipped  {name}: {cause}");
    }
    for (name, reason) in &verdict.known {
        println!("  known    {name}: {reason}");
    }
    for (name, output) in &verdict.failed {
        println!("  FAILED   {name}");
        for line in output.lines() {
            println!("    {line}");
        }
    }
}

/// This program as the first process, the modules, and the steps.
fn first_file_system(kernel: &UnpackedKernel, steps: &[Step]) -> io::Result<Vec<u8>> {
    let read = |file: &str| fs::read_to_string(kernel.modules.join(file));
    let order = ModuleTable::parse(&read("modules.dep")?, &read("modules.builtin")?).load_order(&MODULES);
    if let Some(absent) = order.absent.iter().find(|module| !MAY_BE_ABSENT.contains(&module.as_str())) {
        return Err(io::Error::other(format!("{} has no module {absent}", kernel.modules.display())));
    }
    let mut archive = Archive::default();
    FOLDERS.iter().for_each(|folder| archive.add_folder(folder));
    archive.add_device("dev/console", (5, 1));
    archive.add_device("dev/null", (1, 3));
    archive.add_file("init", &fs::read("/proc/self/exe")?);
    for path in &order.paths {
        archive.add_file(&format!("modules/{}", modules::name(path)), &module(&kernel.modules.join(path))?);
    }
    let names: Vec<String> = order.paths.iter().map(|path| modules::name(path)).collect();
    archive.add_file(ORDER, names.join("\n").as_bytes());
    archive.add_file(PLAN, plan::write(steps).as_bytes());
    archive.add_file(MODULES_FOLDER, kernel.modules.to_string_lossy().as_bytes());
    Ok(archive.finish())
}

/// The content of a module, uncompressed: not every kernel can uncompress modules.
fn module(path: &Path) -> io::Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "ko") {
        return fs::read(path);
    }
    let output = Command::new("xz").args(["--decompress", "--stdout"]).arg(path).output()?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(io::Error::other(format!("xz: {}", String::from_utf8_lossy(&output.stderr).trim())))
}
