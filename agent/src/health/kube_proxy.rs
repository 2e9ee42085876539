//! Detects whether kube-proxy runs on this node.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use tokio::net::TcpSocket;

/// kube-proxy's own health port (the default of its `--healthz-bind-address`). While a socket listens there, kube-proxy
/// answers the health checks of Services.
const PORT: u16 = 10256;

/// The state of a listening socket in `/proc/net/tcp`.
const LISTENS: &str = "0A";

/// Whether kube-proxy runs now. `before`: whether it ran at the last check. Reading the kernel's tables of sockets
/// takes milliseconds. So they are read only if the port is taken, and kube-proxy did not run before.
pub(super) fn is_running(before: bool) -> bool {
    is_taken(PORT) && (before || ["/proc/net/tcp", "/proc/net/tcp6"].into_iter().any(has_listener_in))
}

fn has_listener_in(path: &str) -> bool {
    File::open(path).is_ok_and(|table| has_listener(BufReader::new(table), PORT))
}

/// Whether `port` is taken on any address of this node: by a listener, or by the local end of an outgoing connection.
fn is_taken(port: u16) -> bool {
    let bind = |socket: io::Result<TcpSocket>, address: IpAddr| {
        let socket = socket?;
        // With this option, connections that a former listener accepted do not keep the port taken.
        socket.set_reuseaddr(true)?;
        socket.bind((address, port).into())
    };
    let is_taken = |bound: io::Result<()>| bound.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse);
    is_taken(bind(TcpSocket::new_v6(), Ipv6Addr::UNSPECIFIED.into()))
        || is_taken(bind(TcpSocket::new_v4(), Ipv4Addr::UNSPECIFIED.into()))
}

/// Whether a socket of this table listens at `port`. `/proc/net/tcp` has listening sockets before all others
/// (Documentation/networking/proc_net_tcp.rst). There may be a hundred thousand others, so they are not read.
fn has_listener(table: impl BufRead, port: u16) -> bool {
    let sockets = table.lines().skip(1).map_while(Result::ok);
    let mut listening = sockets.map_while(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, state) = (fields.next()?, fields.nth(1)?);
        (state == LISTENS).then(|| local.rsplit(':').next().and_then(|hex| u16::from_str_radix(hex, 16).ok()))
    });
    listening.any(|number| number == Some(port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::{TcpListener, TcpStream};

    #[test]
    fn a_listening_socket_is_found_in_the_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n   \
                     0: 00000000:2810 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n   \
                     1: 0100007F:1F90 0100007F:2711 01 00000000:00000000 00:00000000 00000000     0\n";
        let table6 = "  sl  local_address                         remote_address                        st\n   \
                      0: 00000000000000000000000000000000:2810 00000000000000000000000000000000:0000 0A 0:0\n";
        for (table, port, expected) in [
            (table, 10256, true),
            (table, 8080, false),
            (table, 0x2711, false),
            (table6, 10256, true),
            ("", 10256, false),
        ] {
            assert_eq!(has_listener(table.as_bytes(), port), expected, "{port}");
        }
    }

    #[tokio::test]
    async fn a_port_is_taken_while_a_socket_listens() {
        for address in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()] {
            let listener = TcpListener::bind((address, 0)).await.expect("bind");
            let port = listener.local_addr().expect("an address").port();
            assert!(is_taken(port), "{address}");
            let client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.expect("connect");
            let (accepted, _) = listener.accept().await.expect("a connection");
            drop(listener);
            assert!(!is_taken(port), "{address}: a connection alone");
            drop((client, accepted));
        }
    }
}
