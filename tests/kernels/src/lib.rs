//! Runs the kernel tests on Debian's kernels in QEMU, without virtualization. `make kernels` builds and starts it.
//!
//! ```text
//! apt packages --> kernel and modules --+
//! cargo test --no-run --> test executables --> plan --+--> guest in QEMU --> transcript --> verdict
//! ```
//!
//! A guest sees the file system of this machine read-only (9p) and writes to memory, so test executables, `nft` and
//! `ip` are those of this machine. The same program is the first process of the guest.
//!
//! | file | content |
//! |---|---|
//! | `catalog` | the kernels, the modules, the tests, and the known failures |
//! | `packages` | kernels from packages of Debian |
//! | `package_name` | names of packages → the newest of a series; pure |
//! | `modules` | `modules.dep` → the order of loading; pure |
//! | `archive` | the first file system of a guest, in the format newc; pure |
//! | `plan` | the steps that a guest runs; pure |
//! | `machine` | one guest from its start to its end |
//! | `guest` | the first process of a guest |
//! | `verdict` | the transcript of a guest → passed, failed, known and skipped tests; pure |
//! | `run` | all kernels, and the exit status |

mod archive;
mod catalog;
pub mod guest;
mod machine;
mod modules;
mod package_name;
mod packages;
mod plan;
pub mod run;
mod verdict;
