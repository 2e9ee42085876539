//! What a client on the LAN sees. Everything is sent from the client's namespace, to addresses of the cluster's own LAN.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Answer, Host};

use crate::prober::Over;

/// How long one question waits for its answer.
const PATIENCE: Duration = Duration::from_millis(800);

/// A client on the LAN.
#[derive(Clone, Debug)]
pub struct Lan {
    host: Host,
}

/// How an attempt to connect ends, or a question over UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// Somebody took it.
    Accepted,
    /// A reset came back, or that nobody is there.
    Refused,
    /// Nothing came back.
    Silence,
}

impl Lan {
    /// The client that is this host.
    pub fn new(host: Host) -> Self {
        Self { host }
    }

    /// The client's own address.
    pub fn address(&self) -> IpAddr {
        self.host.ipv4().into()
    }

    /// Asks whoami over a new TCP connection.
    pub fn tcp(&self, address: IpAddr) -> Result<Answer> {
        self.tcp_within(address, PATIENCE)
    }

    /// The same, with another patience.
    pub fn tcp_within(&self, address: IpAddr, patience: Duration) -> Result<Answer> {
        self.host.query_tcp(SocketAddr::new(address, 80), patience)
    }

    /// Asks whoami with one datagram, from a new port.
    pub fn udp(&self, address: IpAddr) -> Result<Answer> {
        self.udp_within(address, PATIENCE)
    }

    /// The same, with another patience.
    pub fn udp_within(&self, address: IpAddr, patience: Duration) -> Result<Answer> {
        self.host.query_udp(SocketAddr::new(address, 80), patience)
    }

    /// Who answers `count` new TCP connections. All of them must be answered.
    pub fn pods(&self, count: usize, address: IpAddr) -> Result<BTreeSet<String>> {
        (0..count).map(|_| Ok(self.tcp(address)?.pod)).collect()
    }

    /// How an attempt to connect ends, or a question over UDP.
    pub fn connect(&self, address: IpAddr, port: u16) -> Result<Connect> {
        let attempt = self.host.run(|| TcpStream::connect_timeout(&SocketAddr::new(address, port), PATIENCE))?;
        match attempt.map_err(|error| error.kind()) {
            Ok(_) => Ok(Connect::Accepted),
            Err(ErrorKind::ConnectionRefused) => Ok(Connect::Refused),
            Err(_) => Ok(Connect::Silence),
        }
    }

    /// How one question ends that is sent to a whoami over either protocol.
    pub fn end(&self, address: IpAddr, port: u16, over: Over) -> Result<Connect> {
        if over == Over::Tcp {
            return self.connect(address, port);
        }
        let answer = self.host.run(|| Answer::over_udp(SocketAddr::new(address, port), PATIENCE))?;
        match answer.map_err(|error| error.kind()) {
            Ok(_) => Ok(Connect::Accepted),
            Err(ErrorKind::ConnectionRefused) => Ok(Connect::Refused),
            Err(_) => Ok(Connect::Silence),
        }
    }

    /// Asks over HTTP, as a load balancer in front would ask for health; returns the status and the whole answer.
    pub fn http(&self, address: IpAddr, port: u16) -> Result<(u16, String)> {
        self.get(SocketAddr::new(address, port), "/healthz", PATIENCE)
    }

    /// Asks for a path over HTTP; returns the status and the whole answer.
    pub fn get(&self, server: SocketAddr, path: &str, patience: Duration) -> Result<(u16, String)> {
        let answer = self.host.run(|| -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&server, patience)?;
            stream.set_read_timeout(Some(patience))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?;
        let answer = answer.with_context(|| format!("ask {server} for {path}"))?;
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.with_context(|| format!("no status in {answer:?}"))?, answer))
    }

    /// The MACs that answer ARP for `address`, asked three times by broadcast.
    pub fn macs(&self, address: IpAddr) -> Result<BTreeSet<String>> {
        let mut arping = self.host.command("arping")?;
        arping.args(["-b", "-c", "3", "-w", "2", "-I", "eth0", &address.to_string()]);
        let output = arping.output().context("run arping")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(text.contains("ARPING"), "arping {address}: {text}{}", String::from_utf8_lossy(&output.stderr));
        Ok(text.split('[').skip(1).filter_map(|rest| rest.split(']').next()).map(str::to_lowercase).collect())
    }
}
