//! Sends requests to a whoami from a host, without a process per request.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::machine::host::Host;

impl Host {
    /// Sends one request to a whoami over a new TCP connection.
    pub fn query_tcp(&self, server: SocketAddr, within: Duration) -> Result<Answer> {
        let answer = self.run(|| Answer::over_tcp(server, within))?;
        answer.with_context(|| format!("query {server} over TCP from {}", self.name()))
    }

    /// Sends one request to a whoami over a new UDP socket.
    pub fn query_udp(&self, server: SocketAddr, within: Duration) -> Result<Answer> {
        let answer = self.run(|| Answer::over_udp(server, within))?;
        answer.with_context(|| format!("query {server} over UDP from {}", self.name()))
    }
}

/// The answer of a whoami.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The pod that answered.
    pub pod: String,
    /// The client's address and port, as seen by the pod.
    pub client: SocketAddr,
}

impl Answer {
    /// Sends a request from the network namespace of this thread, over a new TCP connection.
    ///
    /// # Errors
    /// If the connection is refused, or there is no answer within the time.
    pub fn over_tcp(server: SocketAddr, within: Duration) -> io::Result<Self> {
        let start = Instant::now();
        let mut stream = TcpStream::connect_timeout(&server, within)?;
        let left = within.saturating_sub(start.elapsed()).max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left))?;
        stream.write_all(b"?\n")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Self::parse(&line)
    }

    /// Sends a request as a datagram, with a flow that is new to connection tracking.
    ///
    /// # Errors
    /// If the datagram is refused, or there is no answer within the time.
    pub fn over_udp(server: SocketAddr, within: Duration) -> io::Result<Self> {
        let socket = netns::udp_flow(server)?;
        socket.set_read_timeout(Some(within))?;
        socket.send(b"?\n")?;
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer)?;
        Self::parse(&String::from_utf8_lossy(&buffer[..length]))
    }

    fn parse(line: &str) -> io::Result<Self> {
        let parsed = line
            .trim()
            .split_once(' ')
            .and_then(|(pod, client)| Some(Self { pod: pod.to_owned(), client: client.parse().ok()? }));
        parsed.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{line:?} is not a whoami's answer")))
    }
}
