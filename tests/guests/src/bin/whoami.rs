//! Answers with the pod's name and the client's address, over TCP and UDP, IPv4 and IPv6.
//!
//! The answer is one line, `POD CLIENT_ADDRESS:PORT`. A request `#NUMBER` gets the number as a third word, so that a
//! client knows which request was answered:
//! - TCP, an HTTP request: as the body of an HTTP/1.0 response, then the connection is closed;
//! - TCP, any other line: the bare line, and one more for each further line, until the client closes
//!   (a test of open connections sends a line at intervals and checks which pod answers);
//! - TCP, no input for [`SILENCE`] or an end of input: the bare line, then the connection is closed;
//! - UDP: the line, for each datagram.
//!
//! `whoami [PORT...]`, default 8080. POD is $POD_NAME, else the host name. SIGTERM and SIGINT end it at once.
#![allow(unsafe_code)]

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// A client that sends nothing for this long gets its line without a request. On a busy machine the request of a client
/// comes hundreds of milliseconds after its connection.
const SILENCE: Duration = Duration::from_secs(3);
/// An answered connection is closed after this long without input, so that a client on a dead node does not hold a
/// thread for ever.
const IDLE: Duration = Duration::from_secs(3600);
/// Stack of a connection's thread, in bytes: small enough for thousands of connections.
const STACK: usize = 64 * 1024;
/// Limit of connections that wait to be accepted. The standard library sets 128, which a burst overflows; each dropped
/// SYN delays its client by a second.
const BACKLOG: i32 = 4096;
/// At most this many bytes of a line or a request head are read.
const LONGEST: u64 = 16 * 1024;

fn main() -> ExitCode {
    // SAFETY: the handler only calls _exit, which is async-signal-safe. As process 1 of a container there is no default
    // action, so without a handler SIGTERM would be ignored.
    unsafe {
        let end = end as extern "C" fn(i32);
        libc::signal(libc::SIGTERM, end as libc::sighandler_t);
        libc::signal(libc::SIGINT, end as libc::sighandler_t);
    }
    let ports: Result<Vec<u16>, _> = std::env::args().skip(1).map(|port| port.parse()).collect();
    let ports = match ports {
        Ok(ports) if ports.is_empty() => vec![8080],
        Ok(ports) => ports,
        Err(_) => {
            eprintln!("usage: whoami [PORT...]");
            return ExitCode::from(2);
        }
    };
    let name: Arc<str> = pod_name().into();
    let mut servers = Vec::new();
    for port in ports {
        let (listener, socket) = match (listen(port), bind_udp(port)) {
            (Ok(listener), Ok(socket)) => (listener, socket),
            (Err(error), _) | (_, Err(error)) => {
                eprintln!("whoami: port {port}: {error}");
                return ExitCode::FAILURE;
            }
        };
        eprintln!("{name} answers on port {port}");
        let (tcp_name, udp_name) = (Arc::clone(&name), Arc::clone(&name));
        servers.push(thread::spawn(move || serve_tcp(&listener, &tcp_name)));
        servers.push(thread::spawn(move || serve_udp(&socket, &udp_name)));
    }
    for server in servers {
        let _ = server.join();
    }
    ExitCode::FAILURE
}

extern "C" fn end(_signal: i32) {
    // SAFETY: _exit takes an integer and does not return.
    unsafe { libc::_exit(0) }
}

fn pod_name() -> String {
    std::env::var("POD_NAME")
        .ok()
        .filter(|name| !name.is_empty())
        .or_else(|| std::fs::read_to_string("/proc/sys/kernel/hostname").ok())
        .map_or_else(|| "unknown".to_owned(), |name| name.trim().to_owned())
}

/// `[::]` accepts IPv4 clients as well; a host without IPv6 gets `0.0.0.0`.
fn wildcard_addresses(port: u16) -> [SocketAddr; 2] {
    [(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()]
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(&wildcard_addresses(port)[..])?;
    // SAFETY: the descriptor is open while `listener` lives; listening again only changes the backlog.
    unsafe { libc::listen(listener.as_raw_fd(), BACKLOG) };
    Ok(listener)
}

fn bind_udp(port: u16) -> io::Result<UdpSocket> {
    UdpSocket::bind(&wildcard_addresses(port)[..])
}

/// The answer to a request of a client. An IPv4 client of an IPv6 socket is shown as IPv4.
fn answer_line(name: &str, client: SocketAddr, request: &[u8]) -> String {
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    match number(request) {
        Some(number) => format!("{name} {client} {number}\n"),
        None => format!("{name} {client}\n"),
    }
}

/// The number of a request `#NUMBER`.
fn number(request: &[u8]) -> Option<u64> {
    std::str::from_utf8(request.strip_prefix(b"#")?.trim_ascii_end()).ok()?.parse().ok()
}

fn serve_udp(socket: &UdpSocket, name: &str) {
    let mut buffer = [0; 2048];
    loop {
        // An error here belongs to an earlier answer, whose client has ended: the next datagram is unaffected.
        if let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(answer_line(name, client, &buffer[..length]).as_bytes(), client);
        }
    }
}

fn serve_tcp(listener: &TcpListener, name: &Arc<str>) {
    loop {
        match listener.accept() {
            Ok((stream, client)) => {
                let name = Arc::clone(name);
                // If there is no thread left, the client sees its connection closed.
                let serve = move || serve_connection(&stream, client, &name);
                let _ = thread::Builder::new().stack_size(STACK).spawn(serve);
            }
            // Out of descriptors, or the client left the queue: continue, but do not spin.
            Err(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
}

fn serve_connection(stream: &TcpStream, client: SocketAddr, name: &str) -> io::Result<()> {
    let answer = answer_line(name, client, b"");
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SILENCE))?;
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    let mut first = Vec::new();
    match (&mut reader).take(LONGEST).read_until(b'\n', &mut first) {
        Ok(0) => return writer.write_all(answer.as_bytes()),
        Ok(_) => {}
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
            return writer.write_all(answer.as_bytes());
        }
        Err(error) => return Err(error),
    }
    stream.set_read_timeout(Some(IDLE))?;
    if is_http(&first) {
        // Reads the head to its end: closing with unread input would reset the connection before the answer arrives.
        let mut header = Vec::new();
        while (&mut reader).take(LONGEST).read_until(b'\n', &mut header)? > 0 && !matches!(&header[..], b"\r\n" | b"\n")
        {
            header.clear();
        }
        let length = answer.len();
        let head = format!("HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n");
        return writer.write_all([head.as_bytes(), answer.as_bytes()].concat().as_slice());
    }
    loop {
        writer.write_all(answer_line(name, client, &first).as_bytes())?;
        first.clear();
        if (&mut reader).take(LONGEST).read_until(b'\n', &mut first)? == 0 {
            return Ok(());
        }
    }
}

fn is_http(line: &[u8]) -> bool {
    line.trim_ascii_end().ends_with(b"HTTP/1.1") || line.trim_ascii_end().ends_with(b"HTTP/1.0")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start_server() -> SocketAddr {
        let listener = listen(0).expect("listen");
        let port = listener.local_addr().expect("address").port();
        thread::spawn(move || serve_tcp(&listener, &"pod".into()));
        (Ipv4Addr::LOCALHOST, port).into()
    }

    /// Sends a request. Returns the answer, and the line that this client should get.
    fn query(request: &[u8]) -> (String, String) {
        let mut stream = TcpStream::connect(start_server()).expect("connect");
        stream.write_all(request).expect("send");
        let mut answer = String::new();
        if request.is_empty() || request.starts_with(b"GET") {
            stream.read_to_string(&mut answer).expect("read to the end");
        } else {
            BufReader::new(&stream).read_line(&mut answer).expect("read a line");
        }
        (answer, format!("pod {}\n", stream.local_addr().expect("address")))
    }

    #[test]
    fn an_http_request_gets_the_line_as_a_body() {
        let (answer, line) = query(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(answer.split_once("\r\n\r\n").map(|(_, body)| body), Some(line.as_str()));
        assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    }

    #[test]
    fn a_line_gets_the_bare_line() {
        let (answer, line) = query(b"hello\n");
        assert_eq!(answer, line);
    }

    #[test]
    fn a_numbered_request_gets_its_number() {
        for (request, expected) in [("#12\n", " 12"), ("#0", " 0"), ("#\n", ""), ("#-1\n", ""), ("12\n", ""), ("", "")]
        {
            let client = SocketAddr::from(([192, 0, 2, 7], 4711));
            let answer = answer_line("pod", client, request.as_bytes());
            assert_eq!(answer, format!("pod 192.0.2.7:4711{expected}\n"), "{request:?}");
        }
        let (answer, line) = query(b"#7\n");
        assert_eq!(answer, line.replace('\n', " 7\n"));
    }

    #[test]
    fn silence_gets_the_bare_line() {
        let (answer, line) = query(b"");
        assert_eq!(answer, line);
    }

    #[test]
    fn an_open_connection_is_answered_line_by_line() {
        let mut stream = TcpStream::connect(start_server()).expect("connect");
        let mut reader = BufReader::new(stream.try_clone().expect("clone"));
        for _ in 0..3 {
            stream.write_all(b"again\n").expect("send");
            let mut answer = String::new();
            reader.read_line(&mut answer).expect("read");
            assert_eq!(answer, format!("pod {}\n", stream.local_addr().expect("address")));
        }
    }

    #[test]
    fn a_datagram_gets_the_line() {
        let socket = bind_udp(0).expect("bind");
        let port = socket.local_addr().expect("address").port();
        thread::spawn(move || serve_udp(&socket, "pod"));
        let client = UdpSocket::bind("127.0.0.1:0").expect("bind");
        client.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
        client.send_to(b"?", ("127.0.0.1", port)).expect("send");
        let mut buffer = [0; 128];
        let length = client.recv(&mut buffer).expect("answer");
        assert_eq!(
            String::from_utf8_lossy(&buffer[..length]),
            format!("pod {}\n", client.local_addr().expect("address"))
        );
    }
}
