//! A client, a server, and one path between them for each contender, through a forwarding host of its own.
//!
//! ```text
//!          10.1.K.2          10.1.K.1 ┌─────┐ 10.2.K.1           10.2.K.2
//!   client ───────────────────── eth0 │  K  │ pods0 ───────────────────── server
//!                                     └─────┘
//! ```
//!
//! All paths exist at the same time, so that contenders can take turns. A cable (veth) delivers a packet in the context
//! of its sender, and there is no second queue (no threaded NAPI, no RPS). Thus one thread that is client and server
//! also does all the work of the hosts in between. Its CPU time is the cost of the whole path. The cost of client and
//! server is measured on a direct cable, and can be subtracted.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use netns::{Namespace, veth};

use crate::synthetic::MAC;

/// The port of the server.
pub const PORT: u16 = 8080;

/// Client and server.
pub struct Ends {
    pub client: Namespace,
    pub server: Namespace,
}

/// A forwarding host between them.
pub struct ForwardingPath {
    pub host: Namespace,
    number: u8,
}

impl Ends {
    /// Both hosts, and a direct cable between them. Requires root.
    pub fn new() -> Result<Self> {
        let ends = Self { client: Namespace::new()?, server: Namespace::new()? };
        veth((&ends.client, "direct"), (&ends.server, "direct"))?;
        ends.client.ip(["addr add 10.3.0.1/24 dev direct", "link set direct up"])?;
        ends.server.ip(["addr add 10.3.0.2/24 dev direct", "link set direct up"])?;
        ends.client.sysctl("ipv4.ip_local_port_range", "1024 65535")?;
        Ok(ends)
    }

    /// The address of the server on the direct cable.
    pub fn direct(&self) -> SocketAddr {
        (Ipv4Addr::new(10, 3, 0, 2), PORT).into()
    }

    /// Adds the path of this number. Its host only routes.
    pub fn add_path(&self, number: u8) -> Result<ForwardingPath> {
        let host = Namespace::new()?;
        veth((&self.client, &format!("path{number}")), (&host, "eth0"))?;
        veth((&self.server, &format!("path{number}")), (&host, "pods0"))?;
        self.client.ip([
            format!("addr add 10.1.{number}.2/24 dev path{number}"),
            format!("link set path{number} up"),
            // The route to the endpoints of contenders.
            format!("route add 10.2.{number}.0/24 via 10.1.{number}.1"),
        ])?;
        self.server.ip([
            format!("addr add 10.2.{number}.2/24 dev path{number}"),
            format!("link set path{number} up"),
            format!("route add 10.1.{number}.0/24 via 10.2.{number}.1"),
        ])?;
        host.ip([
            format!("link set eth0 address {MAC}"),
            format!("addr add 10.1.{number}.1/24 dev eth0"),
            "link set eth0 up".into(),
            format!("addr add 10.2.{number}.1/24 dev pods0"),
            "link set pods0 up".into(),
            format!("route add default via 10.1.{number}.2"),
        ])?;
        host.sysctl("ipv4.ip_forward", "1")?;
        // Entries of closed connections would fill the table, which all namespaces share.
        for (state, seconds) in [("tcp_timeout_close", "1"), ("tcp_timeout_time_wait", "1"), ("udp_timeout", "2")] {
            host.sysctl(&format!("netfilter.nf_conntrack_{state}"), seconds)?;
        }
        Ok(ForwardingPath { host, number })
    }

    /// Routes the client's packets to this address over a path.
    pub fn route_via(&self, address: IpAddr, path: &ForwardingPath) -> Result<()> {
        Ok(self.client.ip([format!("route replace {address} via 10.1.{}.1", path.number)])?)
    }
}

impl ForwardingPath {
    /// The address of the server on this path.
    pub fn server(&self) -> SocketAddr {
        (Ipv4Addr::new(10, 2, self.number, 2), PORT).into()
    }

    /// Runs these `nft` commands on the host.
    pub fn nft(&self, lines: &str) -> Result<()> {
        use std::io::Write;
        use std::process::Stdio;
        let mut nft = self.host.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("run nft")?;
        nft.stdin.take().context("invariant: stdin is piped")?.write_all(lines.as_bytes())?;
        ensure!(nft.wait()?.success(), "nft refuses {lines}");
        Ok(())
    }

    /// Fails if connection tracking has dropped a packet or evicted an entry in use.
    pub fn ensure_no_drops(&self) -> Result<()> {
        let text = self.host.run(|| std::fs::read_to_string("/proc/thread-self/net/stat/nf_conntrack"));
        let text = text.context("read the counters of connection tracking")?;
        let mut lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let names = lines.next().context("counters without names")?;
        for line in lines {
            for (name, value) in names.iter().zip(line) {
                let is_drop =
                    ["insert_failed", "drop", "early_drop"].contains(name) && u64::from_str_radix(value, 16)? > 0;
                ensure!(!is_drop, "connection tracking counts {name}: 0x{value}");
            }
        }
        Ok(())
    }
}
