//! Network namespaces as values: hosts for tests, in the real kernel.
//!
//! A [`Namespace`] is a host. [`veth`] is a cable between two hosts. [`Namespace::run`] runs a closure inside,
//! [`Namespace::command`] starts a process inside, and [`Namespace::ip`] sets up addresses, routes and bridges with
//! command lines of `ip`.
//!
//! ```text
//!   let (a, b) = (Namespace::new()?, Namespace::new()?);
//!   veth((&a, "eth0"), (&b, "eth0"))?;
//!   a.ip(["addr add 192.0.2.1/24 dev eth0", "link set eth0 up"])?;
//! ```
//!
//! The kernel removes a namespace without a name when its last handle is closed and its last process has ended. So a
//! test leaves nothing behind, however it ends. A named one (`/run/netns/NAME`, as for `ip netns`) stays until
//! [`Namespace::delete`].
#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// Folder of named namespaces, shared with `ip netns`.
const NAMED: &str = "/run/netns";

/// A network namespace. A clone is another handle on the same namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    handle: Arc<File>,
}

impl Namespace {
    /// Creates a namespace without a name, with its loopback up. Needs root, or a user namespace of its own.
    pub fn new() -> io::Result<Self> {
        let handle = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            set_loopback_up()?;
            File::open("/proc/thread-self/ns/net")
        })
        .join()
        .expect("invariant: making a namespace does not panic")?;
        Ok(Self { handle: Arc::new(handle) })
    }

    /// Creates a namespace that `ip netns` lists as `name`, with its loopback up. Fails if the name exists.
    pub fn create_named(name: &str) -> io::Result<Self> {
        let path = Self::path_of(name);
        std::fs::create_dir_all(NAMED)?;
        File::create_new(&path)?;
        let bound = path.clone();
        let made = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            set_loopback_up()?;
            let none = None::<&str>;
            mount(Some("/proc/thread-self/ns/net"), &bound, none, MsFlags::MS_BIND, none)?;
            Ok(())
        })
        .join()
        .expect("invariant: making a namespace does not panic");
        if let Err(error) = made {
            let _ = std::fs::remove_file(&path);
            return Err(error);
        }
        Self::open(name)
    }

    /// Opens the namespace that `ip netns` lists as `name`.
    pub fn open(name: &str) -> io::Result<Self> {
        Ok(Self { handle: Arc::new(File::open(Self::path_of(name))?) })
    }

    /// Opens the namespace of a process.
    pub fn of_process(pid: i32) -> io::Result<Self> {
        Ok(Self { handle: Arc::new(File::open(format!("/proc/{pid}/ns/net"))?) })
    }

    /// Removes the name. The kernel removes the namespace when its last handle is closed and its last process has
    /// ended. Succeeds if the name does not exist.
    pub fn delete(name: &str) -> io::Result<()> {
        let path = Self::path_of(name);
        if !path.exists() {
            return Ok(());
        }
        // Fails if the file is no mount, as after a restart of the machine. Then only the file is removed.
        let _ = umount2(&path, MntFlags::MNT_DETACH);
        std::fs::remove_file(&path)
    }

    /// The file of a named namespace, for `nsenter --net=`.
    pub fn path_of(name: &str) -> PathBuf {
        Path::new(NAMED).join(name)
    }

    /// A path to this namespace, valid while this process keeps the handle.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.handle.as_raw_fd()))
    }

    /// Runs `work` inside, on a new thread, and returns its result. Sockets and async runtimes that `work` opens belong
    /// to this namespace and stay usable outside of it.
    ///
    /// # Panics
    /// If `work` panics, with the same message, or if entering the namespace fails.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(self.handle.as_fd(), CloneFlags::CLONE_NEWNET).expect("enter the network namespace");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// A command that runs inside, with the caller's mounts (`ip netns exec` would remount /sys).
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        let handle = Arc::clone(&self.handle);
        // SAFETY: between fork and exec only setns(2) is called, which is async-signal-safe; nothing is allocated.
        unsafe {
            command.pre_exec(move || setns(handle.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from));
        }
        command
    }

    /// Runs these command lines of `ip` as one batch: `["link set eth0 up", "addr add 192.0.2.1/24 dev eth0"]`.
    /// The error contains the output of `ip`.
    pub fn ip<L: AsRef<str>>(&self, lines: impl IntoIterator<Item = L>) -> io::Result<()> {
        let lines: Vec<L> = lines.into_iter().collect();
        let batch: String = lines.iter().flat_map(|line| [line.as_ref(), "\n"]).collect();
        let mut ip = self
            .command("ip")
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        ip.stdin.take().expect("invariant: stdin is piped").write_all(batch.as_bytes())?;
        let output = ip.wait_with_output()?;
        if output.status.success() {
            return Ok(());
        }
        let message = String::from_utf8_lossy(&output.stderr);
        Err(io::Error::other(format!("ip: {}\nin the batch:\n{batch}", message.trim())))
    }

    /// Sets `net.KEY` in this namespace: `sysctl("ipv4.ip_forward", "1")`.
    pub fn sysctl(&self, key: &str, value: &str) -> io::Result<()> {
        let path = format!("/proc/sys/net/{}", key.replace('.', "/"));
        let value = value.to_owned();
        self.run(move || std::fs::write(&path, value).map_err(|e| io::Error::new(e.kind(), format!("{path}: {e}"))))
    }
}

/// Brings the loopback of this thread's namespace up, by an ioctl. Every host needs its loopback, and a process of `ip`
/// takes a tenth of a second in an emulated machine.
fn set_loopback_up() -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: all bytes may be zero; then the name is empty, and no flag is set.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: the descriptor is open, and the kernel only reads the request.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) } == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// Connects two namespaces by a cable: interface `a.1` in `a.0` and `b.1` in `b.0`, both down.
pub fn veth(a: (&Namespace, &str), b: (&Namespace, &str)) -> io::Result<()> {
    let peer = b.0.path();
    a.0.ip([format!("link add {} type veth peer name {} netns {}", a.1, b.1, peer.display())])
}

/// Opens a UDP socket in the namespace of this thread, connected to `to`. Its port is the next of 20,000 ports, which
/// this process uses in turn.
///
/// If the kernel selected the port, it might select one again within a minute. Connection tracking would still have the
/// flow of that port, and datagrams would follow the old flow and not the current rules.
///
/// # Errors
/// If the socket can't be opened, or there is no route to `to`.
pub fn udp_flow(to: SocketAddr) -> io::Result<UdpSocket> {
    // Below the kernel's range of ephemeral ports.
    const FIRST: u16 = 10_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let next = |n: u16| Some((n + 1) % COUNT);
    let n =
        NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).expect("invariant: there is always a next one");
    let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind(SocketAddr::new(any, FIRST + n))?;
    socket.connect(to)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_crosses_a_cable_between_two_namespaces() {
        let (a, b) = (Namespace::new().expect("a"), Namespace::new().expect("b"));
        veth((&a, "eth0"), (&b, "eth0")).expect("veth");
        a.ip(["addr add 192.0.2.1/24 dev eth0", "link set eth0 up"]).expect("a");
        b.ip(["addr add 192.0.2.2/24 dev eth0", "link set eth0 up"]).expect("b");
        let server = b.run(|| std::net::UdpSocket::bind("192.0.2.2:7").expect("bind"));
        let client = a.run(|| std::net::UdpSocket::bind("192.0.2.1:0").expect("bind"));
        client.send_to(b"hello", "192.0.2.2:7").expect("send");
        server.set_read_timeout(Some(std::time::Duration::from_secs(5))).expect("timeout");
        let mut buffer = [0; 16];
        let (length, from) = server.recv_from(&mut buffer).expect("receive");
        assert_eq!((&buffer[..length], from), (&b"hello"[..], client.local_addr().expect("address")));
    }

    #[test]
    fn an_error_of_ip_names_the_line() {
        let a = Namespace::new().expect("a");
        let error = a.ip(["link set eth9 up"]).expect_err("there is no eth9");
        assert!(error.to_string().contains("eth9"), "{error}");
    }

    #[test]
    fn a_name_can_be_used_again_after_deletion() {
        let name = format!("landfall-test-{}", std::process::id());
        Namespace::create_named(&name).expect("first");
        assert!(Namespace::create_named(&name).is_err());
        Namespace::delete(&name).expect("delete");
        assert!(!Namespace::path_of(&name).exists());
        Namespace::delete(&name).expect("a second deletion succeeds");
    }
}
