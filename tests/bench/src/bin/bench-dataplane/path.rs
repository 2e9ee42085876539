//! A client, a server, and between them as many ways as there are contenders, each through a forwarding host of its own.
//!
//! ```text
//!            10.1.K.2        10.1.K.1 ┌─────┐ 10.2.K.1       10.2.K.2
//!   client ───────────── eth0 │ K │ pods0 ───────────── server
//!                                     └─────┘
//! ```
//!
//! All of them exist at the same time, so that contenders can take turns. A cable (veth) hands a packet to the other side in
//! the context of whoever sends it, and there is no second queue here (no threaded NAPI, no RPS): one thread that is client
//! and server does all the work of the hosts in between as well, and its CPU time is the cost of the whole way. What client
//! and server cost is known from a direct cable, and can be taken off.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result, ensure};
use netns::{Namespace, veth};

use crate::synthetic::MAC;

/// The port of the server.
pub const PORT: u16 = 8080;

/// Client and server.
pub struct Ends {
    /// Who asks.
    pub client: Namespace,
    /// Who answers.
    pub server: Namespace,
}

/// A forwarding host between them.
pub struct Way {
    /// It.
    pub host: Namespace,
    number: u8,
}

impl Ends {
    /// Both, with a cable between them that nobody forwards on.
    ///
    /// # Errors
    /// If namespaces can't be made: it needs root.
    pub fn new() -> Result<Self> {
        let ends = Self { client: Namespace::new()?, server: Namespace::new()? };
        veth((&ends.client, "direct"), (&ends.server, "direct"))?;
        ends.client.ip(["addr add 10.3.0.1/24 dev direct", "link set direct up"])?;
        ends.server.ip(["addr add 10.3.0.2/24 dev direct", "link set direct up"])?;
        ends.client.sysctl("ipv4.ip_local_port_range", "1024 65535")?;
        Ok(ends)
    }

    /// Where the server is on the direct cable.
    pub fn direct(&self) -> SocketAddr {
        (Ipv4Addr::new(10, 3, 0, 2), PORT).into()
    }

    /// A way of this number, on which nothing is done to packets.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn way(&self, number: u8) -> Result<Way> {
        let host = Namespace::new()?;
        veth((&self.client, &format!("way{number}")), (&host, "eth0"))?;
        veth((&self.server, &format!("way{number}")), (&host, "pods0"))?;
        self.client.ip([
            format!("addr add 10.1.{number}.2/24 dev way{number}"),
            format!("link set way{number} up"),
            // What contenders give addresses from.
            format!("route add 10.2.{number}.0/24 via 10.1.{number}.1"),
        ])?;
        self.server.ip([
            format!("addr add 10.2.{number}.2/24 dev way{number}"),
            format!("link set way{number} up"),
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
        // Entries of connections that are over would fill the table, which all namespaces share.
        for (state, seconds) in [("tcp_timeout_close", "1"), ("tcp_timeout_time_wait", "1"), ("udp_timeout", "2")] {
            host.sysctl(&format!("netfilter.nf_conntrack_{state}"), seconds)?;
        }
        Ok(Way { host, number })
    }

    /// From now on the client sends what is for this address by that way.
    ///
    /// # Errors
    /// If `ip` refuses.
    pub fn lead(&self, address: IpAddr, way: &Way) -> Result<()> {
        Ok(self.client.ip([format!("route replace {address} via 10.1.{}.1", way.number)])?)
    }
}

impl Way {
    /// Where the server is, seen from here.
    pub fn server(&self) -> SocketAddr {
        (Ipv4Addr::new(10, 2, self.number, 2), PORT).into()
    }

    /// Lets `nft` do these lines here.
    ///
    /// # Errors
    /// If it refuses.
    pub fn nft(&self, lines: &str) -> Result<()> {
        use std::io::Write;
        use std::process::Stdio;
        let mut nft = self.host.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("run nft")?;
        nft.stdin.take().context("invariant: stdin is piped")?.write_all(lines.as_bytes())?;
        ensure!(nft.wait()?.success(), "nft refuses {lines}");
        Ok(())
    }

    /// Fails if connection tracking here has dropped anything, or thrown out what was in use.
    ///
    /// # Errors
    /// See above.
    pub fn has_lost_nothing(&self) -> Result<()> {
        let text = self.host.run(|| std::fs::read_to_string("/proc/thread-self/net/stat/nf_conntrack"));
        let text = text.context("read the counters of connection tracking")?;
        let mut lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let names = lines.next().context("counters without names")?;
        for line in lines {
            for (name, value) in names.iter().zip(line) {
                let lost =
                    ["insert_failed", "drop", "early_drop"].contains(name) && u64::from_str_radix(value, 16)? > 0;
                ensure!(!lost, "connection tracking counts {name}: 0x{value}");
            }
        }
        Ok(())
    }
}
