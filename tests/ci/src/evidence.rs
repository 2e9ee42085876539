//! The folder for the logs of one run: `target/evidence/run-N`. The folders of the newest runs are kept.
//!
//! ```text
//!   format.log build.log setup.log lints.log unit.log end-to-end.log   complete output of each stage
//!   durations.json                                                     duration of each test and scene
//!   first/BINARY.TEST.log                                              output of a failed end-to-end test
//!   first/CLUSTER/                                                     logs, objects and frames that the lab collected
//!   second-1/output.log  second-1/CLUSTER/                             same for the first test that ran again, alone
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Folder of all runs, below the root of the repository.
const EVIDENCE: &str = "target/evidence";

/// How many runs are kept. A run with failures takes up to 100 MB.
const KEPT_RUNS: usize = 5;

/// The folder of one run.
#[derive(Clone, Debug)]
pub struct Evidence {
    root: PathBuf,
    /// Path below `root`.
    folder: PathBuf,
}

impl Evidence {
    /// Makes the folder of a new run in the repository at `root`, and removes the oldest runs.
    pub fn create(root: &Path) -> io::Result<Self> {
        let root = root.canonicalize()?;
        let all = root.join(EVIDENCE);
        fs::create_dir_all(&all)?;
        let entries = fs::read_dir(&all)?.flatten();
        let number = |entry: fs::DirEntry| entry.file_name().to_str()?.strip_prefix("run-")?.parse().ok();
        let mut numbers: Vec<u32> = entries.filter_map(number).collect();
        numbers.sort_unstable();
        let next = numbers.last().map_or(1, |last| last + 1);
        for old in numbers.iter().rev().skip(KEPT_RUNS - 1) {
            fs::remove_dir_all(all.join(format!("run-{old}")))?;
        }
        let evidence = Self { root, folder: Path::new(EVIDENCE).join(format!("run-{next}")) };
        fs::create_dir(evidence.absolute(""))?;
        Ok(evidence)
    }

    /// Path below the root of the repository, for people.
    pub fn relative(&self, name: &str) -> String {
        let path = if name.is_empty() { self.folder.clone() } else { self.folder.join(name) };
        path.display().to_string()
    }

    /// Path for programs that run in another folder.
    pub fn absolute(&self, name: &str) -> PathBuf {
        self.root.join(self.relative(name))
    }

    /// Makes a folder in the folder of the run, and returns its absolute path.
    pub fn create_folder(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.absolute(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }
}
