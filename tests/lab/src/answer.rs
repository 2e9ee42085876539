//! Asking a whoami from a host, without a process for each question.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::host::Host;

impl Host {
    /// Asks a whoami over TCP, once, on a connection of its own.
    pub fn ask_tcp(&self, server: SocketAddr, within: Duration) -> Result<Answer> {
        let line = self.run(|| -> io::Result<String> {
            let start = Instant::now();
            let mut stream = TcpStream::connect_timeout(&server, within)?;
            let left = within.saturating_sub(start.elapsed()).max(Duration::from_millis(1));
            stream.set_read_timeout(Some(left))?;
            stream.write_all(b"who\n")?;
            let mut line = String::new();
            BufReader::new(stream).read_line(&mut line)?;
            Ok(line)
        })?;
        Answer::parse(&line.with_context(|| format!("ask {server} over TCP from {}", self.name()))?)
    }

    /// Asks a whoami over UDP, once, from a socket of its own.
    pub fn ask_udp(&self, server: SocketAddr, within: Duration) -> Result<Answer> {
        let line = self.run(|| -> io::Result<String> {
            let any: SocketAddr = match server {
                SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
                SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
            };
            let socket = UdpSocket::bind(any)?;
            socket.connect(server)?;
            socket.set_read_timeout(Some(within))?;
            socket.send(b"who\n")?;
            let mut buffer = [0; 512];
            let length = socket.recv(&mut buffer)?;
            Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
        })?;
        Answer::parse(&line.with_context(|| format!("ask {server} over UDP from {}", self.name()))?)
    }
}

/// What a whoami said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The pod that answered.
    pub pod: String,
    /// The client's address and port as the pod saw them.
    pub client: SocketAddr,
}

impl Answer {
    fn parse(line: &str) -> Result<Self> {
        let parsed = line
            .trim()
            .split_once(' ')
            .and_then(|(pod, client)| Some(Self { pod: pod.to_owned(), client: client.parse().ok()? }));
        parsed.with_context(|| format!("{line:?} is not what a whoami says"))
    }
}
