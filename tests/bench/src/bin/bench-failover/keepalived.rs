//! The rival: keepalived, in two settings. It keeps an address on one of three hosts, by VRRP (RFC 5798).
//!
//! - *50 ms*: an advertisement every 50 ms, as often as Landfall sends a Hello. A backup takes over after three
//!   intervals and the skew time. The priorities are high, so that the skew time is short (RFC 5798 § 6.1).
//! - *1 s*: an advertisement every second, the default.
//!
//! As with Landfall, a host that returns does not take the address back (`nopreempt`).
//!
//! On each host a process of this program, the responder, answers at the address. It is bound to the address even while
//! the host does not have it. All processes run on client hosts of the lab, and end with them.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::world::SOON;
use lab::{Cluster, Host, Signal, wait_until};

/// The number of hosts that keepalived needs, from c2 on.
pub const HOSTS: u8 = 6;

/// The number of hosts that share an address: as many as Landfall's nodes.
const GROUP: u8 = 3;

/// The port of the responder.
pub const PORT: u16 = 80;

/// The name of keepalived's process on a host.
const DAEMON: &str = "keepalived";

/// A configuration of keepalived.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The name in the report.
    pub name: &'static str,
    /// The prefix of its keys in the JSON.
    pub key: &'static str,
    /// Seconds between advertisements.
    advert_int: &'static str,
    /// The last byte of its address in 192.0.2.0/24, outside of Landfall's pool.
    last: u8,
    /// The number of the first of its hosts.
    first: u8,
}

pub const SETTINGS: [Setting; 2] = [
    Setting { name: "keepalived, 50 ms", key: "keepalived_50ms_", advert_int: "0.05", last: 245, first: 2 },
    Setting { name: "keepalived, 1 s", key: "keepalived_1s_", advert_int: "1", last: 246, first: 5 },
];

impl Setting {
    pub fn address(&self) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, self.last).into()
    }

    /// Starts keepalived and the responder on each host. `tests/setup.sh --with-peers` installs keepalived.
    pub fn start(&self, cluster: &Cluster) -> Result<()> {
        let own = std::env::current_exe().context("find this program")?;
        for n in 0..GROUP {
            let host = cluster.client_host(&format!("c{}", self.first + n));
            host.netns()?
                .sysctl("ipv4.ip_nonlocal_bind", "1")
                .context("allow to bind an address that the host does not have")?;
            let mut answer = Command::new(&own);
            answer.args(["answer", &self.address().to_string(), &PORT.to_string()]);
            host.spawn("answer", &answer)?;
            let dir = host.dir();
            fs::create_dir_all(&dir)?;
            let (config, file) = (self.config(n), |name: &str| dir.join(name).display().to_string());
            fs::write(file("keepalived.conf"), config).context("write its configuration")?;
            let mut keepalived = Command::new("keepalived");
            keepalived.args(["--dont-fork", "--log-console", "--vrrp", "--use-file", &file("keepalived.conf")]);
            keepalived.args(["--pid", &file("keepalived.pid"), "--vrrp_pid", &file("vrrp.pid")]);
            host.spawn(DAEMON, &keepalived)?;
        }
        Ok(())
    }

    /// Stops keepalived on a host that is cut off.
    pub async fn stop(host: &Host) -> Result<()> {
        let daemon = host.process(DAEMON);
        daemon.signal(Signal::SIGTERM)?;
        wait_until(SOON, "keepalived to end", async || {
            ensure!(!daemon.is_running(), "it runs on {}", host.name());
            Ok(())
        })
        .await
    }

    /// Starts keepalived again, with an empty state.
    pub fn restart(host: &Host) -> Result<()> {
        host.process(DAEMON).start()
    }

    /// The configuration of the n-th host.
    fn config(&self, n: u8) -> String {
        let Self { advert_int, last, .. } = self;
        let priority = 254 - n;
        format!(
            "global_defs {{\n  vrrp_version 3\n}}\n\
             vrrp_instance bench {{\n  state BACKUP\n  interface eth0\n  virtual_router_id {last}\n  \
             priority {priority}\n  nopreempt\n  advert_int {advert_int}\n  virtual_ipaddress {{\n    192.0.2.{last}/24 dev eth0\n  }}\n}}\n"
        )
    }
}

/// Answers each datagram with the same bytes, and accepts each connection.
pub fn answer(address: Ipv4Addr, port: u16) -> Result<()> {
    let listener = TcpListener::bind((address, port)).with_context(|| format!("listen at {address}:{port}"))?;
    let socket = UdpSocket::bind((address, port)).with_context(|| format!("bind {address}:{port}"))?;
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let mut buffer = [0; 512];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, client)) => drop(socket.send_to(&buffer[..length], client)),
            // Other errors belong to earlier answers.
            Err(error) if error.kind() == ErrorKind::InvalidInput => return Err(error.into()),
            Err(_) => {}
        }
    }
}
