//! One guest: QEMU without virtualization, from its start to its end.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::guest::MOUNT_TAG;

const QEMU: &str = "qemu-system-x86_64";

/// The processor: an old one, without features that are slow under emulation, such as copies byte by byte, page tables
/// of five levels and wide registers. The kernel seeds its random numbers with rdrand. A second processor would cost
/// more time than it saves: each change of page tables interrupts it, and tests run one after the other.
const PROCESSOR: &str = "qemu64,+rdrand";
const PROCESSORS: &str = "1";

/// The clock of the guest: each instruction takes 2 ns. The clock follows that of the machine only while the guest is
/// idle. So a busy machine does not make a guest miss the bounds of its tests.
const CLOCK: [&str; 2] = ["-icount", "shift=1"];

/// Parameters of the kernel. Emulated processors need no mitigations, and their clocks are late at times.
const PARAMETERS: &str = "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable nowatchdog audit=0";

/// The end of a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestEnd {
    PoweredOff,
    /// It ran longer than permitted, and was killed.
    Killed,
}

/// Runs a guest with this kernel and first file system. Its console and its transcript go to these files.
///
/// # Errors
/// If QEMU cannot be started, or refuses its arguments.
pub fn run(kernel: &Path, initial: &Path, console: &Path, transcript: &Path, limit: Duration) -> io::Result<GuestEnd> {
    fs::write(transcript, "")?;
    let log = File::create(console)?;
    let mut command = Command::new(QEMU);
    command.args(["-machine", "q35", "-accel", "tcg,thread=single", "-cpu", PROCESSOR]);
    command.args(["-smp", PROCESSORS, "-m", "2048"]).args(CLOCK);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-net", "none"]);
    command.args(["-serial", "stdio", "-serial", &format!("file:{}", transcript.display())]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(initial).args(["-append", PARAMETERS]);
    let share = format!("local,path=/,mount_tag={MOUNT_TAG},security_model=none,readonly=on,multidevs=remap");
    command.args(["-virtfs", &share]);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let mut child = command.spawn().map_err(|error| io::Error::other(format!("{QEMU}: {error}")))?;
    let deadline = Instant::now() + limit;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait()? {
            return if status.success() {
                Ok(GuestEnd::PoweredOff)
            } else {
                Err(io::Error::other(format!("{QEMU}: {status}, see {}", console.display())))
            };
        }
        sleep(Duration::from_millis(100));
    }
    child.kill()?;
    child.wait()?;
    Ok(GuestEnd::Killed)
}
