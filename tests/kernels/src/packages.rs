//! Kernels from Debian's packages: downloaded by apt with settings and lists of its own, unpacked, not installed.
//!
//! ```text
//!   target/kernels/apt/           settings, lists and cache of apt
//!   target/kernels/SERIES/tree/   the unpacked package, with modules.dep
//!   target/kernels/SERIES/package its name; written last
//! ```

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::catalog::SUITES;
use crate::package_name;

/// The keys of Debian's archive.
const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// An unpacked kernel.
#[derive(Debug)]
pub struct UnpackedKernel {
    /// The kernel itself.
    pub image: PathBuf,
    /// The folder with `modules.dep`. Its name is the release.
    pub modules: PathBuf,
}

/// Runs a command, and returns its output.
pub fn output(command: &mut Command) -> io::Result<String> {
    let program = command.get_program().display().to_string();
    let output = command.output().map_err(|error| io::Error::other(format!("{program}: {error}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(io::Error::other(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

/// Makes the kernel of a series available below `folder`. `None` if no suite has a package.
pub fn provide(folder: &Path, series: &str) -> io::Result<Option<UnpackedKernel>> {
    let own = folder.join(series);
    let tree = own.join("tree");
    if own.join("package").exists() {
        return find(&tree).map(Some);
    }
    let apt = Apt::open(folder.join("apt"))?;
    let names = output(apt.command("apt-cache").args(["pkgnames", &format!("linux-image-{series}.")]))?;
    let Some(package) = package_name::newest(names.lines(), series) else { return Ok(None) };
    eprintln!("fetching {package}");
    if own.exists() {
        fs::remove_dir_all(&own)?;
    }
    fs::create_dir_all(&tree)?;
    output(apt.command("apt-get").args(["download", "--quiet", package]).current_dir(&own))?;
    let file = entry(&own, |name| name.ends_with(".deb"))?;
    output(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(&tree))?;
    fs::remove_file(file)?;
    let modules = find_modules(&tree)?;
    let base = modules.ancestors().nth(3).unwrap_or(&tree);
    let release = modules.file_name().unwrap_or_default();
    output(Command::new("depmod").arg("--basedir").arg(base).arg(release))?;
    fs::write(own.join("package"), package)?;
    find(&tree).map(Some)
}

/// The parts of an unpacked package.
fn find(tree: &Path) -> io::Result<UnpackedKernel> {
    let image = entry(&tree.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    Ok(UnpackedKernel { image, modules: find_modules(tree)? })
}

/// The folder of modules. Since Debian 13 it is below `usr`.
fn find_modules(tree: &Path) -> io::Result<PathBuf> {
    let folders = ["usr/lib/modules", "lib/modules"].map(|folder| tree.join(folder));
    let folder = folders.iter().find(|folder| folder.exists());
    entry(folder.ok_or_else(|| io::Error::other("the package has no modules"))?, |_| true)
}

/// The first entry of a folder with a wanted name.
fn entry(folder: &Path, is_wanted: impl Fn(&str) -> bool) -> io::Result<PathBuf> {
    let entries = fs::read_dir(folder)?.flatten();
    let mut wanted = entries.filter(|entry| is_wanted(&entry.file_name().to_string_lossy()));
    let found = wanted.next().ok_or_else(|| io::Error::other(format!("{} has no such file", folder.display())))?;
    Ok(found.path())
}

/// apt, with sources and lists of its own.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Prepares the folder, and fetches the lists of packages if it has none.
    fn open(folder: PathBuf) -> io::Result<Self> {
        let apt = Self { folder };
        let ready = apt.folder.join("ready");
        if ready.exists() {
            return Ok(apt);
        }
        fs::create_dir_all(apt.folder.join("lists/partial"))?;
        fs::create_dir_all(apt.folder.join("cache/archives/partial"))?;
        let mirror = mirror()?;
        let text =
            format!("Types: deb\nURIs: {mirror}\nSuites: {}\nComponents: main\nSigned-By: {KEYS}\n", SUITES.join(" "));
        fs::write(apt.folder.join("debian.sources"), text)?;
        eprintln!("fetching the lists of packages of {}", SUITES.join(", "));
        output(apt.command("apt-get").args(["update", "--quiet"]))?;
        fs::write(ready, "")?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let path = |name: &str| self.folder.join(name).display().to_string();
        let mut command = Command::new(program);
        for option in [
            format!("Dir::Etc::SourceList={}", path("debian.sources")),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            format!("Dir::State::Lists={}", path("lists")),
            format!("Dir::Cache={}", path("cache")),
            "Acquire::Languages=none".to_owned(),
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".to_owned(),
            // The default user, `_apt`, may lack the right to write into this folder.
            "APT::Sandbox::User=root".to_owned(),
            // If the mirror does not answer, apt fails soon.
            "Acquire::http::Timeout=20".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }
}

/// The mirror of Debian's archive that this machine uses.
fn mirror() -> io::Result<String> {
    let format = "$(ORIGIN) $(LABEL) $(SITE)";
    let targets = output(Command::new("apt-get").args(["indextargets", "--format", format]))?;
    let site = targets.lines().find_map(|line| line.strip_prefix("Debian Debian "));
    let site = site.ok_or_else(|| io::Error::other("apt has no source of Debian: run apt-get update, on Debian"))?;
    Ok(site.to_owned())
}
