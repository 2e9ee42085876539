//! A client on the LAN, outside of the cluster. It sends every request from its own namespace.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Answer, Host};
use load::Transport;

/// Limit of waiting for the answer to a request.
const TIMEOUT: Duration = Duration::from_millis(800);

/// A client on the LAN.
#[derive(Clone, Debug)]
pub struct LanClient {
    host: Host,
}

/// The outcome of a connection attempt, or of a request over UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectOutcome {
    /// The connection was accepted, or the request answered.
    Accepted,
    /// A reset or an ICMP error came back.
    Refused,
    /// No packet came back.
    Silence,
}

impl LanClient {
    pub fn new(host: Host) -> Self {
        Self { host }
    }

    /// The client's own IPv4 address.
    pub fn address(&self) -> IpAddr {
        self.host.ipv4().into()
    }

    /// Sends a request to whoami over a new TCP connection.
    pub fn query_tcp(&self, address: IpAddr) -> Result<Answer> {
        self.query_tcp_within(address, TIMEOUT)
    }

    /// The same, with another limit.
    pub fn query_tcp_within(&self, address: IpAddr, timeout: Duration) -> Result<Answer> {
        self.host.query_tcp(SocketAddr::new(address, 80), timeout)
    }

    /// Sends a request to whoami with one datagram, from a new port.
    pub fn query_udp(&self, address: IpAddr) -> Result<Answer> {
        self.query_udp_within(address, TIMEOUT)
    }

    /// The same, with another limit.
    pub fn query_udp_within(&self, address: IpAddr, timeout: Duration) -> Result<Answer> {
        self.host.query_udp(SocketAddr::new(address, 80), timeout)
    }

    /// The pods that answer `count` new TCP connections. Fails if a connection has no answer.
    pub fn answering_pods(&self, count: usize, address: IpAddr) -> Result<BTreeSet<String>> {
        (0..count).map(|_| Ok(self.query_tcp(address)?.pod)).collect()
    }

    /// Tries to connect over TCP.
    pub fn connect(&self, address: IpAddr, port: u16) -> Result<ConnectOutcome> {
        let attempt = self.host.run(|| TcpStream::connect_timeout(&SocketAddr::new(address, port), TIMEOUT))?;
        match attempt.map_err(|error| error.kind()) {
            Ok(_) => Ok(ConnectOutcome::Accepted),
            Err(ErrorKind::ConnectionRefused) => Ok(ConnectOutcome::Refused),
            Err(_) => Ok(ConnectOutcome::Silence),
        }
    }

    /// Tries to connect over TCP, or sends one request to a whoami over UDP.
    pub fn probe(&self, address: IpAddr, port: u16, transport: Transport) -> Result<ConnectOutcome> {
        if transport == Transport::Tcp {
            return self.connect(address, port);
        }
        let answer = self.host.run(|| Answer::over_udp(SocketAddr::new(address, port), TIMEOUT))?;
        match answer.map_err(|error| error.kind()) {
            Ok(_) => Ok(ConnectOutcome::Accepted),
            Err(ErrorKind::ConnectionRefused) => Ok(ConnectOutcome::Refused),
            Err(_) => Ok(ConnectOutcome::Silence),
        }
    }

    /// Sends a health check like an external load balancer. Returns the status and the whole answer.
    pub fn get_health(&self, address: IpAddr, port: u16) -> Result<(u16, String)> {
        self.get(SocketAddr::new(address, port), "/healthz", TIMEOUT)
    }

    /// Requests a path over HTTP. Returns the status and the whole answer.
    pub fn get(&self, server: SocketAddr, path: &str, timeout: Duration) -> Result<(u16, String)> {
        let answer = self.host.run(|| -> std::io::Result<String> {
            let mut stream = TcpStream::connect_timeout(&server, timeout)?;
            stream.set_read_timeout(Some(timeout))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?;
        let answer = answer.with_context(|| format!("get {path} from {server}"))?;
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.with_context(|| format!("no status in {answer:?}"))?, answer))
    }

    /// The MAC addresses that answer three broadcast ARP requests for `address`.
    pub fn arp_macs(&self, address: IpAddr) -> Result<BTreeSet<String>> {
        let mut arping = self.host.command("arping")?;
        arping.args(["-b", "-c", "3", "-w", "2", "-I", "eth0", &address.to_string()]);
        let output = arping.output().context("run arping")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(text.contains("ARPING"), "arping {address}: {text}{}", String::from_utf8_lossy(&output.stderr));
        Ok(text.split('[').skip(1).filter_map(|rest| rest.split(']').next()).map(str::to_lowercase).collect())
    }
}
