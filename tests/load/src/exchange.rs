//! One request and its answer, over TCP or UDP, and the errors of sockets as outcomes.
//!
//! A request is the line `#NUMBER`, and the answer is the line `SERVER CLIENT_ADDRESS:PORT NUMBER`.
#![allow(unsafe_code)]

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::record::Outcome;

/// The greatest length of an answer in bytes. It contains the name of a pod, an address and a number.
const LONGEST_ANSWER: usize = 512;

/// The protocol of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transport {
    /// One connection per request.
    Tcp,
    /// One datagram per request, each from another port.
    Udp,
}

/// The request with this number.
pub(crate) fn request(number: u64) -> String {
    format!("#{number}\n")
}

/// The server and the number of an answer.
pub(crate) fn parse_answer(line: &[u8]) -> Option<(String, u64)> {
    let mut words = std::str::from_utf8(line).ok()?.split_whitespace();
    let (server, _client, number) = (words.next()?, words.next()?, words.next()?);
    number.parse().ok().filter(|_| words.next().is_none()).map(|number| (server.to_owned(), number))
}

/// The outcome of a socket's error.
pub(crate) fn outcome_of(error: &io::Error) -> Outcome {
    match error.kind() {
        ErrorKind::ConnectionRefused => Outcome::Refused,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof => Outcome::Reset,
        ErrorKind::TimedOut => Outcome::TimedOut,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Outcome::Unreachable,
        ErrorKind::InvalidData => Outcome::WrongAnswer,
        _ => Outcome::NotSent,
    }
}

/// Sends one request over a new connection. Returns the server, and whether the kernel had to send a packet again.
pub(crate) async fn query_tcp(target: SocketAddr, number: u64) -> io::Result<(String, Outcome)> {
    let mut stream = TcpStream::connect(target).await?;
    // The connection ends with a reset, because connections in TIME_WAIT would use up the ports.
    stream.set_zero_linger()?;
    stream.set_nodelay(true)?;
    let (server, answered) = query_on(&mut stream, number).await?;
    if answered != number {
        return Err(wrong_answer());
    }
    let outcome = if retransmissions(&stream)? == 0 { Outcome::Ok } else { Outcome::Repeated };
    Ok((server, outcome))
}

/// Sends one request on an open connection. Returns the server, and the number of the answer.
pub(crate) async fn query_on(stream: &mut TcpStream, number: u64) -> io::Result<(String, u64)> {
    stream.write_all(request(number).as_bytes()).await?;
    let (mut line, mut length) = ([0; LONGEST_ANSWER], 0);
    while !line[..length].ends_with(b"\n") {
        let count = stream.read(&mut line[length..]).await?;
        if count == 0 {
            return Err(if length == LONGEST_ANSWER { wrong_answer() } else { ErrorKind::UnexpectedEof.into() });
        }
        length += count;
    }
    parse_answer(&line[..length]).ok_or_else(wrong_answer)
}

/// Sends one datagram from a new port, and waits for the answer. Returns the server.
pub(crate) async fn query_udp(target: SocketAddr, number: u64) -> io::Result<String> {
    let socket = netns::udp_flow(target)?;
    socket.set_nonblocking(true)?;
    let socket = UdpSocket::from_std(socket)?;
    socket.send(request(number).as_bytes()).await?;
    let mut buffer = [0; LONGEST_ANSWER];
    let length = socket.recv(&mut buffer).await?;
    match parse_answer(&buffer[..length]) {
        Some((server, answered)) if answered == number => Ok(server),
        _ => Err(wrong_answer()),
    }
}

fn wrong_answer() -> io::Error {
    ErrorKind::InvalidData.into()
}

/// The number of segments, SYNs included, that the kernel has sent again on this connection.
pub(crate) fn retransmissions(stream: &TcpStream) -> io::Result<u32> {
    // SAFETY: `tcp_info` consists of integers, for which zero is valid.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: the descriptor is open while `stream` lives, and the kernel writes at most `length` bytes to `info`.
    let result = unsafe {
        let value = (&raw mut info).cast();
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, value, &mut length)
    };
    if result == 0 { Ok(info.tcpi_total_retrans) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_server_and_a_number() {
        for (line, expected) in [
            ("web-1 192.0.2.7:4711 12\n", Some(("web-1".to_owned(), 12))),
            ("web-1 [2001:db8::7]:4711 0\n", Some(("web-1".to_owned(), 0))),
            ("web-1 192.0.2.7:4711\n", None),
            ("web-1 192.0.2.7:4711 x\n", None),
            ("web-1 192.0.2.7:4711 12 web-1 192.0.2.7:4711 12\n", None),
            ("", None),
        ] {
            assert_eq!(parse_answer(line.as_bytes()), expected, "{line:?}");
        }
        assert_eq!(parse_answer(&[0xff, b' ']), None);
    }
}
