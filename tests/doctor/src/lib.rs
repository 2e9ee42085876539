//! Checks whether this machine can run the lab. Each check has the state of the machine, the requirement, and the fix.
//!
//! The doctor is compiled and run before anything else, so that it reports an unsuitable machine within seconds. It
//! creates only namespaces and mounts without names, which end with its threads.
//!
//! | file | content |
//! |---|---|
//! | [`check`] | one check and its line; the report; pure |
//! | [`control_groups`] | mounts → how the lab uses the control groups; also for the lab itself |
//! | `resources` | root, memory, disk |
//! | `kernel` | namespaces, cables, bridge, overlayfs |
//! | `nftables` | the parts of nf_tables that Landfall, kube-proxy and the lab use |
//! | `landfall_tables` | Landfall's tables, as its engine writes them |
//! | `tools` | programs, and the Debian packages with them |
#![allow(missing_docs, reason = "only this repository uses this library")]

pub mod check;
pub mod control_groups;
mod kernel;
mod landfall_tables;
mod nftables;
mod resources;
mod tools;

use check::{Check, Report};

pub use control_groups::{ContainerGroups, ControlGroups};

/// The help text of the command.
pub const HELP: &str = "\
Check whether this machine can run the lab, in a second.

It prints one line per check: the state of the machine, the requirement (\"needed\"), and the fix (\"do\").

  ok       the machine has it
  note     `make demo` runs; some tests or features need it, or it is scarce
  untried  not checked yet: it needs root, or a program that is not installed
  MISSING  `make demo` and `make test` cannot run without it

It exits with status 1 if something is MISSING, else with 0. It changes nothing: it tries kernel features in namespaces
that end with it. `make demo` and `make test` run it first.

Control groups of every kind are suitable: cgroup2 alone (all current distributions), version 1 with a cgroup2 mount
beside it (hybrid), and a privileged container. Where cgroup2 lacks the controllers cpu, memory and pids, containers run
without limits.

Kernel features are tried, not read from a configuration: the kernel loads modules on demand. If a feature is MISSING,
the line names its option in the kernel's configuration. On Ubuntu many are in linux-modules-extra-$(uname -r).
";

/// The selection of lines to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Omit lines that are ok or untried, and the conclusion if nothing is missing.
    pub quiet: bool,
    /// Before tests/setup.sh has run: a program that it installs is not missing.
    pub before_setup: bool,
    /// Print only the names of missing Debian packages, one per line.
    pub packages: bool,
}

/// The text to print, and whether the machine can run the lab.
pub fn examine(options: Options) -> (String, bool) {
    if options.packages {
        let lines = tools::missing_packages().into_iter().map(|package| format!("{package}\n"));
        return (lines.collect(), true);
    }
    let mut checks: Vec<Check> = resources::checks();
    checks.extend(kernel::checks());
    checks.push(control_groups::check());
    checks.extend(nftables::checks());
    checks.extend(landfall_tables::checks());
    checks.extend(tools::checks(options.before_setup));
    let report = Report { checks };
    (report.render(options.quiet), report.is_suitable())
}
