//! The first process of a guest: loads modules, mounts the file system of the machine, runs the steps, powers off.

#![allow(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::unistd::{chdir, chroot};

use crate::plan::{self, Step};

/// The last line of a transcript.
pub const END: &str = "=== end";

/// Files of the first file system: names of modules in their order, the steps, and the modules' folder on the machine.
pub const ORDER: &str = "order";
pub const PLAN: &str = "plan";
pub const MODULES_FOLDER: &str = "modules-folder";

/// Folders of the first file system.
pub const FOLDERS: [&str; 7] = ["dev", "proc", "modules", "machine", "memory", "root", "sys"];

/// The name under which a guest mounts the file system of the machine.
pub const MOUNT_TAG: &str = "machine";

/// The port to which the transcript is written. The console has the messages of the kernel.
const TRANSCRIPT: &str = "/dev/ttyS1";

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs the guest. If the guest does not end, the machine kills it after a time.
///
/// # Panics
/// If it cannot power off. Then the kernel panics, and the guest ends as well.
pub fn run() -> ! {
    if let Err(error) = run_steps() {
        eprintln!("kernels: {error}");
    }
    nix::unistd::sync();
    // SAFETY: the call has no pointers, and nothing of this guest is needed any longer.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    panic!("the guest did not power off");
}

fn run_steps() -> io::Result<()> {
    let read = |file: &str| fs::read_to_string(Path::new("/").join(file)).map_err(|error| explain(file, error));
    let (order, plan, modules) = (read(ORDER)?, read(PLAN)?, read(MODULES_FOLDER)?);
    let steps = plan::read(&plan).ok_or_else(|| io::Error::other("a line of the plan is not a step"))?;
    for module in order.lines() {
        load_module(module)?;
    }
    mount_all(Path::new(&modules))?;
    let mut transcript = OpenOptions::new().write(true).open(TRANSCRIPT).map_err(|error| explain(TRANSCRIPT, error))?;
    // The kernel loads other modules on demand, by this program.
    fs::write("/proc/sys/kernel/modprobe", "/usr/sbin/modprobe")?;
    command("ip").args(["link", "set", "lo", "up"]).status()?;
    for step in &steps {
        writeln!(transcript, "{}", step.header())?;
        let start = Instant::now();
        let end = run_step(step, &transcript)?;
        let end = end.map_or_else(|| format!("killed after {} s", step.seconds), |status| status.to_string());
        writeln!(transcript, "=== {}: {end}, {} s", step.name, start.elapsed().as_secs())?;
    }
    writeln!(transcript, "{END}")
}

fn explain(subject: &str, error: impl Into<io::Error>) -> io::Error {
    io::Error::other(format!("{subject}: {}", error.into()))
}

fn load_module(module: &str) -> io::Result<()> {
    let path = Path::new("/modules").join(module);
    let file = File::open(&path).map_err(|error| explain(module, error))?;
    // SAFETY: the descriptor is open, and the parameters are a string that ends with zero.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    if result == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    // The module may be loaded already: another module, or the kernel itself, may have requested it.
    if error.raw_os_error() == Some(libc::EEXIST) { Ok(()) } else { Err(explain(module, error)) }
}

/// Makes the file system of the machine the root. Changes stay in memory.
fn mount_all(modules: &Path) -> io::Result<()> {
    let options = "trans=virtio,version=9p2000.L,msize=524288,cache=loose";
    let none = MsFlags::empty();
    mount_one(MOUNT_TAG, "/machine", "9p", MsFlags::MS_RDONLY, options)?;
    mount_one("memory", "/memory", "tmpfs", none, "mode=755")?;
    for folder in ["/memory/changes", "/memory/work"] {
        fs::create_dir(folder)?;
    }
    mount_one("root", "/root", "overlay", none, "lowerdir=/machine,upperdir=/memory/changes,workdir=/memory/work")?;
    let root = Path::new("/root");
    let release = modules.file_name().ok_or_else(|| io::Error::other("no folder of modules"))?;
    let target = root.join("lib/modules").join(release);
    fs::create_dir_all(&target)?;
    let inside = root.join(modules.strip_prefix("/").unwrap_or(modules));
    mount(Some(&inside), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|error| explain("modules", error))?;
    mount_one("proc", "/root/proc", "proc", none, "")?;
    mount_one("sys", "/root/sys", "sysfs", none, "")?;
    mount_one("cgroup2", "/root/sys/fs/cgroup", "cgroup2", none, "")?;
    mount_one("dev", "/root/dev", "devtmpfs", none, "")?;
    mount_one("run", "/root/run", "tmpfs", none, "mode=755")?;
    for folder in ["/root/dev/pts", "/root/dev/shm"] {
        fs::create_dir_all(folder)?;
    }
    mount_one("pts", "/root/dev/pts", "devpts", none, "")?;
    mount_one("shm", "/root/dev/shm", "tmpfs", none, "")?;
    chdir(root)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
    chroot(".")?;
    Ok(chdir("/")?)
}

fn mount_one(source: &str, target: &str, kind: &str, flags: MsFlags, options: &str) -> io::Result<()> {
    mount(Some(source), target, Some(kind), flags, Some(options)).map_err(|error| explain(target, error))
}

fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", PATH).env("HOME", "/root").stdin(Stdio::null());
    command
}

/// Runs a step, and kills it after its time. `None` if it was killed.
fn run_step(step: &Step, transcript: &File) -> io::Result<Option<ExitStatus>> {
    let mut command = command(&step.program);
    command.args(&step.arguments).current_dir(&step.folder).env("CARGO_MANIFEST_DIR", &step.folder);
    command.stdout(transcript.try_clone()?).stderr(transcript.try_clone()?);
    let mut child = command.spawn().map_err(|error| explain(&step.name, error))?;
    let deadline = Instant::now() + Duration::from_secs(step.seconds.into());
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        sleep(Duration::from_millis(20));
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}
